"""The schedulers by name. To add one, write its file and list it in `SCHEDULERS` here."""

import dataclasses
from collections.abc import Mapping
from typing import Any, cast

from cmjax.configs import did_you_mean, shown
from cmjax.schedulers import diffusers_names
from cmjax.schedulers.ancestral import (
    EDMEulerAncestralScheduler,
    EulerAncestralDiscreteScheduler,
)
from cmjax.schedulers.base import Scheduler
from cmjax.schedulers.checks import check_config
from cmjax.schedulers.consistency import CMStochasticIterativeScheduler
from cmjax.schedulers.ctm import CTMScheduler
from cmjax.schedulers.ddim import DDIMScheduler
from cmjax.schedulers.ddim_inverse import DDIMInverseScheduler
from cmjax.schedulers.ddpm import DDPMScheduler
from cmjax.schedulers.deis import DEISMultistepScheduler
from cmjax.schedulers.dpm2 import EDMDPM2Scheduler, KDPM2DiscreteScheduler
from cmjax.schedulers.dpm2_ancestral import KDPM2AncestralDiscreteScheduler
from cmjax.schedulers.dpm_multistep import EDMDPMSolverMultistepScheduler
from cmjax.schedulers.dpm_multistep_discrete import DPMSolverMultistepScheduler
from cmjax.schedulers.dpm_multistep_inverse import DPMSolverMultistepInverseScheduler
from cmjax.schedulers.dpm_sde import DPMSolverSDEScheduler
from cmjax.schedulers.dpm_singlestep import DPMSolverSinglestepScheduler
from cmjax.schedulers.euler import EDMEulerScheduler
from cmjax.schedulers.euler_discrete import EulerDiscreteScheduler
from cmjax.schedulers.flow_map import FlowMapEulerDiscreteScheduler
from cmjax.schedulers.flow_match_euler import FlowMatchEulerDiscreteScheduler
from cmjax.schedulers.flow_match_heun import FlowMatchHeunDiscreteScheduler
from cmjax.schedulers.flow_match_lcm import FlowMatchLCMScheduler
from cmjax.schedulers.heun import EDMHeunScheduler, HeunDiscreteScheduler
from cmjax.schedulers.ipndm import IPNDMScheduler
from cmjax.schedulers.karras_ve import KarrasVeScheduler
from cmjax.schedulers.lcm import LCMScheduler
from cmjax.schedulers.lms import LMSDiscreteScheduler
from cmjax.schedulers.pndm import PNDMScheduler
from cmjax.schedulers.repaint import RePaintScheduler
from cmjax.schedulers.scm import SCMScheduler
from cmjax.schedulers.score_sde_ve import ScoreSdeVeScheduler
from cmjax.schedulers.score_sde_vp import ScoreSdeVpScheduler
from cmjax.schedulers.tcd import TCDScheduler
from cmjax.schedulers.unipc import UniPCMultistepScheduler

# By the name of the class, which config files hold as `_class_name`.
SCHEDULERS: dict[str, type[Scheduler]] = {
    scheduler.__name__: scheduler
    for scheduler in (
        # Consistency models and flow maps, in a few steps.
        CMStochasticIterativeScheduler,
        CTMScheduler,
        SCMScheduler,
        LCMScheduler,
        TCDScheduler,
        FlowMatchLCMScheduler,
        FlowMapEulerDiscreteScheduler,
        # Solvers of the probability-flow ODE.
        DDIMScheduler,
        DDIMInverseScheduler,
        DDPMScheduler,
        EDMEulerScheduler,
        EDMEulerAncestralScheduler,
        EDMHeunScheduler,
        EDMDPM2Scheduler,
        EDMDPMSolverMultistepScheduler,
        EulerAncestralDiscreteScheduler,
        EulerDiscreteScheduler,
        HeunDiscreteScheduler,
        KDPM2DiscreteScheduler,
        LMSDiscreteScheduler,
        PNDMScheduler,
        IPNDMScheduler,
        DPMSolverMultistepScheduler,
        UniPCMultistepScheduler,
        DEISMultistepScheduler,
        DPMSolverSinglestepScheduler,
        DPMSolverMultistepInverseScheduler,
        KDPM2AncestralDiscreteScheduler,
        DPMSolverSDEScheduler,
        KarrasVeScheduler,
        FlowMatchEulerDiscreteScheduler,
        FlowMatchHeunDiscreteScheduler,
        ScoreSdeVeScheduler,
        ScoreSdeVpScheduler,
        RePaintScheduler,
    )
}


def scheduler_from_config(config: Mapping[str, Any]) -> Scheduler:
    """Builds a registered scheduler from a config dict.

    Example:
        >>> import cmjax
        >>> config = {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"}
        >>> cmjax.scheduler_from_config(config).prediction_type
        'v_prediction'

    Args:
        config: `scheduler.to_config()`, or the content of a diffusers `scheduler_config.json`.

    Raises:
        ValueError: if `config` is no mapping of names, `_class_name` is missing or unknown, or an
            option is unknown or out of its domain.
    """
    check_config(config)
    name = config.get("_class_name")
    if name is None:
        raise ValueError(
            "config has no '_class_name', which says what scheduler it is of; name the class "
            "yourself, as in cmjax.DDIMScheduler.from_config(config)"
        )
    return _by_name(name).from_config(config)


def scheduler_like(
    reference: Scheduler, kind: str | type[Scheduler], **options: Any
) -> Scheduler:
    """Builds a scheduler with the noise levels and the data's scale of another.

    Args:
        reference: whose sigma_min, sigma_max, sigma_data and rho are taken, as far as both have
            them; all its options if it is of that class itself.
        kind: the class of the new one, or its name in `SCHEDULERS`.
        **options: of the new one, over these.

    Raises:
        ValueError: if the name or an option is unknown, or a value is out of its domain.
    """
    cls = _by_name(kind) if isinstance(kind, str) else kind
    if type(reference) is cls:
        return cls.from_config(reference.to_config(), **options)

    # Of another class only the range of levels.
    known = reference.to_config()
    fields = {field.name: field for field in dataclasses.fields(cast(Any, cls))}
    shared = fields.keys() & {"sigma_min", "sigma_max", "sigma_data", "rho"} & known.keys()
    levels = {option: known[option] for option in shared}

    made = cls.from_config({**levels, **own_defaults(cls)}, **options)

    # `from_config` marks options that a file leaves out. Here is no file, and `replace` clears the
    # marks.
    return dataclasses.replace(cast(Any, made))


def own_defaults(cls: type[Scheduler]) -> dict[str, Any]:
    """Returns a class's defaults of those options for which diffusers' class has others."""
    fields = {field.name: field for field in dataclasses.fields(cast(Any, cls))}
    return {name: fields[name].default for name in cls._diffusers_defaults}


def name_of_class(cls: type) -> str | None:
    """Returns the name in `SCHEDULERS` of a class; None if it is not there."""
    # The exact class: a subclass may sample differently.
    for name, registered in SCHEDULERS.items():
        if cls is registered:
            return name
    return None


def registered_name(name: Any) -> str:
    """Returns the name in `SCHEDULERS` of a class that a file or a user names.

    diffusers had Flax classes until 0.40, with "Flax" in front of the names; they sample alike.

    Raises:
        ValueError: if there is no such scheduler.
    """
    # A name from a JSON file may be a list, which no dictionary can look up.
    if isinstance(name, str):
        for spelling in (name, name.removeprefix("Flax")):
            if spelling in SCHEDULERS:
                return spelling

        # A loop over integers has schedulers of its own.
        if name == "VQDiffusionScheduler":
            raise ValueError(
                f"{name} samples categories, not floats; read its file with "
                f"cmjax.{name}.from_config(config), for cmjax.categorical.sample"
            )

        # Classes for parallel sampling, whose steps are those of the classes that they copy.
        serial = name.replace("Parallel", "")
        if name in diffusers_names.SCHEDULERS and name != serial:
            raise ValueError(
                f"{name} samples like {serial}: use cmjax.{serial}.from_config(config)"
            )

        # A name that is spelt right is no misspelling of another algorithm's.
        if name.removeprefix("Flax") in diffusers_names.SCHEDULERS:
            raise ValueError(
                f"{name} is a scheduler of diffusers that cmjax does not have; known are "
                f"{', '.join(SCHEDULERS)}"
            )
    raise ValueError(
        f"there is no scheduler {shown(name)}{did_you_mean(name, list(SCHEDULERS))}"
    )


def _by_name(name: Any) -> type[Scheduler]:
    """The registered scheduler that a config names."""
    try:
        return SCHEDULERS[registered_name(name)]
    except ValueError as error:
        raise ValueError(f"config['_class_name']: {error}") from None

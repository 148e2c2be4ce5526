"""The schedulers by name. To add one, write its file and list it in `SCHEDULERS` here."""

import dataclasses
from collections.abc import Mapping
from typing import Any, cast

from cmjax.configs import did_you_mean
from cmjax.schedulers.ancestral import EDMEulerAncestralScheduler, EulerAncestralDiscreteScheduler
from cmjax.schedulers.base import Scheduler
from cmjax.schedulers.consistency import CMStochasticIterativeScheduler
from cmjax.schedulers.ctm import CTMScheduler
from cmjax.schedulers.ddim import DDIMScheduler
from cmjax.schedulers.dpm2 import EDMDPM2Scheduler, KDPM2DiscreteScheduler
from cmjax.schedulers.dpm_multistep import EDMDPMSolverMultistepScheduler
from cmjax.schedulers.euler import EDMEulerScheduler
from cmjax.schedulers.flow_map import FlowMapEulerDiscreteScheduler
from cmjax.schedulers.flow_match_lcm import FlowMatchLCMScheduler
from cmjax.schedulers.heun import EDMHeunScheduler, HeunDiscreteScheduler
from cmjax.schedulers.lcm import LCMScheduler
from cmjax.schedulers.scm import SCMScheduler
from cmjax.schedulers.tcd import TCDScheduler

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
        EDMEulerScheduler,
        EDMEulerAncestralScheduler,
        EDMHeunScheduler,
        EDMDPM2Scheduler,
        EDMDPMSolverMultistepScheduler,
        EulerAncestralDiscreteScheduler,
        HeunDiscreteScheduler,
        KDPM2DiscreteScheduler,
    )
}


def scheduler_from_config(config: Mapping[str, Any]) -> Scheduler:
    """Builds a registered scheduler from a config dict.

    Args:
        config: `scheduler.to_config()`, or the content of a diffusers `scheduler_config.json`.

    Raises:
        ValueError: if `_class_name` is missing or unknown, or an option is unknown or out of its
            domain.
    """
    name = config.get("_class_name")
    if not isinstance(name, str) or name not in SCHEDULERS:
        raise ValueError(f"config['_class_name'] is {name!r}{did_you_mean(name, list(SCHEDULERS))}")
    return SCHEDULERS[name].from_config(config)


def scheduler_like(reference: Scheduler, name: str, **options: Any) -> Scheduler:
    """Builds a scheduler with the noise levels and the data's scale of another scheduler.

    Args:
        reference: the scheduler whose sigma_min, sigma_max, sigma_data and rho are copied, as far
            as both have them; all its options are if it is of the same class.
        name: of the new scheduler, one of `SCHEDULERS`.
        **options: of the new scheduler; they override those copied.

    Raises:
        ValueError: if the name or an option is unknown, or a value is out of its domain.
    """
    known = reference.to_config()

    # Other options, such as s_noise or timestep_spacing, are choices for one sampler only.
    if name in SCHEDULERS and name != known["_class_name"]:
        fields = {field.name for field in dataclasses.fields(cast(Any, SCHEDULERS[name]))}
        shared = fields & {"sigma_min", "sigma_max", "sigma_data", "rho"} & known.keys()
        known = {option: known[option] for option in shared}

    # This also reports an unknown name.
    return scheduler_from_config({**known, **options, "_class_name": name})

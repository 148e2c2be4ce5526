"""Samplers, one algorithm a file. A new one is a file and a line in `FEW_STEP` or `ODE_SOLVERS`."""

from collections.abc import Mapping
from typing import Any

from cmjax.configs import did_you_mean
from cmjax.schedulers.ancestral import EDMEulerAncestralScheduler, EulerAncestralDiscreteScheduler
from cmjax.schedulers.base import Scheduler, SchedulerState, StepOutput
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


def _by_name(*classes: type[Scheduler]) -> dict[str, type[Scheduler]]:
    return {cls.__name__: cls for cls in classes}


FEW_STEP = _by_name(
    CMStochasticIterativeScheduler,
    CTMScheduler,
    SCMScheduler,
    LCMScheduler,
    TCDScheduler,
    FlowMatchLCMScheduler,
    FlowMapEulerDiscreteScheduler,
)
ODE_SOLVERS = _by_name(
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
SCHEDULERS = FEW_STEP | ODE_SOLVERS


def scheduler_from_config(config: Mapping[str, Any]) -> Scheduler:
    """Builds any registered scheduler from a config dict.

    Args:
        config: `scheduler.to_config()`, or the content of a diffusers `scheduler_config.json`.

    Raises:
        ValueError: if `_class_name` is missing or unknown, or an option is unknown or out of its domain.
    """
    name = config.get("_class_name")
    if not isinstance(name, str) or name not in SCHEDULERS:
        raise ValueError(f"config['_class_name'] is {name!r}{did_you_mean(name, list(SCHEDULERS))}")
    return SCHEDULERS[name].from_config(config)


__all__ = [
    "FEW_STEP",
    "ODE_SOLVERS",
    "SCHEDULERS",
    "CMStochasticIterativeScheduler",
    "CTMScheduler",
    "DDIMScheduler",
    "EDMDPM2Scheduler",
    "EDMDPMSolverMultistepScheduler",
    "EDMEulerAncestralScheduler",
    "EDMEulerScheduler",
    "EDMHeunScheduler",
    "EulerAncestralDiscreteScheduler",
    "FlowMapEulerDiscreteScheduler",
    "FlowMatchLCMScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "SCMScheduler",
    "Scheduler",
    "SchedulerState",
    "StepOutput",
    "TCDScheduler",
    "scheduler_from_config",
]

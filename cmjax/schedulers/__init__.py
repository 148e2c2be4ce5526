"""Samplers, one algorithm a file."""

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
from cmjax.schedulers.registry import (
    FEW_STEP,
    ODE_SOLVERS,
    SCHEDULERS,
    on_levels_of,
    scheduler_from_config,
)
from cmjax.schedulers.scm import SCMScheduler
from cmjax.schedulers.tcd import TCDScheduler

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
    "on_levels_of",
    "scheduler_from_config",
]

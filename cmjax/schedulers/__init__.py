"""Schedulers: one sampling algorithm per file."""

from cmjax.schedulers import serialization  # noqa: F401  (registers the states)
from cmjax.schedulers.ancestral import (
    EDMEulerAncestralScheduler,
    EulerAncestralDiscreteScheduler,
)
from cmjax.schedulers.base import Scheduler, SchedulerState, StepOutput
from cmjax.schedulers.categories import CategoryState
from cmjax.schedulers.consistency import CMStochasticIterativeScheduler
from cmjax.schedulers.ctm import CTMScheduler
from cmjax.schedulers.ddim import DDIMScheduler
from cmjax.schedulers.ddim_inverse import DDIMInverseScheduler
from cmjax.schedulers.ddpm import DDPMScheduler
from cmjax.schedulers.deis import DEISMultistepScheduler
from cmjax.schedulers.discrete import DiscreteScheduler, SpacedScheduler
from cmjax.schedulers.discrete_sigmas import DiscreteSigmasScheduler
from cmjax.schedulers.dpm2 import EDMDPM2Scheduler, KDPM2DiscreteScheduler
from cmjax.schedulers.dpm2_ancestral import KDPM2AncestralDiscreteScheduler
from cmjax.schedulers.dpm_multistep import EDMDPMSolverMultistepScheduler
from cmjax.schedulers.dpm_multistep_discrete import DPMSolverMultistepScheduler
from cmjax.schedulers.dpm_multistep_inverse import DPMSolverMultistepInverseScheduler
from cmjax.schedulers.dpm_sde import DPMSolverSDEScheduler
from cmjax.schedulers.dpm_singlestep import DPMSolverSinglestepScheduler
from cmjax.schedulers.edm import EDMScheduler
from cmjax.schedulers.euler import EDMEulerScheduler
from cmjax.schedulers.euler_discrete import EulerDiscreteScheduler
from cmjax.schedulers.exploding import ExplodingScheduler
from cmjax.schedulers.flow import FlowScheduler
from cmjax.schedulers.flow_map import FlowMapEulerDiscreteScheduler
from cmjax.schedulers.flow_match import FlowMatchScheduler
from cmjax.schedulers.flow_match_euler import FlowMatchEulerDiscreteScheduler
from cmjax.schedulers.flow_match_heun import FlowMatchHeunDiscreteScheduler
from cmjax.schedulers.flow_match_lcm import FlowMatchLCMScheduler
from cmjax.schedulers.heun import EDMHeunScheduler, HeunDiscreteScheduler
from cmjax.schedulers.ipndm import IPNDMScheduler
from cmjax.schedulers.karras_ve import KarrasVeScheduler
from cmjax.schedulers.lcm import LCMScheduler
from cmjax.schedulers.levels import Levels
from cmjax.schedulers.lms import LMSDiscreteScheduler
from cmjax.schedulers.log_snr import LogSNRScheduler
from cmjax.schedulers.pndm import PNDMScheduler
from cmjax.schedulers.registry import SCHEDULERS, scheduler_from_config, scheduler_like
from cmjax.schedulers.repaint import RePaintScheduler
from cmjax.schedulers.scm import SCMScheduler
from cmjax.schedulers.score_sde_ve import ScoreSdeVeScheduler
from cmjax.schedulers.score_sde_vp import ScoreSdeVpScheduler
from cmjax.schedulers.table import TableScheduler, TableState
from cmjax.schedulers.tcd import TCDScheduler
from cmjax.schedulers.transitions import Transitions
from cmjax.schedulers.unipc import UniPCMultistepScheduler
from cmjax.schedulers.vq_diffusion import VQDiffusionScheduler
from cmjax.schedulers.weights import Memory, Weights

__all__ = [
    "SCHEDULERS",
    "CMStochasticIterativeScheduler",
    "CTMScheduler",
    "CategoryState",
    "DDIMInverseScheduler",
    "DDIMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepInverseScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler",
    "DDPMScheduler",
    "DiscreteScheduler",
    "DiscreteSigmasScheduler",
    "EDMDPM2Scheduler",
    "EDMDPMSolverMultistepScheduler",
    "EDMEulerAncestralScheduler",
    "EDMEulerScheduler",
    "EDMHeunScheduler",
    "EDMScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "ExplodingScheduler",
    "FlowMapEulerDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "FlowMatchLCMScheduler",
    "FlowMatchScheduler",
    "FlowScheduler",
    "HeunDiscreteScheduler",
    "IPNDMScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KarrasVeScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "LogSNRScheduler",
    "Levels",
    "Memory",
    "PNDMScheduler",
    "RePaintScheduler",
    "SCMScheduler",
    "Scheduler",
    "SchedulerState",
    "ScoreSdeVeScheduler",
    "ScoreSdeVpScheduler",
    "SpacedScheduler",
    "StepOutput",
    "TCDScheduler",
    "TableScheduler",
    "TableState",
    "Transitions",
    "UniPCMultistepScheduler",
    "VQDiffusionScheduler",
    "Weights",
    "scheduler_from_config",
    "scheduler_like",
]

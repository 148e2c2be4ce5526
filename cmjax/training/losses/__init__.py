"""Training losses: frozen dataclasses that own their options; calling one computes it."""

from cmjax.training.losses.adversarial import Adversarial, AdversarialParams
from cmjax.training.losses.base import Batch, Frozen, FunctionLoss, Loss, Metrics, Preview
from cmjax.training.losses.checks import karras_range
from cmjax.training.losses.continuous import (
    ContinuousConsistencyDistillation,
    ContinuousConsistencyTraining,
)
from cmjax.training.losses.denoising import Denoising
from cmjax.training.losses.discrete import (
    ConsistencyDistillation,
    ConsistencyTraining,
    ode_step,
)
from cmjax.training.losses.distribution_matching import (
    DistributionMatching,
    DistributionMatchingParams,
)
from cmjax.training.losses.draws import draw_sigmas
from cmjax.training.losses.dropout import WithDropout
from cmjax.training.losses.flow_matching import FlowMatching
from cmjax.training.losses.frozen_networks import teacher_slope
from cmjax.training.losses.improved import (
    EasyConsistencyTuning,
    ImprovedConsistencyTraining,
)
from cmjax.training.losses.improved_mean_flow import ImprovedMeanFlow
from cmjax.training.losses.mean_flow import MeanFlow
from cmjax.training.losses.metrics import L1, L2, METRICS, Metric, PseudoHuber
from cmjax.training.losses.moment_matching import InductiveMomentMatching
from cmjax.training.losses.progressive import ProgressiveDistillation
from cmjax.training.losses.registry import FROM_THE_RUN, LOSSES, find_loss, make
from cmjax.training.losses.shortcut import Shortcut
from cmjax.training.losses.simplified import (
    SimplifiedConsistencyDistillation,
    SimplifiedConsistencyTraining,
)
from cmjax.training.losses.trajectory import ConsistencyTrajectory, trajectory_function
from cmjax.training.losses.weighting import WeightedParams, weigh_levels, with_level_weight

__all__ = [
    "FROM_THE_RUN",
    "L1",
    "L2",
    "LOSSES",
    "METRICS",
    "Adversarial",
    "AdversarialParams",
    "Batch",
    "ConsistencyDistillation",
    "ConsistencyTraining",
    "ConsistencyTrajectory",
    "ContinuousConsistencyDistillation",
    "ContinuousConsistencyTraining",
    "Denoising",
    "DistributionMatching",
    "DistributionMatchingParams",
    "EasyConsistencyTuning",
    "FlowMatching",
    "Frozen",
    "FunctionLoss",
    "ImprovedConsistencyTraining",
    "ImprovedMeanFlow",
    "InductiveMomentMatching",
    "Loss",
    "MeanFlow",
    "Metric",
    "Metrics",
    "Preview",
    "ProgressiveDistillation",
    "PseudoHuber",
    "Shortcut",
    "SimplifiedConsistencyDistillation",
    "SimplifiedConsistencyTraining",
    "WeightedParams",
    "WithDropout",
    "draw_sigmas",
    "find_loss",
    "karras_range",
    "make",
    "ode_step",
    "teacher_slope",
    "trajectory_function",
    "weigh_levels",
    "with_level_weight",
]

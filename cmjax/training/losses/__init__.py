"""Training losses: `(key, apply_fn, params, target_params, batch, step, config) -> (loss, metrics)`.

`batch` maps "data" to samples `[B, ...]`; whatever else it holds is conditioning, handed to `apply_fn`
by name. `target_params` are held fixed: those of the target network, or for distillation the pair
(target, teacher); losses without a target ignore them. Losses are float32.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from cmjax.configs import did_you_mean
from cmjax.training.discretization import consistency_ema_decay, consistency_num_scales
from cmjax.training.losses.adversarial import Judged, adversarial_loss
from cmjax.training.losses.base import (
    METRICS,
    Batch,
    Loss,
    LossConfig,
    Metrics,
    Weighted,
    draw_levels,
    pseudo_huber,
    unweighted,
    with_level_weight,
)
from cmjax.training.losses.continuous import (
    continuous_distillation_loss,
    continuous_training_loss,
    scm_distillation_loss,
    scm_training_loss,
)
from cmjax.training.losses.denoising import denoising_loss, progressive_distillation_loss
from cmjax.training.losses.discrete import (
    consistency_distillation_loss,
    consistency_training_loss,
    easy_consistency_loss,
    improved_consistency_loss,
    ode_step,
)

TargetDecay = Callable[[jax.Array, LossConfig], jax.Array]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a kind of model is trained: a loss, and what its paper says goes with it."""

    loss: Loss
    defaults: Mapping[str, Any]  # the paper's fields of LossConfig, on CIFAR-10
    target_decay: TargetDecay | None = (
        None  # decay of the target's moving average; None: the parameters themselves
    )
    distils: bool = False  # whether it needs a teacher
    weighs_levels: bool = False  # whether it can weigh levels adaptively


def _growing_decay(step, config):
    return consistency_ema_decay(
        consistency_num_scales(step, config.total_steps, config.s0, config.s1),
        config.s0,
        config.mu0,
    )


def _constant_decay(step, config):
    return jnp.float32(config.mu0)


_ECT = {"p_mean": -1.1, "p_std": 2.0, "huber_c": 0.0}
_SCM = {"p_mean": -1.0, "p_std": 1.4, "adaptive_weight": True}
RECIPES = {
    "denoising": Recipe(denoising_loss, {}),
    "progressive": Recipe(progressive_distillation_loss, {"s1": 512}, distils=True),
    "cd": Recipe(
        consistency_distillation_loss, {"s1": 18, "mu0": 0.0}, _constant_decay, distils=True
    ),
    "ct": Recipe(consistency_training_loss, {"s0": 2, "s1": 150, "mu0": 0.9}, _growing_decay),
    "ict": Recipe(improved_consistency_loss, {"p_mean": -1.1, "p_std": 2.0, "s0": 10, "s1": 1280}),
    "ect": Recipe(easy_consistency_loss, _ECT),
    "scd": Recipe(scm_distillation_loss, _SCM, distils=True, weighs_levels=True),
    "sct": Recipe(scm_training_loss, _SCM, weighs_levels=True),
    "continuous_cd": Recipe(continuous_distillation_loss, {"metric": "l2"}, distils=True),
    "continuous_ct": Recipe(continuous_training_loss, {"metric": "l2"}),
}


def recipe(name: str) -> Recipe:
    """Returns the recipe of that name.

    Raises:
        ValueError: for an unknown name, with the closest one.
    """
    if name not in RECIPES:
        raise ValueError(f"there is no loss {name!r}{did_you_mean(name, list(RECIPES))}")
    return RECIPES[name]


__all__ = [
    "METRICS",
    "RECIPES",
    "Batch",
    "Judged",
    "Loss",
    "LossConfig",
    "Metrics",
    "Recipe",
    "Weighted",
    "adversarial_loss",
    "consistency_distillation_loss",
    "consistency_training_loss",
    "continuous_distillation_loss",
    "continuous_training_loss",
    "denoising_loss",
    "draw_levels",
    "easy_consistency_loss",
    "improved_consistency_loss",
    "ode_step",
    "progressive_distillation_loss",
    "pseudo_huber",
    "recipe",
    "scm_distillation_loss",
    "scm_training_loss",
    "unweighted",
    "with_level_weight",
]

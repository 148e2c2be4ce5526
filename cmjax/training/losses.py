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

from cmjax.models.adapters import ApplyFn
from cmjax.parametrization import consistency_function, edm_denoiser
from cmjax.schedulers.base import combine
from cmjax.schedulers.consistency import CMStochasticIterativeScheduler
from cmjax.schedulers.levels import karras_sigmas
from cmjax.training.discretization import adjacent_levels, consistency_num_scales, easy_consistency_level

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]
Loss = Callable[..., tuple[jax.Array, Metrics]]


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """What the losses are told beside the data.

    Attributes:
        scheduler: the preconditioning, and the range of noise levels.
        total_steps: length of the run, for losses with a curriculum.
        p_mean: mean of log sigma where levels are drawn lognormal.
        p_std: standard deviation of log sigma.
        uniform_fraction: share of the levels drawn uniformly along the Karras grid instead.
        huber_c: constant c of the pseudo-Huber metric, per square root of dimension; 0 is the plain norm.
        s0: consistency training's number of levels at the start.
        s1: and at the end.
        stages: easy consistency tuning's number of halvings (for q = 2) of the gap 1 - r/t over the run.
        q: easy consistency tuning's shrinking factor per stage.
        teacher_fn: distillation's teacher, `apply_fn(teacher, x, t, **cond)`; None: the student's network.
    """

    scheduler: CMStochasticIterativeScheduler
    total_steps: int
    p_mean: float = -1.2
    p_std: float = 1.2
    uniform_fraction: float = 0.0
    huber_c: float = 0.00054
    s0: int = 2
    s1: int = 150
    stages: float = 8.0
    q: float = 2.0
    teacher_fn: ApplyFn | None = None


def denoising_loss(
    key: jax.Array, apply_fn: ApplyFn, params, target_params, batch: Batch, step: jax.Array, config: LossConfig
) -> tuple[jax.Array, Metrics]:
    """EDM's denoising score matching, weighted to unit output scale (Karras et al. 2022, equation 8)."""
    del target_params, step
    scheduler, (data, cond) = config.scheduler, _split(batch)
    level_key, noise_key = jax.random.split(key)
    sigma = draw_levels(level_key, data.shape[0], config)
    noisy = combine((1, data), (sigma, jax.random.normal(noise_key, data.shape)))
    error = edm_denoiser(apply_fn, params, scheduler, noisy, sigma, **cond) - data
    weight = (jnp.square(sigma) + scheduler.sigma_data**2) / jnp.square(sigma * scheduler.sigma_data)
    loss = jnp.mean(weight * _mean_square(error))
    return loss, {"loss": loss}


def consistency_training_loss(
    key: jax.Array, apply_fn: ApplyFn, params, target_params, batch: Batch, step: jax.Array, config: LossConfig
) -> tuple[jax.Array, Metrics]:
    """Consistency training on adjacent levels of a growing grid (Song et al. 2023, Algorithm 3)."""
    level_key, noise_key = jax.random.split(key)
    num_scales = consistency_num_scales(step, config.total_steps, config.s0, config.s1)
    index = jax.random.randint(level_key, batch["data"].shape[:1], 0, num_scales - 1)
    s = config.scheduler
    higher, lower = adjacent_levels(index, num_scales, s.sigma_min, s.sigma_max, s.rho)
    distance = _consistency_distance(noise_key, apply_fn, params, target_params, batch, higher, lower, config)
    loss = jnp.mean(distance)
    return loss, {"loss": loss, "num_scales": num_scales}


def consistency_distillation_loss(
    key: jax.Array, apply_fn: ApplyFn, params, target_params, batch: Batch, step: jax.Array, config: LossConfig
) -> tuple[jax.Array, Metrics]:
    """Consistency distillation with one Heun step of the teacher (Song et al. 2023, Algorithm 2).

    `target_params` is the pair (target, teacher); the teacher is an EDM denoiser. The grid has `config.s1`
    levels throughout.
    """
    target_params, teacher_params = target_params
    scheduler, (data, cond) = config.scheduler, _split(batch)
    level_key, noise_key = jax.random.split(key)
    index = jax.random.randint(level_key, data.shape[:1], 0, config.s1 - 1)
    higher, lower = adjacent_levels(
        index, jnp.int32(config.s1), scheduler.sigma_min, scheduler.sigma_max, scheduler.rho
    )
    noisy = combine((1, data), (higher, jax.random.normal(noise_key, data.shape)))

    def slope(x, sigma):  # dx/dsigma of the probability-flow ODE (Karras et al. 2022, equation 3)
        denoised = edm_denoiser(config.teacher_fn or apply_fn, teacher_params, scheduler, x, sigma, **cond)
        return combine((1 / sigma, x), (-1 / sigma, denoised))

    first = slope(noisy, higher)
    euler = combine((1, noisy), (lower - higher, first))
    heun = combine((1, noisy), ((lower - higher) / 2, first), ((lower - higher) / 2, slope(euler, lower)))
    target = consistency_function(apply_fn, target_params, scheduler, heun, lower, **cond)
    estimate = consistency_function(apply_fn, params, scheduler, noisy, higher, **cond)
    loss = jnp.mean(pseudo_huber(estimate - jax.lax.stop_gradient(target), config.huber_c))
    return loss, {"loss": loss}


def easy_consistency_loss(
    key: jax.Array, apply_fn: ApplyFn, params, target_params, batch: Batch, step: jax.Array, config: LossConfig
) -> tuple[jax.Array, Metrics]:
    """Easy consistency tuning: from a denoiser to a consistency model by r/t -> 1 (Geng et al. 2024).

    Weighted by 1/(t - r), with the pseudo-Huber metric (section 3.3 there).
    """
    level_key, noise_key = jax.random.split(key)
    t = draw_levels(level_key, batch["data"].shape[0], config)
    r = easy_consistency_level(t, step, config.total_steps / config.stages, config.q)
    r = jnp.maximum(r, config.scheduler.sigma_min)
    distance = _consistency_distance(noise_key, apply_fn, params, target_params, batch, t, r, config)
    loss = jnp.mean(distance / (t - r))
    return loss, {"loss": loss, "ratio": jnp.mean(r / t)}


def draw_levels(key: jax.Array, count: int, config: LossConfig) -> jax.Array:
    """Returns noise levels f32[count]: lognormal, and a share uniform along the Karras grid.

    The lognormal is EDM's (Karras et al. 2022, table 1); it leaves the highest levels, on which
    one-step generation lives, almost unseen, which the uniform share mends.
    """
    s = config.scheduler
    normal_key, ramp_key, choice_key = jax.random.split(key, 3)
    lognormal = jnp.exp(config.p_mean + config.p_std * jax.random.normal(normal_key, (count,)))
    uniform = karras_sigmas(jax.random.uniform(ramp_key, (count,)), s.sigma_min, s.sigma_max, s.rho)
    choose = jax.random.uniform(choice_key, (count,)) < config.uniform_fraction
    # A hair above sigma_min: at sigma_min itself the consistency function is the identity.
    return jnp.clip(jnp.where(choose, uniform, lognormal), 1.1 * s.sigma_min, s.sigma_max)


def _consistency_distance(key, apply_fn, params, target_params, batch, higher, lower, config):
    """d(f(x + higher z), f_target(x + lower z)), f32[B], with the same z and the pseudo-Huber metric."""
    data, cond = _split(batch)
    noise = jax.random.normal(key, data.shape)

    def f(params, sigma):
        noisy = combine((1, data), (sigma, noise))
        return consistency_function(apply_fn, params, config.scheduler, noisy, sigma, **cond)

    target = jax.lax.stop_gradient(f(target_params, lower))
    return pseudo_huber(f(params, higher) - target, config.huber_c)


def pseudo_huber(error: jax.Array, c: float) -> jax.Array:
    """Returns `sqrt(|error|^2 + c^2 D) - c sqrt(D)`, f32[B], D being the dimension (Song & Dhariwal 2023, eq. 8)."""
    dimension = error[0].size
    offset = c * dimension**0.5
    return jnp.sqrt(_mean_square(error) * dimension + offset**2) - offset


def _mean_square(error):
    return jnp.mean(jnp.square(error.astype(jnp.float32)), axis=tuple(range(1, error.ndim)))


def _split(batch: Batch) -> tuple[jax.Array, dict[str, Any]]:
    return batch["data"], {name: value for name, value in batch.items() if name != "data"}

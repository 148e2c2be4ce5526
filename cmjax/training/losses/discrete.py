"""Consistency between two noise levels: distillation (CD), training (CT), improved (iCT) and easy (ECT)."""

import jax
import jax.numpy as jnp

from cmjax.arrays import ApplyFn, combine
from cmjax.parametrization import consistency_function
from cmjax.training.discretization import (
    adjacent_levels,
    consistency_num_scales,
    doubling_num_scales,
    easy_consistency_level,
    lognormal_index,
)
from cmjax.training.losses.base import (
    Batch,
    LossConfig,
    Metrics,
    distance,
    draw_levels,
    split,
    teacher_slope,
)


def consistency_distillation_loss(
    key: jax.Array,
    apply_fn: ApplyFn,
    params,
    target_params,
    batch: Batch,
    step: jax.Array,
    config: LossConfig,
) -> tuple[jax.Array, Metrics]:
    """Consistency distillation with one step of the teacher's ODE, Heun's or Euler's (Song et al. 2023, Algorithm 2).

    `target_params` is the pair (target, teacher); the teacher is an EDM denoiser. The grid has `config.s1`
    levels throughout.
    """
    del step
    config.check_scales(2)
    target_params, teacher_params = target_params
    data, cond = split(batch)
    level_key, noise_key = jax.random.split(key)
    higher, lower = _uniform_pair(level_key, data.shape[0], jnp.int32(config.s1), config)
    noisy = combine((1, data), (higher, jax.random.normal(noise_key, data.shape)))
    earlier = ode_step(
        config, teacher_slope(config, apply_fn, teacher_params, cond), noisy, higher, lower
    )
    target = consistency_function(apply_fn, target_params, config.scheduler, earlier, lower, **cond)
    estimate = consistency_function(apply_fn, params, config.scheduler, noisy, higher, **cond)
    loss = jnp.mean(distance(config, estimate, target))
    return loss, {"loss": loss}


def consistency_training_loss(
    key: jax.Array,
    apply_fn: ApplyFn,
    params,
    target_params,
    batch: Batch,
    step: jax.Array,
    config: LossConfig,
) -> tuple[jax.Array, Metrics]:
    """Consistency training on adjacent levels of a growing grid (Song et al. 2023, Algorithm 3)."""
    config.check_scales(config.s0)
    level_key, noise_key = jax.random.split(key)
    num_scales = consistency_num_scales(step, config.total_steps, config.s0, config.s1)
    higher, lower = _uniform_pair(level_key, batch["data"].shape[0], num_scales, config)
    loss = jnp.mean(
        _consistency_distance(
            noise_key, apply_fn, params, target_params, batch, higher, lower, config
        )
    )
    return loss, {"loss": loss, "num_scales": num_scales}


def improved_consistency_loss(
    key: jax.Array,
    apply_fn: ApplyFn,
    params,
    target_params,
    batch: Batch,
    step: jax.Array,
    config: LossConfig,
) -> tuple[jax.Array, Metrics]:
    """Improved consistency training, iCT (Song & Dhariwal 2023, table 1).

    Grids that double, levels lognormal over the grid, weighted by 1/(higher - lower). Its target is the parameters
    themselves: no moving average.
    """
    config.check_scales(config.s0)
    count = batch["data"].shape[0]
    level_key, noise_key = jax.random.split(key)
    num_scales = doubling_num_scales(step, config.total_steps, config.s0, config.s1)
    grid = num_scales, *config.grid
    index = lognormal_index(level_key, count, config.p_mean, config.p_std, *grid)
    higher, lower = adjacent_levels(index, *grid)
    errors = _consistency_distance(
        noise_key, apply_fn, params, target_params, batch, higher, lower, config
    )
    loss = jnp.mean(errors / (higher - lower))
    return loss, {"loss": loss, "num_scales": num_scales}


def easy_consistency_loss(
    key: jax.Array,
    apply_fn: ApplyFn,
    params,
    target_params,
    batch: Batch,
    step: jax.Array,
    config: LossConfig,
) -> tuple[jax.Array, Metrics]:
    """Easy consistency tuning: from a denoiser to a consistency model by r/t -> 1 (Geng et al. 2024).

    Weighted by 1/(t - r), with the pseudo-Huber metric (section 3.3 there).
    """
    level_key, noise_key = jax.random.split(key)
    t = draw_levels(level_key, batch["data"].shape[0], config)
    r = easy_consistency_level(t, step, config.total_steps / config.stages, config.q)
    r = jnp.clip(r, config.grid[0], (1 - 1e-5) * t)  # closer than that, float32 sees no difference
    errors = _consistency_distance(noise_key, apply_fn, params, target_params, batch, t, r, config)
    loss = jnp.mean(errors / (t - r))
    return loss, {"loss": loss, "ratio": jnp.mean(r / t)}


def ode_step(
    config: LossConfig, slope, x: jax.Array, sigma: jax.Array, lower: jax.Array
) -> jax.Array:
    """Returns x `[B, ...]` moved from the levels sigma to lower, f32[B], along `slope` (Karras et al. 2022, Alg. 1)."""
    gap, first = lower - sigma, slope(x, sigma)
    euler = combine((1, x), (gap, first))
    if config.solver == "euler":
        return euler
    return combine((1, x), (gap / 2, first), (gap / 2, slope(euler, lower)))


def _uniform_pair(key, count, num_scales, config):
    index = jax.random.randint(key, (count,), 0, num_scales - 1)
    return adjacent_levels(index, num_scales, *config.grid)


def _consistency_distance(key, apply_fn, params, target_params, batch, higher, lower, config):
    """d(f(x + higher z), f_target(x + lower z)), f32[B], with the same z."""
    data, cond = split(batch)
    noise = jax.random.normal(key, data.shape)

    def f(params, sigma):
        noisy = combine((1, data), (sigma, noise))
        return consistency_function(apply_fn, params, config.scheduler, noisy, sigma, **cond)

    return distance(config, f(params, higher), f(target_params, lower))

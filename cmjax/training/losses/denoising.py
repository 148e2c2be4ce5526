"""Teachers: denoising, and the progressive distillation that consistency models are compared with."""

import jax
import jax.numpy as jnp

from cmjax.arrays import ApplyFn, combine
from cmjax.parametrization import edm_denoiser
from cmjax.training.discretization import adjacent_levels
from cmjax.training.losses.base import (
    Batch,
    LossConfig,
    Metrics,
    draw_levels,
    mean_square,
    split,
    teacher_slope,
)


def denoising_loss(
    key: jax.Array,
    apply_fn: ApplyFn,
    params,
    target_params,
    batch: Batch,
    step: jax.Array,
    config: LossConfig,
) -> tuple[jax.Array, Metrics]:
    """EDM's denoising score matching, weighted to unit output scale (Karras et al. 2022, equation 8).

    With an `SCMScheduler` it is TrigFlow's `|sigma_data F - dx/dt|^2 / sigma_data^2` (Lu & Song 2024, equation 3).
    """
    del target_params, step
    scheduler, (data, cond) = config.scheduler, split(batch)
    level_key, noise_key = jax.random.split(key)
    sigma = draw_levels(level_key, data.shape[0], config)
    noisy = combine((1, data), (sigma, jax.random.normal(noise_key, data.shape)))
    error = edm_denoiser(apply_fn, params, scheduler, noisy, sigma, **cond) - data
    weight = (jnp.square(sigma) + scheduler.sigma_data**2) / jnp.square(
        sigma * scheduler.sigma_data
    )
    loss = jnp.mean(weight * mean_square(error))
    return loss, {"loss": loss}


def progressive_distillation_loss(
    key: jax.Array,
    apply_fn: ApplyFn,
    params,
    target_params,
    batch: Batch,
    step: jax.Array,
    config: LossConfig,
) -> tuple[jax.Array, Metrics]:
    """One DDIM step of the student does two of the teacher (Salimans & Ho 2022, Algorithm 2).

    The student takes `config.s1` steps over the Karras grid, the teacher twice as many. DDIM on EDM levels is Euler's
    method. A round of the distillation is a run with this loss; the next has half the `s1`, and this student for its
    teacher. `target_params` is the pair (ignored, teacher). Weighted by the truncated signal-to-noise ratio,
    `max(1 / sigma^2, 1)` (section 4 there).
    """
    del step
    scheduler, (data, cond) = config.scheduler, split(batch)
    level_key, noise_key = jax.random.split(key)
    index = jax.random.randint(level_key, data.shape[:1], 0, config.s1)
    grid = jnp.int32(2 * config.s1 + 1), *config.grid
    high, middle = adjacent_levels(2 * index, *grid)
    _, low = adjacent_levels(2 * index + 1, *grid)

    noisy = combine((1, data), (high, jax.random.normal(noise_key, data.shape)))
    slope = teacher_slope(config, apply_fn, target_params[1], cond)
    halfway = combine((1, noisy), (middle - high, slope(noisy, high)))
    end = combine((1, halfway), (low - middle, slope(halfway, middle)))
    # The x0 that takes one Euler step from `noisy` to `end` (appendix G there).
    target = combine((high / (high - low), end), (-low / (high - low), noisy))
    error = edm_denoiser(apply_fn, params, scheduler, noisy, high, **cond) - jax.lax.stop_gradient(
        target
    )
    loss = jnp.mean(jnp.maximum(1 / jnp.square(high), 1) * mean_square(error))
    return loss, {"loss": loss}

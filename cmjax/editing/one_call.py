"""Editing in one network call: denoising, and interpolation between two samples."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from cmjax.arrays import (
    ApplyFn,
    as_floats,
    as_reals,
    as_samples,
    at_least_float32,
    check_shapes,
    known_reals,
    reals_of_batch,
    scaled,
    weighted_sum,
)
from cmjax.configs import shown
from cmjax.constraints.checks import as_image
from cmjax.networks import num_classes, parse_cond
from cmjax.parametrization import consistency_function
from cmjax.sampling_inputs import check_guided, check_scheduler
from cmjax.schedulers.consistency import CMStochasticIterativeScheduler


def denoise(
    apply_fn: ApplyFn,
    params: Any,
    scheduler: CMStochasticIterativeScheduler,
    noisy: ArrayLike,
    sigma: Any,
    *,
    cond: Mapping[str, Any] | None = None,
) -> jax.Array:
    """Removes noise in one network call: `f(noisy, sigma)`, clipped if the scheduler clips.

    Args:
        apply_fn: `(params, x, t, **cond) -> model_output`.
        params: of the network.
        scheduler: the sampler.
        noisy: clean samples plus noise, floats `[B, ...]`.
        sigma: the standard deviation of the noise, a number or one per sample `[B]`.
        cond: per-sample conditioning, as for `cmjax.sample`.

    Returns:
        The samples, `[B, ...]`, in the dtype of `noisy`.

    Raises:
        ValueError: for levels outside `[sigma_min, sigma_max]` or of another shape.
    """
    check_scheduler(scheduler)
    check_guided(apply_fn, scheduler, 1)
    x = as_samples("noisy", as_image("noisy", noisy))
    levels = reals_of_batch("sigma", sigma, x.shape[0])

    # The scheduler checks that levels are in its range; it takes them in descending order.
    known = known_reals("sigma", sigma)
    if known is not None:
        scheduler.set_timesteps(sigmas=np.unique(known.astype(np.float32))[::-1])

    # f(noisy, sigma), with one level per sample, f32[B].
    levels = jnp.broadcast_to(levels, x.shape[:1])
    conditioning = parse_cond(cond, x.shape[0], num_classes(apply_fn))
    x0 = consistency_function(apply_fn, params, scheduler, x, levels, **conditioning)
    return scheduler.bound(x0)


def interpolate(
    apply_fn: ApplyFn,
    params: Any,
    scheduler: CMStochasticIterativeScheduler,
    first: ArrayLike,
    second: ArrayLike,
    fractions: Any,
    *,
    cond: Mapping[str, Any] | None = None,
) -> jax.Array:
    """Interpolates between two one-step samples, with one network call per result.

    Args:
        apply_fn: `(params, x, t, **cond) -> model_output`.
        params: of the network.
        scheduler: the sampler.
        first: the standard normal noise `[...]` of one sample. That of sample *i* of a key is
            `cmjax.random.level_noise(cmjax.random.sample_keys(key, 1, i), 0, (1, ...))[0]`.
        second: the noise of the other sample.
        fractions: `[B]`, from 0 for the first sample to 1 for the second.
        cond: per-sample conditioning, as for `cmjax.sample`.

    Returns:
        The samples, `[B, ...]`.

    Raises:
        ValueError: for noise of different shapes, or fractions that are not a list of numbers in
            [0, 1].
    """
    check_scheduler(scheduler)
    weights = as_reals("fractions", fractions)
    known = known_reals("fractions", fractions)
    inside = known is None or np.all((known >= 0) & (known <= 1))
    if weights.ndim != 1 or not weights.size or not inside:
        raise ValueError(
            f"fractions must be a list of numbers in [0, 1], got {shown(fractions)}"
        )

    # The noise of the results, `[B, ...]`. Linear interpolation would reduce its variance.
    first = as_floats("first", first)
    second = as_floats("second", second)
    noise = jax.vmap(slerp, in_axes=(None, None, 0))(first, second, weights)

    # One-step sampling: f(sigma_max z, sigma_max).
    sigma = scheduler.init_noise_sigma
    return denoise(apply_fn, params, scheduler, scaled(sigma, noise), sigma, cond=cond)


def slerp(first: jax.Array, second: jax.Array, fraction: ArrayLike) -> jax.Array:
    """Interpolates spherically, which keeps normal noise normal (Song et al. 2023, appendix D).

    `(sin((1 - a) psi) first + sin(a psi) second) / sin psi`, where psi is the angle between the
    arrays. Parallel arrays, for which this would be 0 / 0, are interpolated linearly.

    Args:
        first: any array.
        second: an array of the same shape.
        fraction: a, a number: 0 for the first and 1 for the second.

    Raises:
        ValueError: for arrays that hold no floats or differ in shape, or a fraction that is no
            number.
    """
    first = as_floats("first", first)
    second = as_floats("second", second)
    a = as_reals("fraction", fraction)
    known = known_reals("fraction", fraction)
    if a.ndim or not (known is None or np.isfinite(known)):
        raise ValueError(f"fraction must be one finite number, got {shown(fraction)}")
    check_shapes(first=first, second=second)

    # The angle is that between all values of the arrays as two long vectors.
    u = at_least_float32(first)
    v = at_least_float32(second)

    length_u = jnp.sqrt(_positive(jnp.sum(jnp.square(u))))
    length_v = jnp.sqrt(_positive(jnp.sum(jnp.square(v))))
    cosine = jnp.sum(u * v) / (length_u * length_v)

    # An array of zeros has no direction: it counts as parallel.
    is_zero = ~(jnp.any(u != 0) & jnp.any(v != 0))
    parallel = (jnp.abs(cosine) > 1 - 1e-6) | is_zero

    # `weight` does not use the angle of parallel arrays. It is set to pi / 2 there, where the
    # gradient of arccos is finite.
    psi = jnp.arccos(jnp.where(parallel, 0, cosine))

    # The coefficient of an array: sin(a psi) / sin(psi), or a itself for parallel arrays.
    def weight(a):
        return jnp.where(parallel, a, jnp.sin(a * psi) / jnp.sin(psi))

    a = a.astype(u.dtype)
    return weighted_sum((weight(1 - a), first), (weight(a), second))


def _positive(square: jax.Array) -> jax.Array:
    """The number, or 1 in place of 0, where the square root has no gradient."""
    return jnp.where(square > 0, square, 1)

"""Which noise levels training compares, as pure functions of the training step."""

import math

import jax
import jax.numpy as jnp

from cmjax.schedulers.levels import karras_sigmas


def consistency_num_scales(
    step: jax.Array, total_steps: int, s0: int = 2, s1: int = 150
) -> jax.Array:
    """Returns i32[], the number N(k) of noise levels at training step k (Song et al. 2023, Appendix C).

    `N(k) = ceil(sqrt(k/K ((s1 + 1)^2 - s0^2) + s0^2) - 1) + 1`, but at least 2, for s0 = 1.

    Args:
        step: training step k, i32[].
        total_steps: K.
        s0: number of levels at the start.
        s1: number of levels at the end.
    """
    fraction = step.astype(jnp.float32) / total_steps
    levels = jnp.ceil(jnp.sqrt(fraction * ((s1 + 1) ** 2 - s0**2) + s0**2) - 1) + 1
    return jnp.maximum(levels, 2).astype(jnp.int32)


def consistency_ema_decay(num_scales: jax.Array, s0: int = 2, mu0: float = 0.9) -> jax.Array:
    """Returns f32[], the decay `mu(k) = exp(s0 log(mu0) / N(k))` of the target (Song et al. 2023, Appendix C)."""
    return jnp.float32(mu0) ** (s0 / num_scales.astype(jnp.float32))


def doubling_num_scales(
    step: jax.Array, total_steps: int, s0: int = 10, s1: int = 1280
) -> jax.Array:
    """Returns i32[], iCT's number N(k) of noise levels at training step k (Song & Dhariwal 2023, section 3.4).

    `N(k) = min(s0 2^floor(k / K'), s1) + 1` with `K' = floor(K / (log2 floor(s1 / s0) + 1))`.

    Args:
        step: training step k, i32[].
        total_steps: K.
        s0: number of intervals at the start.
        s1: number of intervals at the end.
    """
    stage_length = max(1, math.floor(total_steps / (math.log2(s1 // s0) + 1)))
    doublings = jnp.minimum(step // stage_length, 30 - math.ceil(math.log2(s0)))  # within int32
    return jnp.minimum(s0 * 2**doublings, s1).astype(jnp.int32) + 1


def lognormal_index(
    key: jax.Array,
    count: int,
    p_mean: float,
    p_std: float,
    num_scales: jax.Array,
    sigma_min,
    sigma_max,
    rho,
) -> jax.Array:
    """Returns indices i32[count] of adjacent levels, lognormal over the grid (Song & Dhariwal 2023, section 3.5).

    `p(i) ~ erf((log higher - p_mean) / (sqrt(2) p_std)) - erf((log lower - p_mean) / (sqrt(2) p_std))`: a level is
    drawn from the lognormal between the grid's ends, and the interval that it falls in is taken.

    Args:
        key: PRNG key.
        count: how many.
        p_mean: mean of log sigma.
        p_std: its standard deviation.
        num_scales: size of the grid, i32[].
        sigma_min: its lowest level.
        sigma_max: its highest level.
        rho: its curvature.
    """
    low, high = ((math.log(sigma) - p_mean) / p_std for sigma in (sigma_min, sigma_max))
    sigma = jnp.exp(p_mean + p_std * jax.random.truncated_normal(key, low, high, (count,)))
    start, end = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    ramp = (sigma ** (1 / rho) - start) / (end - start)
    index = jnp.floor(ramp * (num_scales - 1).astype(jnp.float32)).astype(jnp.int32)
    return jnp.clip(index, 0, num_scales - 2)


def tangent_warmup(step: jax.Array, steps: int = 10_000) -> jax.Array:
    """Returns f32[], the share `min(1, k / H)` of the network's derivative in sCM's tangent (Lu & Song 2024, 4.2)."""
    return jnp.minimum(1, step.astype(jnp.float32) / steps)


def adjacent_levels(
    index: jax.Array, num_scales: jax.Array, sigma_min: float, sigma_max: float, rho: float
):
    """Returns the levels (higher, lower), f32[B] each, at `index` and `index + 1` of a grid of `num_scales`.

    Args:
        index: i32[B] from 0 (sigma_max) to `num_scales - 2`.
        num_scales: size of the grid, i32[].
        sigma_min: its lowest level.
        sigma_max: its highest level.
        rho: its curvature (Karras et al. 2022, equation 5).
    """
    last = (num_scales - 1).astype(jnp.float32)
    higher = karras_sigmas(index.astype(jnp.float32) / last, sigma_min, sigma_max, rho)
    lower = karras_sigmas((index + 1).astype(jnp.float32) / last, sigma_min, sigma_max, rho)
    return higher, lower


def easy_consistency_level(
    t: jax.Array,
    step: jax.Array,
    steps_per_stage: float,
    q: float = 2.0,
    k: float = 8.0,
    b: float = 1.0,
) -> jax.Array:
    """Returns the lower level r <= t that ECT compares with t (Geng et al. 2024, section 3.2 and equation 14).

    `r/t = 1 - n(t) / q^a` with `n(t) = 1 + k sigmoid(-b t)` and a growing by one every stage, clipped to
    [0, 1]. At a = 1 most levels compare with the data itself, which is denoising; as a grows, r/t -> 1.
    The stage is taken as a real number, so that the ratio moves a little at every step.

    Args:
        t: higher noise levels, f32[B].
        step: training step, i32[].
        steps_per_stage: training steps per unit of a.
        q: shrinking factor of the gap per stage.
        k: extra width of the gap at low noise.
        b: how fast that extra width fades with t.
    """
    stage = 1 + step.astype(jnp.float32) / steps_per_stage
    gap = (1 + k * jax.nn.sigmoid(-b * t)) / q**stage
    return t * jnp.clip(1 - gap, 0, 1)

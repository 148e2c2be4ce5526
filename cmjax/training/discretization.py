"""Which noise levels the losses compare, as pure functions of the training step."""

import math

import jax
import jax.numpy as jnp

from cmjax import random
from cmjax.schedulers.levels import karras_sigmas


def growing_num_levels(
    step: jax.Array, total_steps: int, initial_levels: int = 2, final_levels: int = 150
) -> jax.Array:
    """Returns i32[], the number N(k) of noise levels at training step k (Song et al. 2023, App. C).

    `N(k) = ceil(sqrt(k/K ((s1 + 1)^2 - s0^2) + s0^2) - 1) + 1`, but at least 2, for s0 = 1.

    Args:
        step: training step k, i32[].
        total_steps: K.
        initial_levels: s0, the number of levels at the start.
        final_levels: s1; the formula ends with one level more.
    """
    # In float32: (s1 + 1)^2 may overflow int32.
    fraction = jnp.asarray(step, jnp.float32) / total_steps
    first = float(initial_levels**2)
    growth = float((final_levels + 1) ** 2) - first

    # N(k), which grows like the square root of k.
    num_levels = jnp.ceil(jnp.sqrt(fraction * growth + first) - 1) + 1

    # A comparison needs two levels, which s0 = 1 does not give at k = 0.
    return jnp.maximum(num_levels, 2).astype(jnp.int32)


def growing_target_decay(
    num_levels: jax.Array, initial_levels: int = 2, initial_decay: float = 0.9
) -> jax.Array:
    """Returns f32[], the decay of the target's moving average (Song et al. 2023, Appendix C).

    `mu(k) = exp(s0 log(mu0) / N(k))`, which tends to 1 as the number of levels grows.

    Args:
        num_levels: N(k), i32[].
        initial_levels: s0, the number of levels at the start.
        initial_decay: mu0, the decay with that number of levels.
    """
    # As the power mu0^(s0 / N), without a logarithm of mu0 = 0.
    return jnp.float32(initial_decay) ** (initial_levels / num_levels.astype(jnp.float32))


def doubling_num_levels(
    step: jax.Array,
    total_steps: int,
    initial_intervals: int = 10,
    final_intervals: int = 1280,
) -> jax.Array:
    """Returns i32[], iCT's number N(k) of noise levels (Song and Dhariwal 2023, section 3.4).

    `N(k) = min(s0 2^floor(k / K'), s1) + 1` with `K' = floor(K / (log2 floor(s1 / s0) + 1))`.

    Args:
        step: training step k, i32[].
        total_steps: K.
        initial_intervals: s0, the number of intervals between levels at the start.
        final_intervals: s1, the number of intervals at the end.
    """
    # K', the steps of a stage, is a Python integer: only the step is traced.
    num_stages = math.log2(final_intervals // initial_intervals) + 1
    stage_length = max(1, math.floor(total_steps / num_stages))

    # s0 2^floor(k / K'), bounded ahead of the power: it would overflow int32 in runs with many
    # stages, or ones that go beyond K, and then come out negative.
    most_doublings = 30 - math.ceil(math.log2(initial_intervals))
    doublings = jnp.minimum(step // stage_length, most_doublings)
    num_intervals = jnp.minimum(initial_intervals * 2**doublings, final_intervals)

    # One more level than intervals.
    return num_intervals.astype(jnp.int32) + 1


def lognormal_index(
    key: jax.Array,
    count: int,
    p_mean: float,
    p_std: float,
    num_levels: jax.Array,
    sigma_min: float,
    sigma_max: float,
    rho: float,
) -> jax.Array:
    """Returns indices i32[count] of pairs of adjacent levels, lognormal over the Karras grid.

    Song and Dhariwal 2023, section 3.5: `p(i) ~ erf((log higher - p_mean) / (sqrt(2) p_std)) -
    erf((log lower - p_mean) / (sqrt(2) p_std))`. That is the probability that a lognormal level
    falls in interval i, so a level is drawn and the interval that it falls in returned.

    Args:
        key: PRNG key.
        count: number of indices.
        p_mean: mean of log sigma.
        p_std: standard deviation of log sigma.
        num_levels: size of the grid, i32[].
        sigma_min: the lowest level.
        sigma_max: the highest level.
        rho: curvature of the grid.
    """
    # Levels from the lognormal, truncated to the grid: f32[count] in [sigma_min, sigma_max].
    low = (math.log(sigma_min) - p_mean) / p_std
    high = (math.log(sigma_max) - p_mean) / p_std
    sigma = jnp.exp(p_mean + p_std * random.truncated_normal(key, low, high, (count,)))

    # Their places on the grid, from 0 at sigma_max to 1 at sigma_min: `karras_sigmas` inverted.
    start = sigma_max ** (1 / rho)
    end = sigma_min ** (1 / rho)
    ramp = (sigma ** (1 / rho) - start) / (end - start)

    # The interval that a level falls in. Rounding may put an end of the grid just outside.
    index = jnp.floor(ramp * (num_levels - 1).astype(jnp.float32)).astype(jnp.int32)
    return jnp.clip(index, 0, num_levels - 2)


def tangent_warmup(step: jax.Array, warmup_steps: int = 10_000) -> jax.Array:
    """Returns f32[], the warm-up `r = min(1, k / H)` of sCM's tangent (Lu and Song 2024, 4.2).

    Args:
        step: training step k, i32[].
        warmup_steps: H.
    """
    # r scales the part of the tangent with dF/dt, which is unstable while F changes fast.
    return jnp.minimum(1, jnp.asarray(step, jnp.float32) / warmup_steps)


def adjacent_levels(
    index: jax.Array, num_levels: jax.Array, sigma_min: float, sigma_max: float, rho: float
) -> tuple[jax.Array, jax.Array]:
    """Returns the levels (higher, lower), f32[B] each, at `index` and `index + 1` of a Karras grid.

    Args:
        index: index of the higher level, i32[B], from 0 (sigma_max) to `num_levels - 2`.
        num_levels: size of the grid, i32[].
        sigma_min: the lowest level.
        sigma_max: the highest level.
        rho: curvature of the grid (Karras et al. 2022, equation 5).
    """
    # `num_levels` is traced, so no table of levels can be built: both are computed by the formula.
    last = (num_levels - 1).astype(jnp.float32)
    higher = karras_sigmas(index.astype(jnp.float32) / last, sigma_min, sigma_max, rho)
    lower = karras_sigmas((index + 1).astype(jnp.float32) / last, sigma_min, sigma_max, rho)
    return higher, lower


def easy_consistency_level(
    t: jax.Array,
    step: jax.Array,
    steps_per_stage: float,
    shrink_factor: float = 2.0,
    k: float = 8.0,
    b: float = 1.0,
    whole_stages: bool = False,
) -> jax.Array:
    """Returns the lower level r <= t that ECT compares with t (Geng et al. 2024, equation 14).

    `r/t = 1 - n(t) / q^a` with `n(t) = 1 + k sigmoid(-b t)`, clipped to [0, 1]; a grows by one in
    every stage (section 3.2). At a = 1 r is 0 at most levels, so that they are compared with the
    data itself, which is denoising; as a grows, r/t -> 1. Here a is a real number, which grows a
    little at every step, unless `whole_stages` makes it a whole one, as in the authors' code.

    Args:
        t: higher noise levels, f32[B].
        step: training step, i32[].
        steps_per_stage: training steps in which a grows by one.
        shrink_factor: q, which the gap is divided by in every stage.
        k: extra width of the gap at low noise.
        b: how fast that extra width fades with t.
        whole_stages: whether a grows by one at the end of each stage only.
    """
    # a, from 1 on.
    stage = 1 + jnp.asarray(step, jnp.float32) / steps_per_stage
    if whole_stages:
        stage = jnp.floor(stage)

    # The gap 1 - r/t, f32[B]; above 1 early in training, where r is then 0.
    gap = (1 + k * jax.nn.sigmoid(-b * t)) / shrink_factor**stage
    return t * jnp.clip(1 - gap, 0, 1)

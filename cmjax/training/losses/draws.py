"""What most losses draw: noise levels, noise, and how many samples a fraction of a batch is."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from cmjax import random
from cmjax.arrays import weighted_sum
from cmjax.schedulers.levels import karras_sigmas
from cmjax.training.losses.checks import karras_range

# Valid values of the fields that say how noise levels or times are drawn, for the losses that have
# them.
DRAW_DOMAINS = {
    "p_mean": (-50.0, 50.0),
    "p_std": (1e-6, 50.0),
    "uniform_fraction": (0.0, 1.0),
}


def draw_sigmas(
    key: jax.Array,
    count: int,
    scheduler: Any,
    p_mean: float,
    p_std: float,
    uniform_fraction: float = 0.0,
) -> jax.Array:
    """Returns noise levels f32[count]: lognormal, except for a fraction uniform on the Karras grid.

    EDM's lognormal distribution (Karras et al. 2022, table 1) has hardly any of the highest levels,
    where one-step generation starts; the uniform fraction has. Levels are clipped to the range of
    the scheduler. A scheduler without one, such as `SCMScheduler`, gets lognormal levels only.

    Args:
        key: PRNG key.
        count: how many.
        scheduler: its sigma_min, sigma_max and rho bound the levels.
        p_mean: mean of log sigma.
        p_std: standard deviation of log sigma.
        uniform_fraction: fraction of the levels that are drawn uniformly.
    """
    normal_key, ramp_key, choice_key = random.split(key, 3)

    # log sigma ~ N(p_mean, p_std^2).
    lognormal = jnp.exp(p_mean + p_std * random.normal(normal_key, (count,)))
    if not hasattr(scheduler, "sigma_max"):
        return lognormal  # the angles arctan(sigma / sigma_data) reach every level
    sigma_min, sigma_max, rho = karras_range(scheduler)

    # sigma(u) of the Karras grid for uniform u, in place of some of the lognormal levels.
    uniform = karras_sigmas(random.uniform(ramp_key, (count,)), sigma_min, sigma_max, rho)
    is_uniform = random.uniform(choice_key, (count,)) < uniform_fraction
    sigma = jnp.where(is_uniform, uniform, lognormal)

    # At least a little above sigma_min, where the consistency function is the identity.
    return jnp.clip(sigma, 1.1 * sigma_min, sigma_max)


def rounded_count(key: jax.Array, count: int, fraction: float) -> int | jax.Array:
    """Returns `count * fraction`, rounded up or down at random so that its mean is exact.

    A batch, or a part of one (`accumulate`), may have too few samples for its fraction.

    Args:
        key: PRNG key; not used where the product is a whole number.
        count: number of samples.
        fraction: of them, from 0 to 1.

    Returns:
        The number of samples, i32[], or a Python integer where nothing is rounded.
    """
    # Products such as 0.29 * 100 = 28.999999999999996 are whole numbers.
    exact = round(count * fraction, 6)
    whole = math.floor(exact)
    rest = exact - whole
    if not rest:
        return whole
    return whole + (random.uniform(key, ()) < rest).astype(jnp.int32)


def add_noise(data: jax.Array, sigma: jax.Array, noise: jax.Array) -> jax.Array:
    """Returns `data + sigma noise`, for data and noise `[B, ...]` and sigma f32[B]."""
    # By `weighted_sum`, which aligns sigma with the batch and computes bfloat16 samples in float32.
    return weighted_sum((1, data), (sigma, noise))

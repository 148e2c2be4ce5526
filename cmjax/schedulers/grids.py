"""Grids of noise levels that replace those of a run, with the same ends."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cmjax.schedulers.levels import exponential_sigmas, karras_sigmas, ramp

# The fields of schedulers that choose such a grid; at most one of them is True.
GRID_OPTIONS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")


def grid_option(scheduler: Any) -> str:
    """Returns the name of the scheduler's field of `GRID_OPTIONS` that is True, or "".

    Raises:
        ValueError: if more than one is True.
    """
    chosen = [name for name in GRID_OPTIONS if getattr(scheduler, name)]
    if len(chosen) > 1:
        raise ValueError(f"{' and '.join(chosen)} exclude each other")
    return chosen[0] if chosen else ""


def respaced(
    scheduler: Any, sigmas: jax.Array, low: Any = None, high: Any = None
) -> jax.Array:
    """Returns as many noise levels, f32[N], on the grid that is asked for.

    Args:
        scheduler: with the fields `GRID_OPTIONS`.
        sigmas: f32[N], descending; returned as they are if no grid is asked for.
        low: the lowest level of the grid; None for that of `sigmas`.
        high: the highest level of the grid, likewise.
    """
    option = grid_option(scheduler)
    low = sigmas[-1] if low is None else jnp.float32(low)
    high = sigmas[0] if high is None else jnp.float32(high)

    # Places on the grid, from 0 at the highest level to 1 at the lowest.
    places = ramp(len(sigmas))
    if option == "use_karras_sigmas":
        return karras_sigmas(jnp.asarray(places, jnp.float32), low, high, rho=7.0)
    if option == "use_exponential_sigmas":
        return exponential_sigmas(jnp.asarray(places, jnp.float32), low, high)
    if option == "use_beta_sigmas":
        quantiles = jnp.asarray(beta_quantiles(1 - places), jnp.float32)
        return low + quantiles * (high - low)
    return sigmas


def beta_quantiles(probabilities: np.ndarray, shape: float = 0.6) -> np.ndarray:
    """Returns the quantiles of the beta distribution with both shapes equal, f64[N].

    The levels of Lee et al. 2024 (Beta Sampling is All You Need, arXiv 2407.12173), which lie
    close together at both ends.

    Args:
        probabilities: in [0, 1], f64[N].
        shape: both shapes a of the density, proportional to `(x (1 - x))^(a - 1)`; in (0, 1].
    """
    # The density is symmetric: the quantile of 1 - p is 1 minus that of p.
    lower = np.minimum(probabilities, 1 - probabilities)

    # Newton's method for P(x) = lower in u = x^a, where P is convex with the slope
    # (1 - x)^(a - 1) / (a B): after one step it comes from above, and its error is squared by
    # each step.
    complete = math.gamma(shape) ** 2 / math.gamma(2 * shape)
    u = shape * complete * lower
    for _ in range(8):
        x = u ** (1 / shape)
        excess = _lower_series(x, shape) * u - complete * lower
        u = u - excess * shape * (1 - x) ** (1 - shape)
    x = u ** (1 / shape)
    return np.where(probabilities <= 0.5, x, 1 - x)


def _lower_series(x: np.ndarray, shape: float) -> np.ndarray:
    """The integral of `(t (1 - t))^(a - 1)` from 0 to x, divided by x^a, for x up to 1/2."""
    # (1 - t)^(a - 1) as a power series, integrated term by term. Each term is less than half of
    # the one before, so that 60 terms have all digits of float64.
    total = np.zeros_like(x)
    power = np.ones_like(x)
    for n in range(60):
        total += power / (shape + n)
        power = power * x * (n + 1 - shape) / (n + 1)
    return total

"""Churn: noise that is added before each step of an ODE solver (Karras et al. 2022)."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cmjax.schedulers.levels import root_of_difference


@dataclasses.dataclass(frozen=True)
class ChurnOptions:
    """The options of a solver that adds noise before its steps (Algorithm 2).

    Attributes:
        s_churn: total amount of noise added before steps; 0 is the deterministic solver.
        s_tmin: lowest level before which noise is added.
        s_tmax: highest level before which noise is added.
        s_noise: factor on the added noise.
    """

    s_churn: float = 0.0
    s_tmin: float = 0.0
    s_tmax: float = 1e18
    s_noise: float = 1.0

    _domains = {
        "s_churn": (0.0, 1e18),
        "s_tmin": (0.0, 1e18),
        "s_tmax": (0.0, 1e18),
        "s_noise": (0.0, 1e18),
    }


class Churn(NamedTuple):
    """Noise that is added before each step (Karras et al. 2022, Algorithm 2, lines 4 to 6).

    Attributes:
        raised: f32[N+1], the levels that steps start from; the end is not raised.
        noise: f32[N], standard deviation of the noise added on arrival at the next level, which
            raises it; None without churn.
    """

    raised: jax.Array
    noise: jax.Array | None


def churn(
    scheduler: Any, sigmas: jax.Array, within: tuple[float, float] | None = None
) -> Churn:
    """Returns the noise levels raised by `s_churn`, and the noise that raises the sample to them.

    Args:
        scheduler: with the fields `s_churn`, `s_noise` and, for `within`, `s_tmin` and `s_tmax`.
        sigmas: f32[N+1], noise levels of a run.
        within: the lowest and highest level before which noise is added; None for
            (s_tmin, s_tmax).
    """
    # Without churn there is no column of noise, and none is drawn.
    if scheduler.s_churn == 0:
        return Churn(sigmas, None)
    levels = sigmas[:-1]

    # sigma_hat = (1 + gamma) sigma within [s_tmin, s_tmax].
    gamma = min(scheduler.s_churn / len(levels), math.sqrt(2) - 1)
    low, high = within or (scheduler.s_tmin, scheduler.s_tmax)
    inside = (low <= levels) & (levels <= high)
    factor = 1 + jnp.where(inside, gamma, 0.0)
    raised = jnp.append(levels * factor, sigmas[-1:])

    # sqrt(sigma_hat^2 - sigma^2) of fresh noise, added by the step that arrives at sigma. The first
    # level needs none: sampling starts from noise of sigma_hat.
    noise = scheduler.s_noise * root_of_difference(raised[1:], sigmas[1:])
    return Churn(raised, noise)

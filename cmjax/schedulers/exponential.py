"""Solvers in the half log-SNR `lambda = log(alpha / sigma)`: exponential integrators.

On every noise path `x = alpha x0 + sigma z`, the probability-flow ODE is one integral over lambda
(Lu et al. 2022, arXiv 2206.00927, equation 3.4, and 2211.01095, equation 9):

    x' = (sigma' / sigma) x + alpha' int exp(lambda - lambda') x0 dlambda      by x0
    x' = (alpha' / alpha) x - sigma' int exp(lambda' - lambda) eps dlambda     by eps

A step replaces x0 (or eps) by the polynomial through the values of this call and other calls, and
integrates that exactly. The first-order step is `x' = alpha' x0 + sigma' eps` both times; higher
orders add a weighted sum of differences between this call's value and others.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cmjax.schedulers.levels import Levels, root_of_difference
from cmjax.schedulers.weights import Weights

_TERMS = 12  # of a series for |h| < 1, precise to float32


class Steps(NamedTuple):
    """The steps of a run, each from (alpha, sigma) to (alpha', sigma'); f32[N] each.

    Attributes:
        by_x0: whether x0 is integrated, rather than eps.
        h: length of the step in lambda; 1 where it is 0 or infinite.
        moving: whether h is neither 0 nor infinite. Other steps are of first order.
        x0: weight of x0 in the first-order step.
        eps: weight of eps in the first-order step.
        kept: weight of the sample x, if the step is written with x instead of eps.
        moments: weights of a value that grows as u^k, k = 0 to 3, where u is 0 at the step's start
            and 1 at its end.
        noise: standard deviation of the fresh noise of an SDE; None for the ODE.
    """

    by_x0: bool
    h: jax.Array
    moving: jax.Array
    x0: jax.Array
    eps: jax.Array
    kept: jax.Array
    moments: tuple[jax.Array, ...]
    noise: jax.Array | None = None


def steps_of(levels: Levels, *, by_x0: bool, stochastic: bool = False) -> Steps:
    """Returns the steps of a run from each level to the next.

    Args:
        levels: N steps; the last may end at sigma = 0, where lambda is infinite.
        by_x0: whether to integrate x0, rather than eps.
        stochastic: whether to follow the SDE (see `steps_from`).
    """
    return steps_from(levels.starts, levels, by_x0=by_x0, stochastic=stochastic)


def steps_from(
    starts: tuple[jax.Array, jax.Array],
    levels: Levels,
    *,
    by_x0: bool,
    stochastic: bool = False,
) -> Steps:
    """Returns steps from other levels to those that the calls of a run arrive at.

    The SDE is that of "sde-dpmsolver++" and "sde-dpmsolver" in diffusers (Lu et al. 2022, arXiv
    2211.01095, appendix B). Its last step, which adds no noise, is the ODE's.

    Args:
        starts: alpha and sigma where each step starts, f32[N] each.
        levels: of N calls, and of the end.
        by_x0: whether to integrate x0, rather than eps.
        stochastic: whether to follow the SDE.
    """
    # Each step goes from (alpha, sigma) to (alpha', sigma'), f32[N] each.
    alpha, sigma = starts
    next_alpha, next_sigma = levels.ends

    # h = lambda' - lambda, from exp(-h) = (sigma' / alpha') / (sigma / alpha). The masked entries
    # keep gradients finite at infinite h.
    noise_to_signal = sigma / alpha
    next_noise_to_signal = next_sigma / next_alpha
    exp_minus_h = next_noise_to_signal / noise_to_signal
    moving = (exp_minus_h > 0) & (exp_minus_h != 1)
    h = jnp.where(moving, -jnp.log(jnp.where(moving, exp_minus_h, 0.5)), 1)

    # The ODE. By eps, the exponential has the other sign.
    if by_x0:
        kept = next_sigma / sigma
        integrals = exponential_moments(h)
        scale = next_alpha
    else:
        kept = next_alpha / alpha
        integrals = exponential_moments(-h)
        scale = next_sigma
    moments = tuple(scale * integral for integral in integrals)
    ode = Steps(
        by_x0=by_x0,
        h=h,
        moving=moving,
        x0=next_alpha,
        eps=next_sigma,
        kept=kept,
        moments=moments,
    )
    if not stochastic:
        return ode
    return _with_noise(ode, noise_to_signal, next_noise_to_signal)


def _with_noise(
    ode: Steps, noise_to_signal: jax.Array, next_noise_to_signal: jax.Array
) -> Steps:
    """The steps of the SDE, given those of the ODE and sigma / alpha at both ends, f32[N] each."""
    next_alpha = ode.x0
    next_sigma = ode.eps
    # sqrt(1 - exp(-2h)).
    spread = root_of_difference(noise_to_signal, next_noise_to_signal) / noise_to_signal

    # By x0, the exponent doubles and noise is added:
    #     x' = (sigma' / sigma) exp(-h) x + alpha' (1 - exp(-2h)) x0 + sigma' sqrt(1 - exp(-2h)) z.
    # With x = alpha x0 + sigma eps, the weights of x0 and eps are alpha' and sigma' exp(-h).
    if ode.by_x0:
        exp_minus_h = next_noise_to_signal / noise_to_signal
        kept = ode.kept * exp_minus_h
        eps = next_sigma * exp_minus_h
        moments = tuple(
            next_alpha * integral for integral in exponential_moments(2 * ode.h)
        )
        noise = next_sigma * spread

    # By eps, the integral doubles and noise is added:
    #     x' = (alpha' / alpha) x - 2 sigma' (exp(h) - 1) eps + sigma' sqrt(exp(2h) - 1) z.
    # The weights of x0 and eps are alpha' and sigma' (2 - exp(h)).
    else:
        raised = next_alpha * noise_to_signal  # sigma' exp(h)
        kept = ode.kept
        eps = 2 * next_sigma - raised
        moments = tuple(2 * moment for moment in ode.moments)
        noise = raised * spread

    # The last step, which adds no noise, is the ODE's.
    is_last = jnp.arange(len(ode.h)) == len(ode.h) - 1

    def chosen(of_sde, of_ode):
        return jnp.where(is_last, of_ode, of_sde)

    return ode._replace(
        eps=chosen(eps, ode.eps),
        kept=chosen(kept, ode.kept),
        moments=tuple(map(chosen, moments, ode.moments)),
        noise=chosen(noise, 0),
    )


def exponential_moments(h: jax.Array) -> tuple[jax.Array, ...]:
    """Returns `h int_0^1 exp(-h (1 - u)) u^k du` for k = 0 to 3, f32[N] each; h of any sign."""
    small = jnp.abs(h) < 1
    near = jnp.where(small, h, 0)
    far = jnp.where(small, 1, h)

    # Large h: by parts, I_k = 1 - k I_(k-1) / h. For small h these are differences of nearly equal
    # numbers, and the series h exp(-h) sum_j h^j / (j! (j + k + 1)) takes their place.
    moments = []
    by_parts = -jnp.expm1(-far)
    for k in range(4):
        if k > 0:
            by_parts = 1 - k * by_parts / far
        series = jnp.zeros_like(near)
        for j in reversed(range(_TERMS)):
            series = series * near + 1 / (math.factorial(j) * (j + k + 1))
        series = near * jnp.exp(-near) * series
        moments.append(jnp.where(small, series, by_parts))
    return tuple(moments)


def table_of(steps: Steps, differences: list[jax.Array]) -> Weights:
    """Returns the table of the first-order step plus `differences[i] (value_i - value)`.

    Args:
        steps: of the run; they say whether the values are those of x0 or of eps.
        differences: weights, f32[N] each; value_i is that of i + 1 calls before.
    """
    total = sum(differences, jnp.zeros_like(steps.h))
    earlier = tuple(differences)
    if steps.by_x0:
        return Weights(steps.x0 - total, steps.eps, steps.noise, earlier_x0=earlier)
    return Weights(steps.x0, steps.eps - total, steps.noise, earlier_eps=earlier)

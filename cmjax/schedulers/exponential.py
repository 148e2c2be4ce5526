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
import numpy as np

from cmjax.schedulers.levels import (
    Levels,
    root_of_difference,
)
from cmjax.schedulers.weights import Weights

FEW_STEPS = 15  # runs of fewer steps end with a lower order, as in diffusers
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
    starts = (levels.alphas[:-1], levels.sigmas[:-1])
    return steps_from(starts, levels, by_x0=by_x0, stochastic=stochastic)


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
    next_alpha = levels.alphas[1:]
    next_sigma = levels.sigmas[1:]

    # exp(-h), and h itself. The masked entries keep gradients finite at infinite h.
    exploding = sigma / alpha
    next_exploding = next_sigma / next_alpha
    ratio = next_exploding / exploding
    moving = (ratio > 0) & (ratio != 1)
    h = jnp.where(moving, -jnp.log(jnp.where(moving, ratio, 0.5)), 1)

    # The ODE. By eps, the exponential has the other sign.
    kept = next_sigma / sigma if by_x0 else next_alpha / alpha
    exponent = h if by_x0 else -h
    scale = next_alpha if by_x0 else next_sigma
    moments = tuple(scale * moment for moment in exponential_moments(exponent))
    ode = Steps(
        by_x0=by_x0,
        h=h,
        moving=moving,
        x0=next_alpha,
        eps=next_sigma,
        kept=kept,
        moments=moments,
    )
    return _with_noise(ode, exploding, next_exploding) if stochastic else ode


def _with_noise(ode: Steps, exploding: jax.Array, next_exploding: jax.Array) -> Steps:
    """The steps of the SDE, given those of the ODE and sigma / alpha at both ends, f32[N] each."""
    next_alpha = ode.x0
    next_sigma = ode.eps
    drop = root_of_difference(exploding, next_exploding) / exploding  # sqrt(1 - exp(-2h))

    # By x0 the exponent is twice that of the ODE, by eps the integral is.
    if ode.by_x0:
        ratio = next_exploding / exploding  # exp(-h)
        kept = ode.kept * ratio
        eps = next_sigma * ratio
        moments = tuple(next_alpha * moment for moment in exponential_moments(2 * ode.h))
        noise = next_sigma * drop
    else:
        reached = next_alpha * exploding  # sigma' exp(h)
        kept = ode.kept
        eps = 2 * next_sigma - reached
        moments = tuple(2 * moment for moment in ode.moments)
        noise = reached * drop

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


def polynomial_weights(
    nodes: list[jax.Array], moments: tuple[jax.Array, ...]
) -> list[jax.Array]:
    """Returns the weights that integrate the polynomial through a value at 0 and at the nodes.

    The integral of the polynomial is `moments[0] value_0 + sum_i weights[i] (value_i - value_0)`.

    Args:
        nodes: places u of the other values, f32[N] each; different from each other and from 0.
        moments: integrals of u^k, f32[N] each.
    """
    weights = []
    for i, node in enumerate(nodes):
        # Lagrange's polynomial of the node, u prod (u - other) / (node prod (node - other)): its
        # coefficients, from that of u on.
        coefficients = [jnp.ones_like(node)]
        scale = node
        for other in nodes[:i] + nodes[i + 1 :]:
            raised = [jnp.zeros_like(node), *coefficients]
            lowered = [*coefficients, jnp.zeros_like(node)]
            coefficients = [a - other * b for a, b in zip(raised, lowered, strict=True)]
            scale = scale * (node - other)
        terms = zip(coefficients, moments[1:], strict=False)
        weights.append(sum(c * moment for c, moment in terms) / scale)
    return weights


def earlier_nodes(
    h: jax.Array, moving: jax.Array, count: int
) -> tuple[list[jax.Array], jax.Array]:
    """Returns where earlier calls lie, in units of each step: 0 is this call, 1 the step's end.

    Args:
        h: length of each step, f32[N]; not 0.
        moving: which steps have this length, bool[N]; the others are of first order.
        count: number of earlier calls.

    Returns:
        The nodes, f32[N] each, and how many of them each row can use, i32[N]: as many as there were
        calls, up to one that lies where the call after it does.
    """
    # A row that cannot use a node has another in its place, which keeps its weights finite.
    length = jnp.where(moving, h, 0)
    usable = jnp.where(moving, count, 0)
    nodes = []
    distance = jnp.zeros_like(length)
    for back in range(1, count + 1):
        before = jnp.append(jnp.zeros(back, length.dtype), length[:-back])[: len(length)]
        usable = jnp.where(before == 0, jnp.minimum(usable, back - 1), usable)
        distance = distance - jnp.where(before == 0, h, before)
        nodes.append(distance / h)
    return nodes, usable


def multistep_differences(
    steps: Steps, orders: np.ndarray, highest: int, *, midpoint: bool = False
) -> list[jax.Array]:
    """Returns the weights of differences to earlier values, for the Adams-Bashforth form.

    Args:
        steps: of the run.
        orders: i64[N], the order of each step.
        highest: order of the solver; it remembers one call less.
        midpoint: whether steps of order 2 take half the integral of a constant for that of u, as
            "midpoint" in diffusers; the two differ by terms of third order.
    """
    nodes, usable = earlier_nodes(steps.h, steps.moving, highest - 1)
    half = steps.moments[0] / 2 if midpoint else steps.moments[1]
    order = jnp.minimum(orders, usable + 1)
    return chosen_by_order(nodes, steps.moments, half, order)


def chosen_by_order(
    nodes: list[jax.Array],
    moments: tuple[jax.Array, ...],
    half: jax.Array,
    order: jax.Array,
) -> list[jax.Array]:
    """Returns weights of differences, f32[N] each: a step of order p uses the first p - 1 nodes.

    Args:
        nodes: places of the other values, f32[N] each.
        moments: integrals of u^k, f32[N] each.
        half: what steps of order 2 take for the integral of u.
        order: i32[N], of each step.
    """
    weights = [jnp.zeros_like(half) for _ in nodes]
    for p in range(2, len(nodes) + 2):
        by_value = [half / nodes[0]]
        if p > 2:
            by_value = polynomial_weights(nodes[: p - 1], moments)
        for i, weight in enumerate(by_value):
            weights[i] = jnp.where(order == p, weight, weights[i])
    return weights


def final_orders(highest: int, num_steps: int, *, lower: bool, first: bool) -> np.ndarray:
    """Returns the order of each step of a multistep solver as in diffusers, i64[N].

    Args:
        highest: order of the solver.
        num_steps: number N of steps.
        lower: whether runs of fewer than 15 steps end with lower orders.
        first: whether the last step is of first order in any case.
    """
    # The first steps have no calls before them; the last ones need not look as far back.
    orders = np.minimum(np.arange(num_steps) + 1, highest)
    if lower and num_steps < FEW_STEPS:
        orders = np.minimum(orders, np.arange(num_steps, 0, -1))
    if first:
        orders[-1] = 1
    return orders


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

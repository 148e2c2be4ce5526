"""Steps of higher order: the weights of other calls' values, by the order of the step.

A step of first order takes the value of this call (of x0 or eps) to be constant. Higher orders
replace it by the polynomial through other calls' values, which is integrated exactly. That adds
differences to the step, `sum_i weights[i] (value_i - value)`. The other calls are at `nodes`, in
units of the step: 0 is this call, 1 the step's end.
"""

import jax
import jax.numpy as jnp
import numpy as np

from cmjax.schedulers.exponential import Steps

FEW_STEPS = 15  # as in diffusers, runs of fewer steps end with lower orders


def multistep_orders(
    highest: int, num_steps: int, *, lower_order_final: bool, euler_at_final: bool = False
) -> np.ndarray:
    """Returns the order of each step of a multistep solver, i64[N].

    Args:
        highest: order of the solver.
        num_steps: number N of steps.
        lower_order_final: whether the run ends with steps of second and first order.
        euler_at_final: whether the last step is of first order in any case.
    """
    # The first steps have no calls before them; the last ones need not look as far back.
    orders = np.minimum(np.arange(num_steps) + 1, highest)
    if lower_order_final:
        orders = np.minimum(orders, np.arange(num_steps, 0, -1))
    if euler_at_final:
        orders[-1] = 1
    return orders


def multistep_differences(
    steps: Steps,
    orders: np.ndarray,
    highest: int,
    half: jax.Array,
    *,
    implicit: bool = False,
) -> list[jax.Array]:
    """Returns the weights of differences to earlier values: the form of Adams and Bashforth.

    Args:
        steps: of the run.
        orders: i64[N], the order of each step.
        highest: order of the solver; it remembers one call less.
        half: f32[N], what steps with one difference take for the integral of u: `steps.moments[1]`,
            which it is, or `steps.moments[0] / 2`, which differs by terms of third order.
        implicit: whether the first difference is to the value at the step's end, which makes it
            the form of Adams and Moulton; the order is one more.
    """
    nodes, usable = earlier_nodes(steps.h, steps.moving, highest - 1)
    order = jnp.minimum(orders, usable + 1)
    if implicit:
        nodes = [jnp.ones_like(steps.h), *nodes]
        order = order + 1
    return chosen_by_order(nodes, steps.moments, half, order)


def singlestep_differences(
    first_order: Steps, steps: Steps, orders: np.ndarray, *, midpoint: bool
) -> tuple[jax.Array, jax.Array]:
    """Returns the weights of the last and of this call's difference to the first of their step.

    A step of order p takes p calls; each arrives a little later, by a step from the same start.

    Args:
        first_order: the step from each call to the next one.
        steps: the step of each call, from where the first call of its step is.
        orders: i64[N], the order of each call's step, which is also its number there.
        midpoint: whether only this call's estimate is taken, as "midpoint" in diffusers.
    """
    is_second = orders == 2
    is_third = orders == 3

    # Where this call and the last one lie in their step: 0 is its start, 1 where this call arrives.
    # Rows without such a call have 1 and 0.5 in their place, which keeps all weights finite.
    to_next_call = jnp.where(first_order.moving, first_order.h, steps.h)
    from_last_call = before(to_next_call, 1)
    last = jnp.where(is_third, before(from_last_call, 1) / steps.h, 0.5)
    this = from_last_call / steps.h + jnp.where(is_third, last, 0)
    this = jnp.where(orders > 1, this, 1)

    # A second call: its own difference, weighed with the integral of u / this.
    integral = steps.moments[0] / 2 if midpoint else steps.moments[1]
    second_this = integral / this

    # A third call: also that of the last one, by the polynomial through all three values.
    if midpoint:
        third_last = jnp.zeros_like(this)
        third_this = steps.moments[1] / this
    else:
        nodes = [last, jnp.where(is_third, this, 1)]
        third_last, third_this = polynomial_weights(nodes, steps.moments)

    w_last = jnp.where(is_third, third_last, 0)
    w_this = jnp.where(is_second, second_this, 0)
    w_this = jnp.where(is_third, third_this, w_this)
    return w_last, w_this


def with_correction(
    steps: Steps,
    predicted: list[jax.Array],
    corrected: list[jax.Array],
    is_corrected: np.ndarray,
) -> list[jax.Array]:
    """Returns the differences of a predictor that also correct the step before, f32[N] each.

    The corrected sample is the predicted one plus a weighted sum of the values of its end and of
    earlier calls. All of them are at hand in the next step, which is where the sum is added.

    Args:
        steps: of the run.
        predicted: `multistep_differences` of the predictor.
        corrected: those of the corrector, which is implicit.
        is_corrected: bool[N], which steps are corrected.
    """
    # By how much the correction changes the differences of a step, which are those of the value at
    # its end, m', and of earlier calls' values m_1, m_2, ... to the value m at its start:
    #     x'_corrected - x' = c (m' - m) + sum_i d_i (m_i - m).
    applies = is_corrected & steps.moving
    of_end = jnp.where(applies, corrected[0], 0)
    of_earlier = []
    for new, old in zip(corrected[1:], predicted, strict=True):
        of_earlier.append(jnp.where(applies, new - old, 0))

    # The next step has m' as its own value, m as that of the call before, and m_i as that of i + 1
    # calls before. In differences to m' the same sum is
    #     -(c + sum_i d_i) (m - m') + sum_i d_i (m_i - m').
    of_start = -of_end - sum(of_earlier)
    changes = [of_start, *of_earlier]

    # That step multiplies its sample, and so the correction, by `kept`.
    differences = []
    for own, change in zip([*predicted, jnp.zeros_like(of_end)], changes, strict=True):
        differences.append(own + steps.kept * before(change, 0))
    return differences


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
    # Rows of order 1 use no node.
    weights = [jnp.zeros_like(half) for _ in nodes]
    for p in range(2, len(nodes) + 2):
        of_order = [half / nodes[0]]
        if p > 2:
            of_order = polynomial_weights(nodes[: p - 1], moments)
        for i, weight in enumerate(of_order):
            weights[i] = jnp.where(order == p, weight, weights[i])
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
        passed = before(length, 0, back)
        usable = jnp.where(passed == 0, jnp.minimum(usable, back - 1), usable)
        distance = distance - jnp.where(passed == 0, h, passed)
        nodes.append(distance / h)
    return nodes, usable


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
            # Times (u - other): the polynomial times u, less the polynomial times `other`.
            times_u = [jnp.zeros_like(node), *coefficients]
            as_it_was = [*coefficients, jnp.zeros_like(node)]
            coefficients = [a - other * b for a, b in zip(times_u, as_it_was, strict=True)]
            scale = scale * (node - other)

        # Its integral: `moments[k]` is that of u^k.
        terms = zip(coefficients, moments[1:], strict=False)
        integral = sum(coefficient * moment for coefficient, moment in terms)
        weights.append(integral / scale)
    return weights


def before(column: jax.Array, first: float, back: int = 1) -> jax.Array:
    """Returns each row's value of so many rows before, f32[N]; `first` where there is none."""
    filled = jnp.full(back, first, column.dtype)
    return jnp.append(filled, column[:-back])[: len(column)]

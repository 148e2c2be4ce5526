"""Pseudo numerical methods (Liu et al. 2022, arXiv 2202.09778): steps of DDIM with better slopes.

With r = sigma / alpha, the probability-flow ODE is `d(x / alpha) / dr = eps`. DDIM's step takes eps
for constant (equation 9):

    x' = (alpha' / alpha) x + B eps,    B = sigma' - (alpha' / alpha) sigma = alpha' (r' - r)

A pseudo numerical method replaces eps by the mean of several calls' eps, with the weights that a
classical method has for equal steps (equations 12 and 13). Steps here are equal in time, not in r:
whatever the order of the classical method, the error falls with the square of the step, as the
paper says (section 1).
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from cmjax.schedulers.weights import Weights

# Where a call lies in its step, and where it goes to.
START, MIDDLE, END = range(3)

# Weights of the eps of this step, of the one before, and so on, by the number of steps before.
ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


class Call(NamedTuple):
    """A network call of a run.

    Attributes:
        step: number of the step that it belongs to.
        at: where the network is called: START, MIDDLE or END of the step.
        to: where the sample goes, from the step's start: MIDDLE or END.
        slopes: weights of eps, by the number of the call that gave it.
    """

    step: int
    at: int
    to: int
    slopes: dict[int, float]


def adams_bashforth(firsts: Sequence[int]) -> Call:
    """Returns the only call of a step, given the numbers of all steps' first calls up to it."""
    step = len(firsts) - 1
    coefficients = ADAMS_BASHFORTH[min(step, len(ADAMS_BASHFORTH) - 1)]
    slopes = dict(zip(reversed(firsts), coefficients, strict=False))
    return Call(step, START, END, slopes)


def improved_euler(first: int, step: int) -> list[Call]:
    """Returns the two calls of a step with the mean of both ends' slopes, from number `first`."""
    return [
        Call(step, START, END, {first: 1.0}),
        Call(step, END, END, {first: 1 / 2, first + 1: 1 / 2}),
    ]


def runge_kutta(first: int, step: int) -> list[Call]:
    """Returns the four calls of a step of the classical Runge-Kutta method, from number `first`."""
    sixths = {first: 1 / 6, first + 1: 1 / 3, first + 2: 1 / 3, first + 3: 1 / 6}
    return [
        Call(step, START, MIDDLE, {first: 1.0}),
        Call(step, MIDDLE, MIDDLE, {first + 1: 1.0}),
        Call(step, MIDDLE, END, {first + 2: 1.0}),
        Call(step, END, END, sixths),
    ]


def slope_columns(calls: Sequence[Call]) -> np.ndarray:
    """Returns the weights of this call's eps, of that of the call before, and so on, f32[k, N]."""
    reach = max(row - min(call.slopes) for row, call in enumerate(calls))
    columns = np.zeros((reach + 1, len(calls)), np.float32)
    for row, call in enumerate(calls):
        for number, weight in call.slopes.items():
            columns[row - number, row] = weight
    return columns


def pseudo_weights(
    calls: Sequence[Call],
    alphas: tuple[jax.Array, jax.Array, jax.Array],
    sigmas: tuple[jax.Array, jax.Array, jax.Array],
) -> Weights:
    """Returns the table of a pseudo numerical method, a row for each call.

    Args:
        calls: of the run. Of a step of several calls, each but the last goes by its own eps alone.
        alphas: signal levels, f32[N] each: of each call's step at its start, of the call itself,
            and of where it goes.
        sigmas: noise levels, likewise.
    """
    alpha_start, alpha, next_alpha = alphas
    sigma_start, sigma, next_sigma = sigmas

    # B (see above) of the way from the step's start to where the call goes, and of the way to where
    # the call is. The latter is 0 for the first call of a step.
    b_target = next_sigma - next_alpha / alpha_start * sigma_start
    b_here = sigma - alpha / alpha_start * sigma_start

    # The step goes from x_start to x', and the call before went from x_start to x by its own eps:
    #     x' = (alpha' / alpha_start) x_start + B_target mean
    #     x = (alpha / alpha_start) x_start + B_here eps_1
    # Without x_start, and with x = alpha x0 + sigma eps:
    #     x' = alpha' x0 + (alpha' / alpha) (sigma eps - B_here eps_1) + B_target mean
    # where (alpha' / alpha) sigma = sigma' - B_target + (alpha' / alpha) B_here.
    back = next_alpha / alpha * b_here

    # Of `B_target mean`, the weights of this call's eps, and of the eps of the calls before.
    own, *earlier = [b_target * column for column in slope_columns(calls)]
    eps = next_sigma + (own - b_target) + back
    if earlier:
        earlier[0] = earlier[0] - back
    return Weights(x0=next_alpha, eps=eps, earlier_eps=tuple(earlier))

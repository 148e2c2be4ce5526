"""One level of annealed projection in noise space.

A consistency model makes a sample of noise, `x0 = f(x, sigma)`. So a condition on x0 can be met by
a choice of the noise: of all noise that makes what is known, the nearest to what was drawn.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cmjax.arrays import combine
from cmjax.editing.least_move import inner, least_move

# The squared length of D standard normal numbers has mean D and standard deviation sqrt(2 D). A
# move keeps noise typical if the squared length grows by no more than this share of the latter.
_TYPICAL = 0.75


class PosteriorStep(NamedTuple):
    """What a level of `method="posterior"` arrives at.

    Attributes:
        denoised: the x0 estimate after the level, `[B, ...]`.
        residual: root mean square of the distance between f and the nearest x0 that meets the
            constraint, f32[B]; what the constraint itself still had to move.
        noise: mean square of the noise after the move, f32[B]; 1 is typical.
        damping: lambda of the move, f32[B] (see `cmjax.editing.least_move`).
    """

    denoised: jax.Array
    residual: jax.Array
    noise: jax.Array
    damping: jax.Array


class Problem(NamedTuple):
    """What the levels have in common.

    Attributes:
        consistency: `(x, sigma) -> x0`, both `[B, ...]`, with sigma f32[].
        bound: clips x0, if the scheduler clips.
        constraint: x0 -> x0.
        sigma_y: standard deviation of the noise of the measurement, f32[] or f32[B]; None for none.
        iterations: number of products with the Jacobian and its transpose in a level.
    """

    consistency: Callable[[jax.Array, jax.Array], jax.Array]
    bound: Callable[[jax.Array], jax.Array]
    constraint: Any
    sigma_y: Any
    iterations: int


def project_noise(
    problem: Problem, unknown: Any, fresh: tuple[Any, Any], sigma: jax.Array
) -> tuple[Any, PosteriorStep]:
    """Makes a sample anew at a level, under the constraint.

    Args:
        problem: the network and the constraint.
        unknown: the estimate so far, the pair of x0 `[B, ...]` and the noise of the measurements:
            a pytree of arrays `[B, ...]`, without leaves where measurements have no noise.
        fresh: two draws of standard normal noise, pytrees like `unknown`.
        sigma: the level, f32[].

    Returns:
        The new estimate and what was found on the way.
    """

    # The measurement is y = A x0 + sigma_y e. So its noise is one more unknown: standard normal
    # data beside x0, whose consistency function is known. At the noise level sigma / sigma_y,
    #     f_e = (sigma_y e + sigma z) / sqrt(sigma_y^2 + sigma^2).
    # The pair (x0, e) meets its condition without noise, and all that follows is about the pair.
    def made(start, noise):
        x0, e = start
        z, z_e = noise
        x = combine((1.0, x0), (sigma, z))
        return problem.consistency(x, sigma), jax.tree.map(mixed, e, z_e)

    def mixed(e, z_e):
        squares = jnp.square(problem.sigma_y) + jnp.square(sigma)
        root = jnp.sqrt(squares)
        return combine((problem.sigma_y / root, e), (sigma / root, z_e))

    # How far x0 is from meeting A x0 = y - sigma_y e, `[B, ...]`.
    def residual(pair):
        x0, e = pair
        constraint = problem.constraint
        if problem.sigma_y is not None:
            shift = jax.tree.map(lambda leaf: combine((-problem.sigma_y, leaf)), e)
            constraint = constraint.shifted(shift)
        return constraint(x0) - x0

    # 1. Forget: u = f(x0 + sigma z1), without the constraint. This makes the level exact. Of two
    # samples u and x0' = f(u + sigma z), each as likely as the other to come first, x0' is to meet
    # the constraint, and u is to be what it is before such an x0'. As the pair can be exchanged, u
    # may be made of the last estimate, which meets the constraint, as x0' is made of u. Were u the
    # last estimate itself, the condition would count twice: a divergence of 0.04 instead of 0 for
    # the colours of 8x8 pixels.
    x0, e = made(unknown, fresh[0])
    before = problem.bound(x0), e

    # 2. Add noise z2, and move it least so that x0' = f(u + sigma z2) meets the constraint. For
    # linear f and normal z2 this is a draw from z2 given the constraint (Matheron's rule; Hoffman
    # and Ribak 1991): z2 + J^T (J J^T)^-1 (y - A f).
    def of_noise(noise):
        return residual(made(before, noise))

    noise = fresh[1]
    size = sum(math.prod(leaf.shape[1:]) for leaf in jax.tree.leaves(noise))
    missing, jacobian = jax.linearize(of_noise, noise)
    transposed = jax.linear_transpose(jacobian, noise)
    move = least_move(
        jacobian,
        lambda r: transposed(r)[0],
        missing,
        noise,
        _TYPICAL * math.sqrt(2 * size),
        problem.iterations,
    )

    # 3. The new sample. What the step left over is put right by the constraint itself, as in
    # Algorithm 4; noise of the measurement takes it up otherwise.
    x0, e = made(before, move.noise)
    x0 = problem.bound(x0)
    left = residual((x0, e))
    distance = jnp.sqrt(inner(left, left) / math.prod(left.shape[1:]))
    if problem.sigma_y is None:
        x0 = x0 + left
    return (x0, e), PosteriorStep(x0, distance, move.square / size, move.damping)

"""The least move of the noise that meets a constraint, by one damped Gauss-Newton step.

Noise and residuals are pytrees of arrays `[B, ...]`. Every sample of the batch is a separate
problem: scalars such as lambda are f32[B].
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cmjax.arrays import at_least_float32, safe_sqrt, scaled, weighted_sum

# The least damping, as a share of the first diagonal entry of B^T B: rounding of float32.
_LEAST = 1e-6

# The largest damping is this many times the least. Bisecting the logarithm so often narrows that
# range to a factor of 1.0000001.
_RANGE = 1e12
_HALVINGS = 28

Linear = Callable[[Any], Any]


class Move(NamedTuple):
    """A move of the noise.

    Attributes:
        noise: the noise after the move, z + d.
        change: by how much the residual changes if it is linear, J d.
        damping: lambda of each sample, f32[B].
        square: the squared length of the noise after the move, f32[B], as predicted.
        distance: the squared length of the move, f32[B].
    """

    noise: Any
    change: Any
    damping: jax.Array
    square: jax.Array
    distance: jax.Array


class Directions(NamedTuple):
    """The moves `d = V c` of a space of k directions, `J V = U B` with orthonormal U and V.

    Attributes:
        columns: of V, noise each; k of them.
        images: the columns of J V, residuals each; k of them.
        diagonal: of B, f32[B] each; k of them.
        below: the entries below the diagonal, f32[B] each; k of them.
        first: the length of the residual, f32[B].
    """

    columns: Sequence[Any]
    images: Sequence[Any]
    diagonal: Sequence[jax.Array]
    below: Sequence[jax.Array]
    first: jax.Array


def least_move(
    found: Directions, noise: Any, allowance: float, farthest: jax.Array | float = jnp.inf
) -> Move:
    """Moves noise z by the d that minimises `|r + J d|^2 + lambda |d|^2`.

    Lambda is the least one within both limits: `|z + d|^2 <= |z|^2 + allowance`, which keeps the
    noise typical, and `|d|^2 <= farthest`. Derivatives of the move take lambda for a constant,
    since it is found by bisection.

    Args:
        found: the directions to move in.
        noise: z.
        allowance: by how much the squared length of the noise may grow, a number.
        farthest: the largest squared length of the move, a number or f32[B].
    """
    # In a space of k vectors d = V c: min |beta e_1 - B c|^2 + lambda |c|^2, with -r = beta U e_1
    # (Paige and Saunders 1982, LSQR). The normal equations are tridiagonal:
    #     (B^T B + lambda) c = beta alpha_1 e_1.
    # The products with J do not depend on lambda, so every lambda can be tried without the network.

    # The diagonal of B^T B, alpha_i^2 + beta_{i+1}^2, its off-diagonal, alpha_{i+1} beta_{i+1}, and
    # the first entry of the right-hand side.
    diagonal = [a * a + b * b for a, b in zip(found.diagonal, found.below, strict=True)]
    off_diagonal = [
        a * b for a, b in zip(found.diagonal[1:], found.below[:-1], strict=True)
    ]
    right_side = found.first * found.diagonal[0]

    # The squared lengths of the noise after the move and of the move itself, for a lambda:
    #     |z + V c|^2 = |z|^2 + 2 (V^T z) . c + |c|^2.
    projections = [inner(column, noise) for column in found.columns]
    square = inner(noise, noise)

    def lengths(damping):
        coefficients = _solve_tridiagonal(diagonal, off_diagonal, right_side, damping)
        total = square
        distance = jnp.zeros_like(square)
        for coefficient, part in zip(coefficients, projections, strict=True):
            total = total + coefficient * (2 * part + coefficient)
            distance = distance + jnp.square(coefficient)
        return total, distance

    # The least lambda within the limits, by bisection of log(lambda). The largest lambda always is:
    # it moves nothing.
    least = _LEAST * diagonal[0] + jnp.finfo(square.dtype).tiny

    def within(factor):
        total, distance = lengths(least * factor)
        return (total <= square + allowance) & (distance <= farthest)

    damping = jax.lax.stop_gradient(_bisect(within, square) * least)

    # The move itself, z + V c, and J V c.
    coefficients = _solve_tridiagonal(diagonal, off_diagonal, right_side, damping)
    moved = noise
    change = jax.tree.map(jnp.zeros_like, found.images[0])
    for i, coefficient in enumerate(coefficients):
        moved = _plus(moved, coefficient, found.columns[i])
        change = _plus(change, coefficient, found.images[i])
    return Move(moved, change, damping, *lengths(damping))


def inner(first: Any, second: Any) -> jax.Array:
    """Returns the inner products of two pytrees of arrays `[B, ...]`, sample by sample, f32[B]."""

    def one(a, b):
        product = at_least_float32(a) * at_least_float32(b)
        return jnp.sum(product, tuple(range(1, product.ndim)))

    products = jax.tree.leaves(jax.tree.map(one, first, second))
    return functools.reduce(jnp.add, products)


def directions(
    jacobian: Linear, transpose: Linear, residual: Any, noise: Any, iterations: int
) -> Directions:
    """Finds directions to move noise in: Golub and Kahan's bidiagonalisation of J, from -r.

    Args:
        jacobian: `d -> J d`, from noise to residuals.
        transpose: `r -> J^T r`.
        residual: r, to be made 0.
        noise: an array or a pytree in the shape of noise.
        iterations: number k of directions: of products with J and with J^T.
    """
    first, left = _normalised(jax.tree.map(jnp.negative, residual))

    # The columns of V, `[k, B, ...]`; those that are not found yet are 0.
    def zeros(leaf):
        return jnp.stack([jnp.zeros_like(leaf)] * iterations)

    columns = jax.tree.map(zeros, noise)

    # A scan compiles the network's derivatives once, and not once for each iteration.
    def step(carry, index):
        left, columns = carry

        # alpha_i v_i = J^T u_i - beta_i v_{i-1}. The parts along all earlier columns are removed
        # rather than that along the last alone: in float32 they would come back.
        right = transpose(left)
        for column in _unstacked(columns, iterations):
            right = _plus(right, -inner(column, right), column)
        alpha, right = _normalised(right)

        def with_column(stack, leaf):
            return stack.at[index].set(leaf)

        columns = jax.tree.map(with_column, columns, right)

        # beta_{i+1} u_{i+1} = J v_i - alpha_i u_i.
        image = jacobian(right)
        beta, left = _normalised(_plus(image, -alpha, left))
        return (left, columns), (image, alpha, beta)

    carry, found = jax.lax.scan(step, (left, columns), jnp.arange(iterations))
    _, columns = carry
    images, diagonal, below = found
    return Directions(
        columns=_unstacked(columns, iterations),
        images=_unstacked(images, iterations),
        diagonal=list(diagonal),
        below=list(below),
        first=first,
    )


def _unstacked(stacks, count):
    """The pytrees that a pytree of arrays `[count, ...]` is a stack of."""
    return [jax.tree.map(lambda leaf, i=i: leaf[i], stacks) for i in range(count)]


def _normalised(vector):
    """The length f32[B] of a vector and the vector of length 1; that of zeros is zeros."""
    length = safe_sqrt(inner(vector, vector))
    scale = jnp.where(length > 0, 1 / jnp.where(length > 0, length, 1), 0)
    return length, jax.tree.map(lambda leaf: scaled(scale, leaf), vector)


def _plus(first, coefficient, second):
    """`first + coefficient * second`, with one coefficient per sample."""

    def added(one, other):
        return weighted_sum((1.0, one), (coefficient, other))

    return jax.tree.map(added, first, second)


def _solve_tridiagonal(diagonal, off_diagonal, right_side, damping):
    """Solves `(T + damping) c = right_side e_1` for a symmetric tridiagonal T, by elimination."""
    # Elimination from the first equation down.
    pivots = [diagonal[0] + damping]
    rights = [right_side]
    for entry, off in zip(diagonal[1:], off_diagonal, strict=True):
        ratio = off / pivots[-1]
        rights.append(-ratio * rights[-1])
        pivots.append(entry + damping - ratio * off)

    # Substitution from the last equation up.
    solution = [rights[-1] / pivots[-1]]
    for pivot, off, value in zip(
        pivots[-2::-1], off_diagonal[::-1], rights[-2::-1], strict=True
    ):
        solution.append((value - off * solution[-1]) / pivot)
    return solution[::-1]


def _bisect(within, like):
    """The least factor from 1 to `_RANGE` that is `within`, f32[B]; the largest one if none is."""

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        inside = within(jnp.exp(middle))
        return jnp.where(inside, low, middle), jnp.where(inside, middle, high)

    # Bisection never tries the lower end itself, factor 1. If that is within the limit, it is the
    # least one.
    low = jnp.zeros_like(like)
    high = jnp.full_like(like, jnp.log(_RANGE))
    _, high = jax.lax.fori_loop(0, _HALVINGS, halve, (low, high))
    return jnp.where(within(jnp.ones_like(like)), 1.0, jnp.exp(high))

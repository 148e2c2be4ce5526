"""One level of annealed projection in noise space.

A consistency model turns noise into a sample, `x0 = f(x, sigma)`. So a condition on x0 can be met
by choosing the noise: of all noise that leads to what is known, the nearest to what was drawn.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cmjax.arrays import along_batch, safe_sqrt, scaled, weighted_sum
from cmjax.editing.least_move import Move, directions, inner, least_move
from cmjax.meshes import pvaried_for
from cmjax.schedulers.checks import apply_constraint
from cmjax.serialization import serializable

# The squared length of D standard normal numbers has mean D and standard deviation sqrt(2 D). A
# move keeps noise typical if the squared length grows by no more than this share of the latter.
_TYPICAL = 0.75

# A move is as long as the residual follows it with at most this relative error. For linear f there
# is no error, and no move is shortened.
_CURVED = 0.1

# The smallest normal float32, for divisions.
_TINY = float(jnp.finfo(jnp.float32).tiny)


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


serializable(PosteriorStep)


class Problem(NamedTuple):
    """What all levels share: the network and the measurement.

    The unknowns are a pair: x0, and the noise e of the measurement `y = A x0 + sigma_y e`. For e,
    which is standard normal, the consistency function is known exactly, so e can be treated like
    data, and the condition on the pair is without noise. `()` takes the place of e if measurements
    have no noise.

    Attributes:
        consistency: `(x, sigma) -> x0`, both `[B, ...]`, with sigma f32[].
        bound: clips x0, if the scheduler clips.
        constraint: x0 -> x0, or one on what is decoded of x0 (`cmjax.editing.latents.Decoded`).
        sigma_y: standard deviation of the noise of the measurement, f32[] or f32[B]; None for none.
        iterations: number of products with the Jacobian and its transpose in a level.
        candidates: number of draws of noise in a level, of which the nearest to the constraint is
            moved.
    """

    consistency: Callable[[jax.Array, jax.Array], jax.Array]
    bound: Callable[[jax.Array], jax.Array]
    constraint: Any
    sigma_y: Any
    iterations: int
    candidates: int

    def made(self, start: Any, noise: Any, sigma: jax.Array) -> Any:
        """Returns what the network makes of the pair `start` with noise: a pair like it."""
        x0, e = start
        z, z_e = noise
        x = weighted_sum((1.0, x0), (sigma, z))

        # Of normal data with the standard deviation sigma_y,
        #     f(x, sigma) = sigma_y / sqrt(sigma_y^2 + sigma^2) x, x = sigma_y e + sigma z_e,
        # which is sigma_y times the new e.
        def mixed(e, z_e):
            total = jnp.sqrt(jnp.square(self.sigma_y) + jnp.square(sigma))
            return weighted_sum((self.sigma_y / total, e), (sigma / total, z_e))

        return self.consistency(x, sigma), jax.tree.map(mixed, e, z_e)

    def residual(self, pair: Any) -> jax.Array:
        """Returns by how much the constraint `A x0 = y - sigma_y e` moves x0, `[B, ...]`.

        A constraint on what is decoded of x0 (`Decoded`) returns by how much that is moved, `[B,
        ...]`, by a `residual` of its own.
        """
        x0, e = pair
        constraint = self.constraint
        if self.sigma_y is not None:
            shift = jax.tree.map(lambda leaf: scaled(-self.sigma_y, leaf), e)
            constraint = constraint.shifted(shift)
        if self.is_decoded:
            return constraint.residual(x0)
        return apply_constraint(constraint, x0) - x0

    @property
    def is_decoded(self) -> bool:
        """Whether the constraint is on what is decoded of x0, and cannot move x0 itself."""
        return hasattr(self.constraint, "residual")


def project_noise(
    problem: Problem, pair: Any, draw: Callable[[int | jax.Array], Any], sigma: jax.Array
) -> tuple[Any, PosteriorStep]:
    """Adds noise of a level to a sample, and removes it by the network under the constraint.

    Args:
        problem: the network and the constraint.
        pair: the estimate so far: x0 `[B, ...]`, and the noise of the measurements, a pytree of
            arrays `[B, ...]`.
        draw: `number -> noise`, standard normal noise, a pytree like `pair`: number 0 for step 1,
            and 1 to `problem.candidates` for the draws of step 2.
        sigma: the level, f32[].

    Returns:
        The new pair, and what was found on the way.
    """
    # 1. Forget: u = f(x0 + sigma z1), without the constraint. Step 2 makes x0' = f(u + sigma z2)
    # meet A x0' = y, and for that u must be a draw of
    #     p(u | A x0' = y),
    # not of p(u | A u = y), as the last x0 is: the condition would count twice. For normal data
    # (u, x0') and (x0', u) have the same distribution, their covariance being C S = S C where
    # f(x) = S x. So u may be made of an x0 that meets the constraint as x0' is made of u.
    u, e = problem.made(pair, draw(0), sigma)
    start = (problem.bound(u), e)

    # 2. Choose: of several draws of z2, the one that comes nearest to the constraint by itself.
    noise = _nearest(problem, start, draw, sigma)

    # 3. Project: move z2 least so that x0' meets the constraint.
    move = _move(problem, start, noise, sigma)

    # 4. The new pair. One Gauss-Newton step need not meet the constraint exactly. The constraint
    # itself corrects the rest, as in Algorithm 4; where measurements have noise, or are of what is
    # decoded, the rest stays.
    x0, e = problem.made(start, move.noise, sigma)
    x0 = problem.bound(x0)
    left = problem.residual((x0, e))
    distance = safe_sqrt(inner(left, left) / math.prod(left.shape[1:]))
    if problem.sigma_y is None and not problem.is_decoded:
        x0 = x0 + left
    step = PosteriorStep(
        denoised=x0,
        residual=distance,
        noise=move.square / _size(noise),
        damping=move.damping,
    )
    return (x0, e), step


def _nearest(problem: Problem, start: Any, draw: Any, sigma: jax.Array) -> Any:
    """Returns the draw of noise whose x0' is nearest to the constraint, of all candidates."""
    # Where several distinct pictures are possible, the least move leads to the one that the noise
    # happens to be near, whatever is known. A draw that comes near what is known by itself leads
    # to each picture about as often as it should (rejection sampling, in the limit of many draws).
    # For normal data the choice makes no difference to a move that makes r zero: r(z) is linear, so
    # the choice depends only on the part of z in the rows of J, all of which the move replaces. A
    # move that is damped, or has too few iterations, leaves some of r, and less of it after a
    # choice.

    # |r|^2 for r(z) = y - A f(u + sigma z).
    def distance(noise):
        left = problem.residual(problem.made(start, noise, sigma))
        return inner(left, left)

    def compare(best, number):
        noise, least = best
        other = draw(number)
        found = distance(other)
        # A draw of which the network makes NaN is farther than any other.
        nearer = (found < least) | jnp.isnan(least)

        def nearer_one(of_other, of_best):
            return jnp.where(along_batch(nearer, of_other.ndim), of_other, of_best)

        noise = jax.tree.map(nearer_one, other, noise)
        return (noise, jnp.where(nearer, found, least)), None

    # Inside of `jax.shard_map` devices may share the key, but not what is made of its noise.
    noise = pvaried_for(distance, draw(1))
    if problem.candidates == 1:
        return noise
    best = (noise, distance(noise))
    further = jnp.arange(2, problem.candidates + 1)
    (noise, _), _ = jax.lax.scan(compare, best, further)
    return noise


def _move(problem: Problem, start: Any, noise: Any, sigma: jax.Array) -> Move:
    """Moves noise least so that what is made of it meets the constraint, as far as that works."""

    # For linear f this draws z given the constraint (Matheron's rule; Hoffman and Ribak 1991), with
    # r(z) = y - A f(u + sigma z):
    #     z - J^T (J J^T)^-1 r(z),  J = d r / d z.
    def of_noise(noise):
        return problem.residual(problem.made(start, noise, sigma))

    residual, jacobian = jax.linearize(of_noise, noise)
    transposed = jax.linear_transpose(jacobian, noise)

    def transpose(cotangent):
        (product,) = transposed(cotangent)
        return product

    found = directions(jacobian, transpose, residual, noise, problem.iterations)

    # The longest move that leaves noise typical, whose squared length may grow by so much.
    allowance = _TYPICAL * math.sqrt(2 * _size(noise))
    longest = least_move(found, noise, allowance)

    # It is tried, because where f is curved the residual comes out otherwise than predicted. The
    # relative error
    #     |r(z + d) - r(z) - J d| / |J d|
    # grows in proportion to |d|, so that of a move shortened to |d| `_CURVED` / error is `_CURVED`.
    change = longest.change
    missed = weighted_sum((1.0, of_noise(longest.noise)), (-1.0, residual), (-1.0, change))
    squared_error = inner(missed, missed)
    bearable = _CURVED**2 * inner(change, change)
    shortening = bearable / jnp.maximum(jnp.maximum(squared_error, bearable), _TINY)
    return least_move(found, noise, allowance, shortening * longest.distance)


def _size(noise: Any) -> int:
    """The number of noise values of a sample."""
    size = 0
    for leaf in jax.tree.leaves(noise):
        size += math.prod(leaf.shape[1:])
    return size

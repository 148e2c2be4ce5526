"""Constraints: functions x0 -> x0 that put back what is known of a sample.

`cmjax.sample(..., constrain=...)` applies them, and `cmjax.editing` builds on that. They are
pytrees: other data of the same shape never compile anew. Their data are per sample, `[B, ...]`, or
the same for all samples, `[...]`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from cmjax.arrays import as_pytree, check_shapes, concrete
from cmjax.configs import is_int

REC601 = (
    0.299,
    0.587,
    0.114,
)  # luma of R, G, B (ITU-R BT.601); the paper rounds to 0.2989, 0.5870, 0.1140

Constraint = Callable[[jax.Array], jax.Array]
_Partial = jax.tree_util.Partial  # a function that is a pytree, with its arrays


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)  # hashed by identity, as functions are
class Inpaint:
    """Keeps an image where a mask is 1; made by `inpaint`.

    Attributes:
        image: `[B, ...]` or `[...]`.
        mask: f32 in [0, 1], likewise; 1 where the image is kept.
    """

    image: jax.Array
    mask: jax.Array

    def __call__(self, x0: jax.Array) -> jax.Array:
        """Returns `x0`, `[B, ...]`, with the image put back where the mask is not 0."""
        exact = at_least_float32(x0)
        mask = broadcast_to_samples("mask", self.mask, exact)
        image = broadcast_to_samples("image", self.image, exact)
        image = jnp.where(mask > 0, image, exact)

        # A weighted sum alone would round where the mask is 1.
        blended = exact + mask * (image - exact)
        return jnp.where(mask == 1, image, blended).astype(x0.dtype)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Observe:
    """Keeps a linear measurement; made by `observe`, `colorize` or `super_resolve`.

    Attributes:
        forward: the operator A, from samples to measurements.
        pseudo_inverse: its pseudo-inverse A^+.
        measurement: y, of the shape of A x0.
        argument: what errors call the measurement.
    """

    forward: Callable[[jax.Array], jax.Array]
    pseudo_inverse: Callable[[jax.Array], jax.Array]
    measurement: jax.Array
    argument: str = dataclasses.field(default="measurement", metadata={"static": True})

    def __call__(self, x0: jax.Array) -> jax.Array:
        """Returns `x0 + A^+ (y - A x0)`, `[B, ...]`: the nearest to x0 that has the measurement."""
        exact = at_least_float32(x0)
        observed = self.forward(exact)
        measurement = broadcast_to_samples(self.argument, self.measurement, observed)
        correction = self.pseudo_inverse(measurement - observed)
        check_shapes(pseudo_inverse=correction, samples=exact)
        return (exact + correction).astype(x0.dtype)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Compose:
    """Applies constraints in turn; made by `compose`.

    Attributes:
        constraints: in the order in which they are applied.
    """

    constraints: tuple[Constraint, ...]

    def __call__(self, x0: jax.Array) -> jax.Array:
        """Returns `x0`, `[B, ...]`, after each constraint."""
        return functools.reduce(lambda x, constraint: constraint(x), self.constraints, x0)


def inpaint(image: ArrayLike, mask: ArrayLike) -> Inpaint:
    """Keeps the part of an image, or of any other array, where a mask is 1.

    Where the mask is 1 samples equal the image bit for bit. Where it is 0 they are the model's, and
    the image is not read (NaN will do). In between they are the mean of both with that weight, for
    soft edges.

    Args:
        image: floats, `[B, ...]` or `[...]`.
        mask: weights in [0, 1], or booleans, likewise; axes may have size 1, as in `[H, W, 1]`.

    Raises:
        ValueError: for other weights or, when applied, shapes that do not fit the samples.
    """
    weights = concrete(mask)
    if weights is not None and not np.all((weights >= 0) & (weights <= 1)):  # NaN fails too
        raise ValueError(
            f"mask must be in [0, 1], got up to {weights.max()}; an 8-bit mask is mask / 255"
        )
    return Inpaint(as_floats("image", image), jnp.asarray(mask).astype(jnp.float32))


def observe(forward: Callable, pseudo_inverse: Callable, measurement: ArrayLike) -> Observe:
    """Keeps `A x0 = y` for a linear operator A with orthogonal rows.

    This is line 9 of Algorithm 4 (Song et al. 2023): of its orthogonal matrix only the first rows,
    those of A at length 1, matter.

    Args:
        forward: A, from samples `[B, ...]` to measurements. Operators that hold arrays are best a
            `jax.tree_util.Partial(function, array)`, which is traced like other data.
        pseudo_inverse: A^+, with A A^+ = 1: A transposed, if rows have length 1.
        measurement: y, floats of the shape of A x0, or without the batch.

    Raises:
        ValueError: if an operator is not a function or, when applied, shapes do not fit.
    """
    check_callable(forward=forward, pseudo_inverse=pseudo_inverse)
    return Observe(
        _Partial(forward), _Partial(pseudo_inverse), as_floats("measurement", measurement)
    )


def colorize(gray: ArrayLike, weights: Any = REC601) -> Observe:
    """Keeps the luminance `sum(weights * x0)` over the channels; the model chooses the colour.

    Args:
        gray: the luminance, floats `[B, H, W, 1]` or `[H, W, 1]`, or of other ranks.
        weights: of the channels, `[C]`.

    Raises:
        ValueError: for weights that are not finite or all 0 or, when applied, shapes that do not
            fit the samples.
    """
    row = concrete(weights)
    if np.ndim(weights) != 1 or row is not None and not (np.all(np.isfinite(row)) and np.any(row)):
        raise ValueError(
            f"weights must be finite numbers, one per channel and not all 0, got {weights!r}"
        )
    weights = as_floats("weights", weights)
    forward = _Partial(_luminance, weights)
    pseudo_inverse = _Partial(_colour, weights)
    return Observe(forward, pseudo_inverse, as_floats("gray", gray), "gray")


def super_resolve(low: ArrayLike, factor: int) -> Observe:
    """Keeps the average of every block of `factor` x `factor` pixels; the model adds the detail.

    Args:
        low: the averages, floats `[B, H / factor, W / factor, C]` or without the batch; signals and
            volumes have fewer or more axes between batch and channels.
        factor: length of a block along each of these axes.

    Raises:
        ValueError: for a factor below 1 or, when applied, one that does not divide the samples or
            fit `low`.
    """
    if not is_int(factor, 1):
        raise ValueError(f"factor must be an integer of at least 1, got {factor!r}")
    average, spread = _block_operators(int(factor))
    return Observe(_Partial(average), _Partial(spread), as_floats("low", low), "low")


def compose(*constraints: Constraint) -> Compose:
    """Applies constraints from left to right.

    The last holds exactly, the others where it does not undo them.

    Args:
        *constraints: functions x0 -> x0.

    Raises:
        ValueError: if one is not a function.
    """
    check_callable(**{f"constraints[{i}]": constraint for i, constraint in enumerate(constraints)})
    return Compose(tuple(as_pytree(constraint) for constraint in constraints))


def _luminance(weights, x0):
    """The operator of `colorize`: `sum(weights * x0)` over the channels."""
    if x0.shape[-1:] != weights.shape:
        raise ValueError(f"weights are for {weights.size} channels, but the samples are {x0.shape}")
    return jnp.sum(x0 * _row(weights, x0), -1, keepdims=True)


def _colour(weights, y):
    """Its pseudo-inverse: `y weights / |weights|^2`."""
    row = _row(weights, y)
    return y * (row / jnp.sum(jnp.square(row)))


def _row(weights, like):
    """The weights, aligned with the channels of `like`."""
    return weights.astype(like.dtype).reshape((1,) * (like.ndim - 1) + (-1,))


@functools.cache  # one pair of functions a factor, so that jit knows them again
def _block_operators(factor):
    """The operator of `super_resolve` and its pseudo-inverse."""

    def average(x0):
        sizes = x0.shape[1:-1]
        if not sizes or any(size % factor for size in sizes):
            raise ValueError(
                f"factor {factor} must divide every axis between batch and channels, "
                f"but the samples are {x0.shape}; crop or pad them, or take another factor"
            )
        # [B, H, W, C] -> [B, H / factor, factor, W / factor, factor, C], and the mean of the blocks.
        blocks = [n for size in sizes for n in (size // factor, factor)]
        within_blocks = tuple(range(2, 2 * len(sizes) + 1, 2))
        return x0.reshape(x0.shape[0], *blocks, x0.shape[-1]).mean(within_blocks)

    def spread(y):
        for axis in range(1, y.ndim - 1):
            y = jnp.repeat(y, factor, axis)
        return y

    return average, spread


def at_least_float32(x: jax.Array) -> jax.Array:
    """Casts to float32, unless it is float64."""
    return x.astype(jnp.float64 if x.dtype == jnp.float64 else jnp.float32)


def as_floats(name: str, value: ArrayLike) -> jax.Array:
    """Returns an array of floats; for bytes and other integers a ValueError."""
    array = jnp.asarray(value)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(
            f"{name} must hold floats, got {array.dtype}; bytes become an image by x / 127.5 - 1"
        )
    return array


def broadcast_to_samples(name: str, array: jax.Array, samples: jax.Array) -> jax.Array:
    """Returns an array, with the batch or without, in the shape and dtype of samples `[B, ...]`.

    Raises:
        ValueError: naming the array, if it does not fit.
    """
    sizes = zip(array.shape[::-1], samples.shape[::-1], strict=False)
    fits = array.ndim in (samples.ndim, samples.ndim - 1)
    if not fits or any(n not in (1, size) for n, size in sizes):
        raise ValueError(
            f"{name} is {array.shape}, but must fit {samples.shape}, "
            f"or {samples.shape[1:]} for all samples"
        )
    return jnp.broadcast_to(array.astype(samples.dtype), samples.shape)


def check_callable(**functions: Any) -> None:
    """Raises a ValueError that names the first argument that is not a function."""
    for name, function in functions.items():
        if not callable(function):
            raise ValueError(
                f"{name} must be a function, such as what inpaint(image, mask) returns, "
                f"got {function!r}"
            )

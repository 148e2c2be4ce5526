"""Constraints: functions x0 -> x0 that put back what is known of a sample.

`cmjax.sample(..., constrain=...)` applies them; `cmjax.editing` builds on that. They are pytrees: handed to a
jitted function, other data of the same shape compile nothing. Data are per sample `[B, ...]`, or `[...]` for all alike.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from cmjax.arrays import check_shapes, concrete
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
    """Keeps `image` where `known` is 1; see `inpaint`."""

    image: jax.Array  # [B, ...]
    known: jax.Array  # f32[B, ...], in [0, 1]

    def __call__(self, x0: jax.Array) -> jax.Array:
        """Returns `x0`, `[B, ...]`, with the known part put back."""
        exact = at_least_float32(x0)
        known = _fit("known", self.known, exact)
        image = jnp.where(known > 0, _fit("image", self.image, exact), exact)
        # A weighted sum alone would round where known is 1.
        return jnp.where(known == 1, image, exact + known * (image - exact)).astype(x0.dtype)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Observe:
    """Keeps a linear measurement; see `observe`."""

    forward: Callable[[jax.Array], jax.Array]  # A
    pseudo_inverse: Callable[[jax.Array], jax.Array]  # A^+
    measurement: jax.Array  # y, of the shape of A x0
    argument: str = dataclasses.field(
        default="measurement", metadata={"static": True}
    )  # what its maker calls y

    def __call__(self, x0: jax.Array) -> jax.Array:
        """Returns `x0 + A^+ (y - A x0)`, `[B, ...]`: the nearest to `x0` that has the measurement."""
        exact = at_least_float32(x0)
        observed = self.forward(exact)
        correction = self.pseudo_inverse(_fit(self.argument, self.measurement, observed) - observed)
        check_shapes(pseudo_inverse=correction, samples=exact)
        return (exact + correction).astype(x0.dtype)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Compose:
    """Applies constraints in turn; see `compose`."""

    constraints: tuple[Constraint, ...]

    def __call__(self, x0: jax.Array) -> jax.Array:
        """Returns `x0`, `[B, ...]`, after each constraint."""
        return functools.reduce(lambda x, constraint: constraint(x), self.constraints, x0)


def inpaint(image: ArrayLike, known: ArrayLike) -> Inpaint:
    """Keeps the known part of an image, or of any other array.

    Where `known` is 1 samples equal `image` bit for bit; where it is 0 they are the model's and `image` is not read
    (NaN will do); in between they are the mean of both with that weight, for soft edges.

    Args:
        image: floats, `[B, ...]` or `[...]`.
        known: weights in [0, 1], or booleans, likewise; axes may have size 1, as in `[H, W, 1]`.

    Raises:
        ValueError: for other weights or, when applied, shapes that do not fit the samples.
    """
    weights = concrete(known)
    if weights is not None and not np.all((weights >= 0) & (weights <= 1)):  # NaN fails too
        raise ValueError(
            f"known must be in [0, 1], got up to {weights.max()}; an 8-bit mask is mask / 255"
        )
    return Inpaint(as_floats("image", image), jnp.asarray(known).astype(jnp.float32))


def observe(forward: Callable, pseudo_inverse: Callable, measurement: ArrayLike) -> Observe:
    """Keeps `A x0 = y` for a linear operator A with orthogonal rows.

    This is line 9 of Algorithm 4: of its orthogonal matrix only the first rows, those of A at length 1, matter.

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
        ValueError: for weights that are not finite or all 0 or, when applied, shapes that do not fit the samples.
    """
    row = concrete(weights)
    if np.ndim(weights) != 1 or row is not None and not (np.all(np.isfinite(row)) and np.any(row)):
        raise ValueError(
            f"weights must be finite numbers, one per channel and not all 0, got {weights!r}"
        )
    weights = as_floats("weights", weights)
    return Observe(
        _Partial(_luminance, weights), _Partial(_colour, weights), as_floats("gray", gray), "gray"
    )


def super_resolve(low: ArrayLike, factor: int) -> Observe:
    """Keeps the average of every block of `factor` x `factor` pixels; the model adds the detail.

    Args:
        low: the averages, floats `[B, H / factor, W / factor, C]` or without the batch; signals and volumes have
            fewer or more axes between batch and channels.
        factor: length of a block along each of these axes.

    Raises:
        ValueError: for a factor below 1 or, when applied, one that does not divide the samples or fit `low`.
    """
    if not is_int(factor, 1):
        raise ValueError(f"factor must be an integer of at least 1, got {factor!r}")
    average, spread = _block_operators(int(factor))
    return Observe(_Partial(average), _Partial(spread), as_floats("low", low), "low")


def compose(*constraints: Constraint) -> Compose:
    """Applies constraints from left to right: the last holds exactly, the others where it does not undo them.

    Raises:
        ValueError: if one is not a function.
    """
    check_callable(**{f"constraints[{i}]": constraint for i, constraint in enumerate(constraints)})
    return Compose(constraints)


def _luminance(weights, x0):
    if x0.shape[-1:] != weights.shape:
        raise ValueError(f"weights are for {weights.size} channels, but the samples are {x0.shape}")
    return jnp.sum(x0 * _row(weights, x0), -1, keepdims=True)


def _colour(weights, y):
    row = _row(weights, y)
    return y * (row / jnp.sum(jnp.square(row)))


def _row(weights, like):
    return weights.astype(like.dtype).reshape((1,) * (like.ndim - 1) + (-1,))


@functools.cache  # one pair of functions a factor, so that jit knows them again
def _block_operators(factor):
    def average(x0):
        sizes = x0.shape[1:-1]
        if not sizes or any(size % factor for size in sizes):
            raise ValueError(
                f"factor {factor} must divide every axis between batch and channels, but the samples are {x0.shape}; "
                "crop or pad them, or take another factor"
            )
        blocks = [n for size in sizes for n in (size // factor, factor)]
        return x0.reshape(x0.shape[0], *blocks, x0.shape[-1]).mean(
            tuple(range(2, 2 * len(sizes) + 1, 2))
        )

    def spread(y):
        return functools.reduce(
            lambda y, axis: jnp.repeat(y, factor, axis), range(1, y.ndim - 1), y
        )

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


def _fit(name, array, like):
    """Returns `array`, with the batch or without, in the shape and dtype of `like`."""
    sizes = zip(array.shape[::-1], like.shape[::-1], strict=False)
    if array.ndim not in (like.ndim, like.ndim - 1) or any(n not in (1, size) for n, size in sizes):
        raise ValueError(
            f"{name} is {array.shape}, but must fit {like.shape}, or {like.shape[1:]} for all samples"
        )
    return jnp.broadcast_to(array.astype(like.dtype), like.shape)


def check_callable(**functions: Any) -> None:
    """Raises a ValueError that names the first argument that is not a function."""
    for name, function in functions.items():
        if not callable(function):
            raise ValueError(
                f"{name} must be a function, such as what inpaint(image, known) returns, got {function!r}"
            )

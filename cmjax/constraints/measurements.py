"""Linear measurements: colorization, super-resolution, and operators of the caller's own."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from cmjax.arrays import (
    along_channels,
    as_floats,
    as_reals,
    at_least_float32,
    check_shapes,
    known_reals,
)
from cmjax.configs import positive_int, shown
from cmjax.constraints.checks import as_image, broadcast_to_samples, check_callable
from cmjax.meshes import with_automatic_axes

# Luma of R, G, B (ITU-R BT.601). Song et al. 2023 round to 0.2989, 0.5870, 0.1140.
REC601 = (0.299, 0.587, 0.114)

# A function that is a pytree, whose leaves are the arrays that it holds.
_Partial = jax.tree_util.Partial


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Observe:
    """Keeps a linear measurement; made by `observe`, `colorize` or `super_resolve`.

    Attributes:
        forward: the operator A, from samples to measurements.
        pseudo_inverse: its pseudo-inverse A^+.
        measurement: y, of the shape of A x0, or without the batch.
        argument: the name of the measurement in errors.
    """

    forward: Callable[[jax.Array], jax.Array]
    pseudo_inverse: Callable[[jax.Array], jax.Array]
    measurement: jax.Array
    argument: str = dataclasses.field(default="measurement", metadata={"static": True})

    def __call__(self, x0: jax.Array) -> jax.Array:
        """Returns `x0 + A^+ (y - A x0)`, `[B, ...]`: the nearest point to x0 with A x0 = y."""
        x0 = as_floats("x0", x0)
        exact = at_least_float32(x0)

        # A x0, which has the shape of y, with the batch.
        observed = as_floats("forward's result", self.forward(exact))
        measurement = broadcast_to_samples(self.argument, self.measurement, observed)

        # A^+ (y - A x0), in the space of the samples.
        correction = self.pseudo_inverse(measurement - observed)
        correction = as_floats("pseudo_inverse's result", correction).astype(exact.dtype)
        check_shapes(pseudo_inverse=correction, samples=exact)
        return (exact + correction).astype(x0.dtype)

    def measure(self, x0: jax.Array) -> jax.Array:
        """Returns what is compared with the measurement, `A x0`."""
        return as_floats("forward's result", self.forward(x0))

    def shifted(self, shift: jax.Array) -> "Observe":
        """Returns the constraint for the measurement plus `shift`, shaped as `A x0`."""
        measurement = broadcast_to_samples(self.argument, self.measurement, shift)
        return dataclasses.replace(self, measurement=measurement + shift)


def observe(forward: Callable, pseudo_inverse: Callable, measurement: ArrayLike) -> Observe:
    """Keeps `A x0 = y` for a linear operator A with orthogonal rows.

    This is line 9 of Algorithm 4 (Song et al. 2023). Of its orthogonal matrix only the first rows
    matter, which are those of A scaled to length 1.

    Args:
        forward: A, from samples `[B, ...]` to measurements. If it needs arrays, pass
            `jax.tree_util.Partial(function, array)`, so that they are traced like other data.
        pseudo_inverse: A^+, with A A^+ = 1: the transpose of A, if its rows have length 1.
        measurement: y, floats of the shape of A x0, or without the batch.

    Raises:
        ValueError: if an operator is not a function or, when applied, shapes do not fit.
    """
    check_callable(forward=forward, pseudo_inverse=pseudo_inverse)

    # Plain functions are no pytrees. Partial makes them part of the structure of one.
    return Observe(
        _Partial(forward), _Partial(pseudo_inverse), as_floats("measurement", measurement)
    )


def colorize(gray: ArrayLike, weights: Any = REC601) -> Observe:
    """Keeps the luminance `sum(weights * x0)` over the channels; the model chooses the colour.

    Args:
        gray: the luminance, floats `[B, H, W, 1]` or `[H, W, 1]`; other ranks work likewise.
        weights: of the channels, `[C]`.

    Raises:
        ValueError: for weights that are not finite or all 0 or, when applied, shapes that do not
            fit the samples.
    """
    # Without a weight other than 0 there is no pseudo-inverse. Traced values cannot be checked.
    row = as_reals("weights", weights)
    known = known_reals("weights", weights)
    usable = known is None or (np.all(np.isfinite(known)) and np.any(known))
    if row.ndim != 1 or not usable:
        raise ValueError(
            "weights must be finite numbers, one per channel and not all 0, "
            f"got {shown(weights)}"
        )

    # The operators hold the weights as arrays, so that other weights do not compile again.
    forward = _Partial(_luminance, row)
    pseudo_inverse = _Partial(_colour, row)
    return Observe(forward, pseudo_inverse, as_image("gray", gray), "gray")


def super_resolve(low: ArrayLike, factor: int) -> Observe:
    """Keeps the average of every block of `factor` x `factor` pixels; the model adds the detail.

    Args:
        low: the averages, floats `[B, H / factor, W / factor, C]` or without the batch. Signals and
            volumes may have fewer or more axes between batch and channels.
        factor: length of a block along each of these axes.

    Raises:
        ValueError: for a factor below 1 or, when applied, one that does not divide the samples or
            fit `low`.
    """
    factor = positive_int("factor", factor)
    average = _Partial(_BlockAverage(factor))
    spread = _Partial(_BlockSpread(factor))
    return Observe(average, spread, as_image("low", low), "low")


def _luminance(weights, x0):
    """The operator A of `colorize`: `sum(weights * x0)` over the channels, `[..., 1]`."""
    if x0.shape[-1:] != weights.shape:
        raise ValueError(
            f"weights are for {weights.size} channels, but the samples are {x0.shape}"
        )
    return jnp.sum(x0 * _row(weights, x0), -1, keepdims=True)


def _colour(weights, y):
    """The pseudo-inverse of `_luminance`: `y weights / |weights|^2`, `[..., C]`."""
    row = _row(weights, y)
    return y * (row / jnp.sum(jnp.square(row)))


def _row(weights, like):
    """The weights as `[1, ..., 1, C]`, aligned with the channels of `like`."""
    return along_channels(weights.astype(like.dtype), like.ndim)


# Objects and no closures, so that constraints can be pickled, and equal factors are compiled once.
@dataclasses.dataclass(frozen=True)
class _BlockAverage:
    """The operator A of `super_resolve`."""

    factor: int

    def __call__(self, x0):
        """Returns the average of every block."""
        # Between batch and channels: (H, W) of a picture.
        factor = self.factor
        sizes = x0.shape[1:-1]
        if not sizes or any(size % factor for size in sizes):
            raise ValueError(
                f"factor {factor} must divide every axis between batch and channels, "
                f"but the samples are {x0.shape}; crop or pad them, or take another factor"
            )

        # [B, H, W, C] -> [B, H / factor, factor, W / factor, factor, C].
        blocks = []
        for size in sizes:
            blocks += [size // factor, factor]

        # The axes within a block are 2, 4, ...
        within_blocks = tuple(range(2, 2 * len(sizes) + 1, 2))

        def mean(x0, _):
            by_block = x0.reshape(x0.shape[0], *blocks, x0.shape[-1])
            return by_block.mean(within_blocks)

        # On a mesh with explicit axes, JAX refuses a reshape of more than one axis.
        return with_automatic_axes(mean, x0)


@dataclasses.dataclass(frozen=True)
class _BlockSpread:
    """The pseudo-inverse of `_BlockAverage`."""

    factor: int

    def __call__(self, y):
        """Returns blocks of equal pixels, whose average is y."""
        for axis in range(1, y.ndim - 1):
            y = jnp.repeat(y, self.factor, axis)
        return y

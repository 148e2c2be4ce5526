"""Constraints: functions x0 -> x0 that restore the known part of a sample.

`cmjax.sample(..., constrain=...)` applies them, and `cmjax.editing` builds on that. They are
pytrees, so new data of the same shape do not cause recompilation. Their data are per sample,
`[B, ...]`, or the same for all samples, `[...]`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from cmjax.arrays import (
    as_array,
    as_floats,
    as_reals,
    at_least_float32,
    check_pixels,
    check_shapes,
    concrete,
    known_reals,
)
from cmjax.configs import LARGEST, is_int, shown
from cmjax.meshes import with_automatic_axes
from cmjax.tracing import as_pytree

# Luma of R, G, B (ITU-R BT.601). Song et al. 2023 round to 0.2989, 0.5870, 0.1140.
REC601 = (0.299, 0.587, 0.114)

_PICTURE_NDIM = 3  # (H, W, C); arrays of fewer axes may hold anything

Constraint = Callable[[jax.Array], jax.Array]  # x0 -> x0, both [B, ...]
_Partial = jax.tree_util.Partial  # a function that is a pytree, with its arrays


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)  # hashed by identity, as functions are
class Inpaint:
    """Keeps an image where a mask is 1; made by `inpaint`.

    Attributes:
        image: `[B, ...]` or `[...]`.
        mask: f32 in [0, 1], shaped likewise; 1 where the image is kept.
    """

    image: jax.Array
    mask: jax.Array

    def __call__(self, x0: jax.Array) -> jax.Array:
        """Returns `x0`, `[B, ...]`, with the image restored where the mask is not 0."""
        # In at least float32, and cast to the dtype of x0 once at the end.
        x0 = as_floats("x0", x0)
        exact = at_least_float32(x0)
        mask = broadcast_to_samples("mask", self.mask, exact)
        image = broadcast_to_samples("image", self.image, exact)

        # On explicit axes, the cases of a `where` would have to be divided alike.
        return with_automatic_axes(_blend, (exact, mask, image)).astype(x0.dtype)

    def measure(self, x0: jax.Array) -> jax.Array:
        """Returns what is compared with the image, `[B, ...]`: `x0` itself."""
        return x0

    def shifted(self, shift: jax.Array) -> "Inpaint":
        """Returns the constraint for the image plus `shift`, `[B, ...]`."""
        image = broadcast_to_samples("image", self.image, shift)
        return dataclasses.replace(self, image=image + shift)


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

        # A x0, of the shape that y must have or broadcast to.
        observed = as_floats("forward's result", self.forward(exact))
        measurement = broadcast_to_samples(self.argument, self.measurement, observed)
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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Compose:
    """Applies constraints in turn; made by `compose`.

    Attributes:
        constraints: in the order in which they are applied.
    """

    constraints: tuple[Constraint, ...]

    def __call__(self, x0: jax.Array) -> jax.Array:
        """Returns `x0`, `[B, ...]`, after all constraints."""
        return functools.reduce(lambda x, constraint: constraint(x), self.constraints, x0)

    def measure(self, x0: jax.Array) -> tuple[Any, ...]:
        """Returns what each constraint compares with its own data, a pytree for each."""
        return tuple(measurable(each).measure(x0) for each in self.constraints)

    def shifted(self, shift: tuple[Any, ...]) -> "Compose":
        """Returns the constraints for their own data plus `shift`, a pytree for each."""
        pairs = zip(self.constraints, shift, strict=True)
        return Compose(tuple(measurable(each).shifted(own) for each, own in pairs))


def inpaint(image: ArrayLike, mask: ArrayLike) -> Inpaint:
    """Keeps the part of an image, or of any other array, where a mask is 1.

    Where the mask is 1, samples equal the image bit for bit. Where it is 0, they are the model's
    and the image is ignored (it may be NaN). In between they are the weighted mean of both, for
    soft edges.

    Example:
        >>> import jax.numpy as jnp
        >>> from cmjax.constraints import inpaint
        >>> constraint = inpaint(jnp.array([0.25, 0.0]), jnp.array([1.0, 0.0]))
        >>> constraint(jnp.array([[0.5, 0.75]])).tolist()
        [[0.25, 0.75]]

    Args:
        image: floats in the range of the samples (pictures in [-1, 1]), `[B, ...]` or `[...]`.
        mask: weights in [0, 1], or booleans, shaped likewise; axes may have size 1, as in
            `[H, W, 1]`. Under `jax.jit` values are not known, and an 8-bit mask must be divided by
            255 before.

    Raises:
        ValueError: for other weights, pixels of 0 to 255, or, when applied, shapes that do not fit
            the samples.
    """
    weights = as_array("mask", mask)
    if weights.dtype != bool:
        known_reals("mask", mask)

    # A comparison with NaN is false, so NaN is refused too.
    known = concrete(weights)
    if known is not None and not np.all((known >= 0) & (known <= 1)):
        raise ValueError(
            f"mask must be in [0, 1], got up to {known.max()}; an 8-bit mask is mask / 255"
        )
    return Inpaint(as_image("image", image), jnp.asarray(weights).astype(jnp.float32))


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

    # Plain functions are no pytrees; as a Partial they are part of its structure.
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
    # Weights of all 0 have no pseudo-inverse. Traced ones are checked by their rank alone.
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
    if not is_int(factor, 1, LARGEST):
        raise ValueError(f"factor must be an integer of at least 1, got {shown(factor)}")
    average, spread = _block_operators(int(factor))
    return Observe(_Partial(average), _Partial(spread), as_image("low", low), "low")


def compose(*constraints: Constraint) -> Compose:
    """Applies constraints from left to right.

    The last one holds exactly; the others hold where later ones do not undo them.

    Args:
        *constraints: functions x0 -> x0.

    Raises:
        ValueError: if one is not a function.
    """
    check_callable(
        **{f"constraints[{i}]": constraint for i, constraint in enumerate(constraints)}
    )
    return Compose(tuple(as_pytree(constraint) for constraint in constraints))


def measurable(constraint: Any) -> Any:
    """Returns a constraint that knows its data: one with `measure` and `shifted`.

    Raises:
        ValueError: for a function of another kind.
    """
    if not hasattr(constraint, "measure") or not hasattr(constraint, "shifted"):
        raise ValueError(
            "sigma_y needs a constraint that knows its data, such as what inpaint, observe, "
            f"colorize or super_resolve return, got {shown(constraint)}"
        )
    return constraint


def _blend(arrays, _):
    """The weighted mean of samples and an image, from `(samples, mask, image)`."""
    samples, mask, image = arrays

    # Where the mask is 0 the image may be NaN, and 0 * NaN would be NaN.
    image = jnp.where(mask > 0, image, samples)

    # The weighted sum alone would round where the mask is 1.
    blended = samples + mask * (image - samples)
    return jnp.where(mask == 1, image, blended)


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
    return weights.astype(like.dtype).reshape((1,) * (like.ndim - 1) + (-1,))


# One pair of functions for each factor: new functions would make jit compile again.
@functools.cache
def _block_operators(factor):
    """The operator A of `super_resolve`, and its pseudo-inverse."""

    def average(x0):
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

        # Then the mean over the axes 2, 4, ..., those within a block.
        within_blocks = tuple(range(2, 2 * len(sizes) + 1, 2))

        def mean(x0, _):
            return x0.reshape(x0.shape[0], *blocks, x0.shape[-1]).mean(within_blocks)

        # On explicit axes JAX refuses a reshape of more than one axis.
        return with_automatic_axes(mean, x0)

    def spread(y):
        # Every pixel of a block gets the block's value: A of the result is y again.
        for axis in range(1, y.ndim - 1):
            y = jnp.repeat(y, factor, axis)
        return y

    return average, spread


def as_image(name: str, value: ArrayLike) -> jax.Array:
    """Returns a picture, or any other array of floats; raises ValueError for bytes and pixels."""
    array = as_floats(name, value)
    if array.ndim >= _PICTURE_NDIM:
        check_pixels(name, as_array(name, value))
    return array


def broadcast_to_samples(name: str, array: jax.Array, samples: jax.Array) -> jax.Array:
    """Returns an array, with the batch or without, in the shape and dtype of samples `[B, ...]`.

    Raises:
        ValueError: if it does not fit; the error has the given name.
    """
    # Of samples (D, D) an array (D,) could be one number per sample, or one sample for all.
    per_sample = array.ndim == samples.ndim - 1 and array.shape == samples.shape[:-1]
    if per_sample and array.shape == samples.shape[1:] and samples.shape[0] > 1:
        raise ValueError(
            f"{name} {array.shape} fits samples {samples.shape} in two ways; give it all axes: "
            f"{name}[None] is the same for all samples, {name}[..., None] one for each"
        )

    # Axes are aligned at the end, as in NumPy, but at most the batch may be missing: [H, W] would
    # be aligned with W and C of [B, H, W, C].
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
                f"got {shown(function)}"
            )

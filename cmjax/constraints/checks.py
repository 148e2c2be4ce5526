"""Checks of what constraints are made of, and the shapes that their data take."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from cmjax.arrays import as_array, as_floats, check_pixels, concrete
from cmjax.configs import shown

# (H, W, C): arrays of fewer axes are no pictures, and may hold any numbers.
_PICTURE_NDIM = 3


def as_image(name: str, value: ArrayLike, used: Any = True) -> jax.Array:
    """Returns a picture, or any other array of floats.

    Args:
        name: of the argument, for errors.
        value: the array.
        used: where its values matter, booleans that broadcast with them. Elsewhere they may be NaN,
            which often stands for what is missing.

    Raises:
        ValueError: for bytes, pixels of 0 to 255, or values that matter and are not finite.
    """
    array = as_floats(name, value)
    if array.ndim >= _PICTURE_NDIM:
        check_pixels(name, as_array(name, value))

    # Looked at as it was given, since within `jit` an array of JAX is not known. Shapes that do not
    # fit are refused when the samples are known.
    known = concrete(as_array(name, value))
    if known is None or not _broadcast(known.shape, np.shape(used)):
        return array
    if np.any(~np.isfinite(known) & used):
        raise ValueError(
            f"{name} must be finite, got NaN or infinity; what is not known is left to a mask "
            "of 0 in inpaint"
        )
    return array


def _broadcast(*shapes: tuple[int, ...]) -> bool:
    """Whether arrays of these shapes broadcast with each other."""
    try:
        np.broadcast_shapes(*shapes)
    except ValueError:
        return False
    return True


def broadcast_to_samples(name: str, array: jax.Array, samples: jax.Array) -> jax.Array:
    """Returns an array, with the batch or without, in the shape and dtype of samples `[B, ...]`.

    Raises:
        ValueError: if it does not fit; the error has the given name.
    """
    # For samples (D, D), an array (D,) may mean one number per sample, or one sample for all.
    lacks_an_axis = array.ndim == samples.ndim - 1
    per_sample = lacks_an_axis and array.shape == samples.shape[:-1]
    if per_sample and array.shape == samples.shape[1:] and samples.shape[0] > 1:
        raise ValueError(
            f"{name} {array.shape} fits samples {samples.shape} in two ways; give it all axes: "
            f"{name}[None] is the same for all samples, {name}[..., None] one for each"
        )

    # Axes are aligned at the end, as in NumPy, but only the batch may be missing: [H, W] would be
    # aligned with W and C of [B, H, W, C].
    fits = array.ndim == samples.ndim or lacks_an_axis
    for n, size in zip(array.shape[::-1], samples.shape[::-1], strict=False):
        fits = fits and n in (1, size)
    if not fits:
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

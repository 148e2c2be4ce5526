"""Conversions between samples in [-1, 1], pixels of 0 to 255 and Pillow's pictures."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageOps

from cmjax.arrays import as_array, as_numpy, check_pixels, concrete, is_floating
from cmjax.configs import is_int, shown
from cmjax.image_files import picture_of
from cmjax.images.checks import LARGEST_PICTURE, MODES, as_images


def center_crop_resize(image: ArrayLike, size: int) -> np.ndarray:
    """Crops the largest central square of u8[H, W, C] and scales it to u8[size, size, C].

    Raises:
        ValueError: for other pictures, C being 1 or 3, or a size below 1.
    """
    picture = as_images(as_numpy("image", image)[None], "image")[0]
    if not is_int(size, 1) or int(size) ** 2 > LARGEST_PICTURE:
        raise ValueError(f"size must be an integer of at least 1, got {shown(size)}")
    size = int(size)
    if picture.shape[:2] == (size, size):
        return picture

    # A box filter averages over the area of each new pixel, without ringing at edges.
    scaled = ImageOps.fit(picture_of(picture), (size, size), Image.Resampling.BOX)
    return np.asarray(scaled).reshape(size, size, -1)


def from_uint8(pixels: ArrayLike) -> Any:
    """Maps pixels 0..255 to samples in [-1, 1], f32 of the same shape.

    Returns:
        A NumPy array; under `jax.jit`, a traced array, whose values are not checked.

    Raises:
        ValueError: for anything but integers from 0 to 255.
    """
    pixels = as_array("pixels", pixels)
    if not np.issubdtype(pixels.dtype, np.integer):
        raise ValueError(f"pixels must be integers from 0 to 255, got {pixels.dtype}")
    known = concrete(pixels)
    if known is not None and pixels.dtype != np.uint8 and pixels.size:
        low = known.min()
        high = known.max()
        if low < 0 or high > 255:
            raise ValueError(f"pixels must be from 0 to 255, got {low} to {high}")

    # x = p / 127.5 - 1, so that 0 becomes -1 and 255 becomes 1.
    if known is None:
        return pixels.astype(jnp.float32) / 127.5 - 1
    return np.asarray(known, np.float32) / 127.5 - 1


def to_uint8(samples: ArrayLike) -> Any:
    """Maps samples in [-1, 1] to pixels, u8 of the same shape, rounded and clipped.

    Under `jax.jit` values are not known, and those that are refused otherwise become any pixels.

    Example:
        >>> import numpy as np
        >>> from cmjax.images import to_uint8
        >>> to_uint8(np.array([-1.0, 0.0, 1.0, 1.5])).tolist()
        [0, 128, 255, 255]

    Returns:
        A NumPy array; under `jax.jit`, a traced array.

    Raises:
        ValueError: for integers, NaN, or what has the range of pixels already.
    """
    array = as_array("samples", samples)
    if not is_floating(array.dtype):
        raise ValueError(f"samples must be floats in [-1, 1], got {array.dtype}")
    known = concrete(array)
    if known is not None:
        if np.isnan(known).any():
            raise ValueError("samples must be numbers, got NaN among them")
        check_pixels("samples", known)

    # The inverse of `from_uint8`, p = round(127.5 (x + 1)), in float32: bfloat16 has too few bits
    # for 256 values.
    xp = jnp if known is None else np
    pixels = (xp.asarray(array, xp.float32) + 1) * 127.5
    return xp.clip(xp.round(pixels), 0, 255).astype(np.uint8)


def to_pil(samples: ArrayLike) -> Any:
    """Converts samples to Pillow's pictures, which notebooks display and `save` writes to files.

    Args:
        samples: [H, W, C] or [B, H, W, C] with C of 1 or 3; floats in [-1, 1], or u8 pixels.

    Returns:
        A `PIL.Image.Image` for [H, W, C]; a list of B of them for [B, H, W, C].

    Raises:
        ValueError: for another shape or dtype.
    """
    array = as_numpy("samples", samples)
    floating = is_floating(array.dtype)
    if array.ndim not in (3, 4) or array.shape[-1] not in MODES:
        raise ValueError(
            f"samples must be [H, W, 1 or 3] or [B, H, W, 1 or 3], got shape {array.shape}"
        )
    if array.dtype != np.uint8 and not floating:
        raise ValueError(
            f"samples must be floats in [-1, 1] or u8 pixels, got {array.dtype}"
        )

    pixels = to_uint8(array) if floating else array
    if pixels.ndim == 3:
        return picture_of(pixels)
    return [picture_of(image) for image in pixels]

"""Reading of pictures, from files that may hold anything."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from cmjax.configs import is_int, shown
from cmjax.files import as_path, open_regular
from cmjax.images.checks import LARGEST_PICTURE, MODES

# Pillow's modes of pictures with at most 8 bits per channel.
MODES_READ = ("1", "L", "P", "RGB", "LA", "PA", "RGBA")


def read_image(path: str | Path, channels: int) -> np.ndarray:
    """Reads a picture, rotated upright if its metadata say so.

    Args:
        path: a PNG, JPEG or other still picture of 8 bits per channel, gray or colour, without
            transparency: wholly opaque.
        channels: 1 for gray or 3 for colour; pictures of the other kind are converted.

    Returns:
        The pixels, u8[H, W, channels].

    Raises:
        ValueError: if the file cannot be read or is of another kind. The message names it.
    """
    if not is_int(channels) or channels not in MODES:
        raise ValueError(f"channels must be 1 or 3, got {shown(channels)}")
    with _open_picture(path) as image:
        upright = ImageOps.exif_transpose(image)
        pixels = np.asarray(upright.convert(MODES[channels]))
        return pixels.reshape(upright.height, upright.width, channels)


def check_picture(path: str | Path, *, whole: bool) -> None:
    """Checks that `read_image` takes a file: by its header, or by all of its pixels if `whole`.

    Raises:
        ValueError: as `read_image` does.
    """
    with _open_picture(path) as image:
        if whole:
            image.load()


@contextlib.contextmanager
def _open_picture(path: str | Path) -> Iterator[Image.Image]:
    """Opens a picture that can be converted to 8 bits without a change that goes unnoticed."""
    path = as_path("path", path)
    try:
        # `open` reads only the header, so that huge pictures are refused before decoding.
        with open_regular(path) as file, Image.open(file) as image:
            _check_kind(path, image)
            yield image
    except UnidentifiedImageError:
        raise ValueError(f"{path} is not a picture that can be read") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        # Pillow raises SyntaxError for a broken PNG.
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"cannot read {path}: {reason}") from None


def _check_kind(path: str | Path, image: Image.Image) -> None:
    """Raises ValueError for pictures that a conversion to 8 bits would change silently."""
    # MPO, the format of some phones, is a JPEG with further pictures, which are no animation but
    # previews and the like.
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
        raise ValueError(f"{path} is animated; save one frame as a picture")
    if image.mode not in MODES_READ:
        raise ValueError(f"{path} is {image.mode}, not 8-bit gray or RGB; convert it first")
    if image.width * image.height > LARGEST_PICTURE:
        size = f"{image.width}x{image.height}"
        raise ValueError(f"{path} has {size} pixels; make it smaller first")

    # This comes last, since it decodes the picture. An alpha channel may be opaque everywhere.
    if image.has_transparency_data:
        alpha = np.asarray(image.convert("RGBA").getchannel("A"))
        if alpha.min() < 255:
            raise ValueError(f"{path} has transparency; flatten it onto a background first")

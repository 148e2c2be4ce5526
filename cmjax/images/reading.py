"""Reading of pictures, from files that may hold anything."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from cmjax.configs import is_int, shown
from cmjax.files import as_path, open_regular
from cmjax.images.checks import LARGEST_PICTURE, MODES
from cmjax.printing import one_line

# Pillow's formats that are read. Of the others, EPS would start Ghostscript.
FORMATS = (
    "PNG",
    "JPEG",
    "MPO",
    "WEBP",
    "GIF",
    "BMP",
    "TIFF",
    "AVIF",
    "JPEG2000",
    "PPM",
    "ICO",
)

# Pillow's modes of pictures with at most 8 bits per channel.
MODES_READ = ("1", "L", "P", "RGB", "LA", "PA", "RGBA")


def read_image(path: str | Path, channels: int) -> np.ndarray:
    """Reads a picture, rotated upright if its metadata say so.

    Args:
        path: a PNG, JPEG or other still picture of 8 bits per channel, gray or colour, without
            transparency: wholly opaque. Of colours with 16 bits per channel the high bits are
            taken; gray pictures of 16 bits are refused.
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
        # Pillow warns of palettes with an alpha for each colour, unless that is taken off first.
        if upright.has_transparency_data:
            upright = upright.convert("RGBA")
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


class _UnfitError(ValueError):
    """A picture can be read, and is of a kind that is refused; the message names the file."""


@contextlib.contextmanager
def _open_picture(path: str | Path) -> Iterator[Image.Image]:
    """Opens a picture that can be converted to 8 bits without a change that goes unnoticed."""
    path = as_path("path", path)
    try:
        file = open_regular(path)
    except OSError as error:
        raise _unreadable(path, error) from None

    # Pillow may have been built without some formats.
    Image.init()
    formats = [name for name in FORMATS if name in Image.OPEN]

    # `open` reads only the header, so that huge pictures are refused before decoding.
    with file, _named_errors(path), Image.open(file, formats=formats) as image:
        _check_kind(path, image)
        yield image


@contextlib.contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    """Turns every error of Pillow into a ValueError that names the file."""
    try:
        yield
    except (_UnfitError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise ValueError(
            f"{path} is not a picture that can be read; give a PNG, JPEG or WebP file"
        ) from None
    except Exception as error:
        # A damaged file makes Pillow raise errors of any kind: SyntaxError for a broken PNG,
        # ValueError for one with a text of megabytes, RuntimeError for an AVIF.
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> ValueError:
    """Returns the error for a file that cannot be read."""
    reason = getattr(error, "strerror", None) or one_line(str(error))
    return ValueError(f"cannot read {path}: {reason}; give another picture")


def _check_kind(path: str | Path, image: Image.Image) -> None:
    """Raises _UnfitError for pictures that a conversion to 8 bits would change silently."""
    # MPO, the format of some phones, is a JPEG with further pictures, which are no animation but
    # previews and the like.
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
        raise _UnfitError(
            f"{path} is animated or has several pages; save one of them as a picture"
        )
    if image.mode not in MODES_READ:
        raise _UnfitError(
            f"{path} is {image.mode}, not 8-bit gray or RGB; convert it first"
        )
    if image.width * image.height > LARGEST_PICTURE:
        size = f"{image.width}x{image.height}"
        raise _UnfitError(f"{path} has {size} pixels; make it smaller first")

    # This comes last, since it decodes the picture. An alpha channel may be opaque everywhere.
    if image.has_transparency_data:
        alpha = np.asarray(image.convert("RGBA").getchannel("A"))
        if alpha.min() < 255:
            raise _UnfitError(
                f"{path} has transparency; flatten it onto a background first"
            )

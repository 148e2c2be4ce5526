"""Conversions between samples in [-1, 1], pixels in 0..255 and pictures.

All arguments that are arrays may be of NumPy or of JAX.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError

from cmjax.arrays import as_array, as_numpy, check_pixels, concrete, is_floating
from cmjax.configs import LARGEST, is_int, shown
from cmjax.files import open_regular, replacing
from cmjax.image_files import ImageSet, picture_of, write_npz, write_png_folder

MARGIN = 4  # pixels around every tile of a grid
CAPTION = 16  # height in pixels of the caption above a tile
MODES = {1: "L", 3: "RGB"}  # Pillow's mode by number of channels
MODES_READ = ("1", "L", "P", "RGB", "LA", "PA", "RGBA")  # of pictures of 8 bits
# In pixels: a small file can declare a huge picture and exhaust the memory.
LARGEST_PICTURE = 2**26


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
    path = _as_path("path", path)
    try:
        # `open` reads only the header, so that huge pictures are refused before decoding.
        with open_regular(path) as file, Image.open(file) as image:
            _check_kind(path, image)
            yield image
    except UnidentifiedImageError:
        raise ValueError(
            f"{path} is not a picture that can be read; give a PNG, JPEG or WebP file"
        ) from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        # Pillow raises SyntaxError for a broken PNG.
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"cannot read {path}: {reason}; give another picture") from None


def _check_kind(path: str | Path, image: Image.Image) -> None:
    """Raises ValueError for pictures that a conversion to 8 bits would change silently."""
    # MPO is a JPEG of a phone: its further pictures are previews and the like, not an animation.
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
        raise ValueError(f"{path} is animated; save one frame as a picture")
    if image.mode not in MODES_READ:
        raise ValueError(f"{path} is {image.mode}, not 8-bit gray or RGB; convert it first")
    if image.width * image.height > LARGEST_PICTURE:
        size = f"{image.width}x{image.height}"
        raise ValueError(f"{path} has {size} pixels; make it smaller first")

    # Only now, since it decodes the picture: an alpha channel may be opaque everywhere.
    if image.has_transparency_data:
        alpha = np.asarray(image.convert("RGBA").getchannel("A"))
        if alpha.min() < 255:
            raise ValueError(f"{path} has transparency; flatten it onto a background first")


def center_crop_resize(image: ArrayLike, size: int) -> np.ndarray:
    """Crops the largest central square of u8[H, W, C] and scales it to u8[size, size, C].

    Raises:
        ValueError: for other pictures, C being 1 or 3, or a size below 1.
    """
    picture = _as_images(as_numpy("image", image)[None], "image")[0]
    if not is_int(size, 1) or size**2 > LARGEST_PICTURE:
        raise ValueError(f"size must be an integer of at least 1, got {shown(size)}")
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
        low, high = known.min(), known.max()
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

    # The inverse of `from_uint8`: p = round(127.5 (x + 1)). In float32, since bfloat16 has too few
    # bits for 256 values.
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


def image_grid(
    images: ArrayLike,
    *,
    columns: int,
    labels: Sequence[object] | None = None,
    title: str = "",
    scale: int = 1,
) -> Image.Image:
    """Arranges images on a white background, row by row, with optional captions.

    Args:
        images: u8[N, H, W, C] with C of 1 or 3.
        columns: number of images in a row.
        labels: N captions, one above each image, or None.
        title: a line above all images, at the left; "" for none.
        scale: factor by which to enlarge every pixel.

    Returns:
        The picture of all images; Pillow's `save` writes it to a file.

    Raises:
        ValueError: for arrays of another dtype or shape, another number of captions, or sizes
            below 1.
    """
    images = _as_images(images)
    if not is_int(columns, 1) or not is_int(scale, 1):
        raise ValueError(
            "columns and scale must be integers of at least 1, "
            f"got columns={shown(columns)} and scale={shown(scale)}"
        )
    count, height, width, channels = images.shape
    if labels is not None:
        labels = _captions(labels, count)

    # Sizes in pixels, (width, height): of a tile, of its cell with margin and caption, and of the
    # whole picture.
    columns = min(columns, count)
    rows = -(-count // columns)  # rounded up: the last row may be incomplete
    caption = 0 if labels is None else CAPTION
    tile = (width * scale, height * scale)
    cell_width = tile[0] + MARGIN
    cell_height = tile[1] + MARGIN + caption
    top = CAPTION if title else 0
    size = (columns * cell_width + MARGIN, top + rows * cell_height + MARGIN)
    if size[0] * size[1] > LARGEST_PICTURE:
        raise ValueError(
            f"scale={shown(scale)} makes a picture of {shown(size)} pixels; take a smaller one"
        )

    # Draw each tile below its caption, at the top left of its cell.
    canvas = Image.new(MODES[channels], size, "white")
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(CAPTION - MARGIN)
    draw.text((MARGIN, CAPTION / 2), title, fill="black", font=font, anchor="lm")
    for i, image in enumerate(images):
        row, column = divmod(i, columns)
        x = MARGIN + column * cell_width
        y = MARGIN + top + row * cell_height

        # Nearest neighbour: an enlarged pixel stays a sharp square.
        enlarged = picture_of(image).resize(tile, Image.Resampling.NEAREST)
        canvas.paste(enlarged, (x, y + caption))
        if labels is not None:
            middle = (x + tile[0] / 2, y + caption / 2)
            # Pillow's anchor "mm": the middle of the text, in both directions, is at this point.
            draw.text(middle, labels[i], fill="black", font=font, anchor="mm")
    return canvas


def _captions(labels: Any, count: int) -> list[str]:
    """Returns one caption per image; raises ValueError for another number of them."""
    if np.ndim(labels) == 0 and not isinstance(labels, Sequence):
        raise ValueError(f"labels must be a list of captions, got {shown(labels)}")
    if len(labels) != count:
        raise ValueError(f"labels must be one per image, {count}, got {len(labels)}")
    return [str(label) for label in labels]


def tidy_columns(count: int, period: int = 1) -> int:
    """Returns how many images to put in a row, so that the grid is close to a square.

    Args:
        count: number of images.
        period: number of images after which their labels repeat. If it fits, rows hold whole
            periods, so that every column shows one class.
    """
    for name, value in (("count", count), ("period", period)):
        if not is_int(value, 1, LARGEST):
            raise ValueError(f"{name} must be an integer of at least 1, got {shown(value)}")
    side = round(count**0.5)

    # Rows of more than 20 images, as of 1,000 classes, would be too wide: ignore the period.
    if period > max(20, side):
        period = 1

    # The multiple of the period that is closest to the side of a square.
    return min(count, period * max(1, round(side / period)))


def save_grid(path: str | Path, images: ArrayLike, **options: Any) -> None:
    """Writes `image_grid(images, **options)` to a picture file, creating its folder if needed."""
    path = _as_path("path", path)
    if path.suffix.lower() not in Image.registered_extensions():
        raise ValueError(f"path {path} must end as a picture's name does, such as .png")
    grid = image_grid(images, **options)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        grid.save(file)  # the format goes by the file's suffix


def save_npz(path: str | Path, images: ArrayLike, labels: ArrayLike | None = None) -> None:
    """Writes samples for guided-diffusion's evaluator of FID, creating the folder if needed.

    The file holds `arr_0` u8[N, H, W, 3] and, if there are labels, `arr_1` i64[N]. The evaluator's
    Inception network takes only colour images: gray ones are written with three equal channels.

    Args:
        path: the `.npz` file to write; OpenAI names it `samples_NxHxWx3.npz`.
        images: u8[N, H, W, C] with C of 1 or 3.
        labels: the classes, integers `[N]`, or None.

    Raises:
        ValueError: for arrays of another dtype or shape, or labels that are not one integer per
            image.
    """
    images = _as_images(images)
    if labels is not None:
        labels = as_numpy("labels", labels)
        if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(
                f"labels must be one integer per image, [{len(images)}], "
                f"got {labels.dtype}{list(labels.shape)}"
            )

    # A view: gray pixels are tripled only as they are written.
    rgb = np.broadcast_to(images, (*images.shape[:3], 3))
    path = _as_path("path", path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_npz(path, ImageSet.of(rgb, labels))


def save_png_folder(folder: str | Path, images: ArrayLike) -> None:
    """Writes samples as `000000.png`, `000001.png`, ..., which torch-fidelity and others read.

    Args:
        folder: the folder to write, new or empty.
        images: u8[N, H, W, C] with C of 1 or 3.

    Raises:
        ValueError: for arrays of another dtype or shape, or a folder that is not empty.
    """
    images = _as_images(images)
    folder = _as_path("folder", folder)

    # Pictures of another set among these would falsify a measurement.
    if folder.is_dir() and (found := sorted(file.name for file in folder.iterdir())):
        raise ValueError(
            f"{folder} must be new or empty, but holds {found[0]}; remove it or give another name"
        )
    write_png_folder(folder, ImageSet.of(images))


def _as_path(name: str, value: Any) -> Path:
    """Returns the path of a file or folder; raises ValueError for what cannot be one."""
    usable = isinstance(value, str | os.PathLike) and "\0" not in str(value)
    if not usable or not str(value):
        raise ValueError(f"{name} must be a path, got {shown(value)}")
    return Path(value)


def _as_images(images: ArrayLike, name: str = "images") -> np.ndarray:
    """Returns images as a NumPy array u8[N, H, W, 1 or 3]; raises ValueError for others."""
    images = as_numpy(name, images)
    shape = images.shape
    if (
        images.dtype != np.uint8
        or images.ndim != 4
        or shape[-1] not in MODES
        or not images.size
    ):
        raise ValueError(
            f"{name} must be u8[N, H, W, 1 or 3] and not empty, got "
            f"{images.dtype}{list(shape)}; to_uint8 converts samples in [-1, 1] to pixels"
        )
    return images

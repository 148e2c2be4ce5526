"""Between samples in [-1, 1] and files of pixels."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.core
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError

from cmjax.files import replacing, replacing_folder

MARGIN, CAPTION = 4, 16  # pixels around every tile, and above it for its caption
MODES = {1: "L", 3: "RGB"}  # Pillow's names, by channels
LARGEST_PICTURE = 2**26  # pixels; a small file can claim to be huge


def read_image(path: str | Path, channels: int) -> np.ndarray:
    """Reads a picture, upright.

    Args:
        path: of a PNG, JPEG or other still picture of 8 bits a channel, gray or colour, without transparency.
        channels: 1 for gray or 3 for colour; the other kind is converted.

    Returns:
        u8[H, W, channels].

    Raises:
        ValueError: naming the file and what is wrong with it.
    """
    try:
        with Image.open(path) as image:
            if getattr(image, "n_frames", 1) > 1:
                raise ValueError(f"{path} is animated; save one frame as a picture")
            if image.has_transparency_data:
                raise ValueError(f"{path} has transparency; flatten it onto a background first")
            if image.mode not in ("1", "L", "P", "RGB"):
                raise ValueError(
                    f"{path} is {image.mode}, not gray or RGB of 8 bits; convert it first"
                )
            if image.width * image.height > LARGEST_PICTURE:
                raise ValueError(
                    f"{path} has {image.width}x{image.height} pixels; make it smaller first"
                )
            upright = ImageOps.exif_transpose(image)
            return np.asarray(upright.convert(MODES[channels])).reshape(
                upright.height, upright.width, channels
            )
    except UnidentifiedImageError:
        raise ValueError(f"{path} is not a picture that can be read") from None
    except (
        OSError,
        SyntaxError,
        Image.DecompressionBombError,
    ) as error:  # Pillow calls a broken PNG a syntax error
        raise ValueError(
            f"cannot read {path}: {getattr(error, 'strerror', None) or error}"
        ) from None


def fit(image: np.ndarray, size: int) -> np.ndarray:
    """Crops the middle square of u8[H, W, C] and scales it to u8[size, size, C]."""
    if image.shape[:2] == (size, size):
        return image
    picture = Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)
    return np.asarray(ImageOps.fit(picture, (size, size), Image.Resampling.BOX)).reshape(
        size, size, -1
    )


def from_uint8(pixels: ArrayLike) -> np.ndarray:
    """Maps u8 pixels to samples in [-1, 1], f32."""
    return np.asarray(pixels, np.float32) / 127.5 - 1


def to_uint8(samples: ArrayLike) -> Any:
    """Maps samples in [-1, 1] to u8 pixels of the same shape, rounded and clipped.

    Returns:
        An array of NumPy, or under `jax.jit` a traced one.
    """
    xp = jnp if isinstance(samples, jax.core.Tracer) else np
    pixels = (xp.asarray(samples, xp.float32) + 1) * 127.5
    return xp.clip(xp.round(pixels), 0, 255).astype(np.uint8)


def grid(
    images: np.ndarray, *, columns: int, labels: Sequence[object] | None = None, scale: int = 1
) -> Image.Image:
    """Arranges images in a grid on white ground, row by row, with a caption over each if `labels` are given.

    Args:
        images: u8[N, H, W, C], C being 1 or 3.
        columns: images in a row.
        labels: N captions, or None.
        scale: enlargement of every pixel.

    Raises:
        ValueError: for arrays of another dtype or shape, another number of captions, or sizes below 1.
    """
    _check(images)
    if columns < 1 or scale < 1:
        raise ValueError(
            f"columns and scale must be at least 1, got columns={columns} and scale={scale}"
        )
    count, height, width, channels = images.shape
    if labels is not None and len(labels) != count:
        raise ValueError(f"labels must be one per image, {count}, got {len(labels)}")
    columns = min(columns, count)
    caption = 0 if labels is None else CAPTION
    tile = width * scale, height * scale
    cell = tile[0] + MARGIN, tile[1] + MARGIN + caption
    size = columns * cell[0] + MARGIN, -(-count // columns) * cell[1] + MARGIN
    canvas = Image.new("L" if channels == 1 else "RGB", size, "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(CAPTION - MARGIN)
    for i, image in enumerate(images):
        x, y = MARGIN + i % columns * cell[0], MARGIN + i // columns * cell[1]
        picture = Image.fromarray(image.squeeze(-1) if channels == 1 else image)
        canvas.paste(picture.resize(tile, Image.Resampling.NEAREST), (x, y + caption))
        if labels is not None:
            draw.text(
                (x + tile[0] / 2, y + caption / 2),
                str(labels[i]),
                fill="black",
                font=font,
                anchor="mm",
            )
    return canvas


def tidy_columns(count: int, period: int = 1) -> int:
    """Returns how many images to put in a row, close to a square.

    Args:
        count: number of images.
        period: after how many images their labels repeat; where a row can hold a whole number of
            periods, every column shows one class.
    """
    side = round(count**0.5)
    if period > max(20, side):
        period = 1
    return min(count, period * max(1, round(side / period)))


def save_grid(path: str | Path, images: np.ndarray, **options: Any) -> None:
    """Writes `grid(images, **options)` to a picture file, making its folder if need be."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        grid(images, **options).save(file)  # the format goes by the file's suffix


def save_npz(path: str | Path, images: np.ndarray, labels: ArrayLike | None = None) -> None:
    """Writes samples for the guided-diffusion evaluator of FID, making the file's folder if need be.

    The file holds `arr_0` u8[N, H, W, 3] and, if there are labels, `arr_1` i64[N], as OpenAI's `image_sample.py`
    writes it. Its Inception network takes colours alone: gray images are written as equal red, green and blue.

    Args:
        path: of the `.npz`; OpenAI calls it `samples_NxHxWx3.npz`.
        images: u8[N, H, W, C], C being 1 or 3.
        labels: integers `[N]`, or None.

    Raises:
        ValueError: for arrays of another dtype or shape, or labels that are not one integer per image.
    """
    _check(images)
    arrays = {"arr_0": np.broadcast_to(images, (*images.shape[:3], 3))}
    if labels is not None:
        labels = np.asarray(labels)
        if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(
                f"labels must be one integer per image, [{len(images)}], got {labels.dtype}{list(labels.shape)}"
            )
        arrays["arr_1"] = labels.astype(np.int64)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        np.savez(file, allow_pickle=False, **arrays)


def save_png_folder(folder: str | Path, images: np.ndarray) -> None:
    """Writes samples as `000000.png`, `000001.png`, ... of their own size, as torch-fidelity and others take them.

    Args:
        folder: to be made, or empty: pictures of another set between these would falsify the measurement.
        images: u8[N, H, W, C], C being 1 or 3.

    Raises:
        ValueError: for arrays of another dtype or shape, or a folder that holds anything.
    """
    _check(images)
    folder = Path(folder)
    if folder.is_dir() and (found := sorted(file.name for file in folder.iterdir())):
        raise ValueError(
            f"{folder} must be new or empty, but holds {found[0]}; remove it or give another name"
        )
    with replacing_folder(folder) as complete:
        for i, image in enumerate(images):
            save_png(complete / f"{i:06d}.png", image)


def save_png(path: Path, image: np.ndarray) -> None:
    """Writes u8[H, W, C], C being 1 or 3, as it is."""
    Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(path)


def _check(images):
    if (
        images.dtype != np.uint8
        or images.ndim != 4
        or images.shape[-1] not in (1, 3)
        or not images.size
    ):
        raise ValueError(
            f"images must be u8[N, H, W, 1 or 3] and not empty, got {images.dtype}{list(images.shape)}"
        )

"""Grids of images with captions, as one picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFont

from cmjax.configs import is_int, positive_int, shown
from cmjax.files import as_path, replacing
from cmjax.image_files import picture_of
from cmjax.images.checks import LARGEST_PICTURE, MODES, as_images

# Pixels around every tile of a grid.
MARGIN = 4

# Height in pixels of the caption above a tile.
CAPTION = 16


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
    images = as_images(images)
    if not is_int(columns, 1) or not is_int(scale, 1):
        raise ValueError(
            "columns and scale must be integers of at least 1, "
            f"got columns={shown(columns)} and scale={shown(scale)}"
        )
    columns = int(columns)  # NumPy's small integers would overflow
    scale = int(scale)
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
            # Pillow's anchor "mm" puts the middle of the text, in both directions, at this point.
            middle = (x + tile[0] / 2, y + caption / 2)
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
    count = positive_int("count", count)
    period = positive_int("period", period)

    # The side of the square that would hold all images.
    side = round(count**0.5)

    # Rows of more than 20 images, as of 1,000 classes, would be too wide: ignore the period.
    if period > max(20, side):
        period = 1

    # The multiple of the period that is closest to the side of a square.
    return min(count, period * max(1, round(side / period)))


def save_grid(path: str | Path, images: ArrayLike, **options: Any) -> None:
    """Writes `image_grid(images, **options)` to a picture file, creating its folder if needed."""
    path = as_path("path", path)
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind not in Image.SAVE:
        raise ValueError(f"path {path} must end as a picture's name does, such as .png")
    grid = image_grid(images, **options)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        grid.save(file)  # the format goes by the file's suffix

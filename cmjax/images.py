"""Between samples in [-1, 1] and picture files."""

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from PIL import Image, ImageDraw


def to_uint8(samples: jax.Array | np.ndarray) -> np.ndarray:
    """Maps samples in [-1, 1] to u8 pixels of the same shape, rounded and clipped."""
    pixels = (np.asarray(samples, np.float32) + 1) * 127.5
    return np.clip(np.round(pixels), 0, 255).astype(np.uint8)


def grid(images: np.ndarray, *, columns: int, labels: Sequence[object] | None = None, scale: int = 1) -> Image.Image:
    """Arranges images in a grid, with a caption over each if `labels` are given.

    Args:
        images: u8[N, H, W, C], C being 1 or 3.
        columns: images in a row.
        labels: N captions, or None.
        scale: enlargement of every pixel.

    Raises:
        ValueError: for arrays of another dtype or shape.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(f"images must be u8[N, H, W, 1 or 3], got {images.dtype}{list(images.shape)}")
    count, height, width, channels = images.shape
    rows = -(-count // columns)
    margin, caption = 4, 0 if labels is None else 12
    cell_w, cell_h = width * scale + margin, height * scale + margin + caption
    mode = "L" if channels == 1 else "RGB"
    canvas = Image.new(mode, (columns * cell_w + margin, rows * cell_h + margin), "white")
    draw = ImageDraw.Draw(canvas)
    for i, image in enumerate(images):
        x, y = margin + i % columns * cell_w, margin + i // columns * cell_h
        tile = Image.fromarray(image.squeeze(-1) if channels == 1 else image)
        canvas.paste(tile.resize((width * scale, height * scale), Image.Resampling.NEAREST), (x, y + caption))
        if labels is not None:
            draw.text((x + width * scale / 2, y + caption / 2), str(labels[i]), fill="black", anchor="mm")
    return canvas


def save_grid(path: str | Path, images: np.ndarray, **options) -> None:
    """Writes `grid(images, **options)` to a picture file."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    grid(images, **options).save(path)

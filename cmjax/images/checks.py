"""Checks of images."""

import numpy as np
from numpy.typing import ArrayLike

from cmjax.arrays import as_numpy

# Pillow's modes by numbers of channels.
MODES = {1: "L", 3: "RGB"}

# Number of pixels. A small file can declare a huge picture and exhaust the memory.
LARGEST_PICTURE = 2**26


def as_images(images: ArrayLike, name: str = "images") -> np.ndarray:
    """Returns images as a NumPy array u8[N, H, W, 1 or 3]; raises ValueError for others."""
    images = as_numpy(name, images)
    is_batch = images.ndim == 4 and images.shape[-1] in MODES and images.size > 0
    if not is_batch or images.dtype != np.uint8:
        raise ValueError(
            f"{name} must be u8[N, H, W, 1 or 3] and not empty, got "
            f"{images.dtype}{list(images.shape)}; to_uint8 converts samples in [-1, 1] to pixels"
        )
    return images

"""What `cmjax edit inpaint` repaints: a mask, a box, or the lower half."""

from pathlib import Path
from typing import TYPE_CHECKING

from cmjax.cli.edit_task import Given

if TYPE_CHECKING:
    import numpy as np


def read_hole(mask: Path | None, box: list[int] | None, given: Given) -> "np.ndarray":
    """Returns what is to be repainted, u8[H, W, 1]: a mask, a box, or else the lower half.

    Args:
        mask: file of a picture, white (255) where it is to be repainted, or None.
        box: `[x0, y0, x1, y1]`, or None.
        given: the picture that the mask is for.

    Raises:
        ValueError: if the mask has another size or is black, or the box is not in the picture.
    """
    from cmjax.images import read_image

    height, width = given.pixels.shape[:2]
    if mask is None:
        return _box(box or [0, height // 2, width, height], height, width)
    hole = read_image(mask, 1)
    if hole.shape[:2] != (height, width):
        raise ValueError(
            f"--mask: {mask} is {hole.shape[1]}x{hole.shape[0]}, "
            f"but {given.path} is {width}x{height}"
        )
    if not hole.any():
        raise ValueError("--mask: it is black all over; white is what is repainted")
    return hole


def _box(corners: list[int], height: int, width: int) -> "np.ndarray":
    """Returns a mask u8[H, W, 1] that is 255 in a box and 0 around it."""
    import numpy as np

    if len(corners) != 4:
        raise ValueError(f"--mask-box must be four numbers x0,y0,x1,y1, got {len(corners)}")
    x0, y0, x1, y1 = corners
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise ValueError(
            f"--mask-box must have 0 <= x0 < x1 <= {width} and 0 <= y0 < y1 <= {height}, "
            f"the picture's size, got {x0},{y0},{x1},{y1}"
        )

    # Rows are y and columns x; the second corner is just outside.
    mask = np.zeros((height, width, 1), np.uint8)
    mask[y0:y1, x0:x1] = 255
    return mask

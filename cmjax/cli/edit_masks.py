"""What `cmjax edit inpaint` repaints: a mask, a box, or the lower half."""

from pathlib import Path
from typing import TYPE_CHECKING

from cmjax.cli import terminal
from cmjax.cli.edit_task import Given

if TYPE_CHECKING:
    import numpy as np


def read_hole(
    mask: Path | None, box: list[int] | None, given: Given, size: int
) -> "np.ndarray":
    """Returns what is to be repainted: a mask, a box, or else the lower half.

    Args:
        mask: file of a picture, white (255) where it is to be repainted, or None.
        box: `[x0, y0, x1, y1]`, or None.
        given: the picture that the mask is for.
        size: height and width of the model's pictures.

    Returns:
        The mask u8[size, size, 1], cropped and resized as the picture is for the model.

    Raises:
        ValueError: if the mask has another size or is black, the box is not in the picture, or
            either leaves nothing to repaint in the middle square, which is what the model sees.
    """
    from cmjax.images import center_crop_resize

    height, width = given.pixels.shape[:2]
    if mask is None:
        hole = _box(box or [0, height // 2, width, height], height, width)
    else:
        hole = _read(mask, given)

    resized = center_crop_resize(hole, size)
    if not resized.any():
        name = "--mask" if mask else "--mask-box"
        side = min(height, width)
        raise ValueError(
            f"{name}: nothing in the middle {side}x{side} pixels of {given.path} is to be "
            "repainted, and only they are edited; crop the picture, or move the mask"
        )
    return resized


def _read(mask: Path, given: Given) -> "np.ndarray":
    """Returns the mask in a file, which must be as large as the picture."""
    from cmjax.images import read_image

    height, width = given.pixels.shape[:2]
    hole = read_image(mask, 1)
    if hole.shape[:2] != (height, width):
        raise ValueError(
            f"--mask: {mask} is {hole.shape[1]}x{hole.shape[0]}, "
            f"but {given.path} is {width}x{height}; draw it on a copy of the picture"
        )
    if not hole.any():
        raise ValueError("--mask: it is black all over; white is what is repainted")
    brightest = int(hole.max())
    if brightest == 1:
        raise ValueError(
            f"--mask: the brightest pixel of {mask} is 1 of 255, all but black; write the mask "
            "with 255 where it has 1"
        )
    if brightest < 255:
        terminal.note(
            f"Note: --mask: the brightest pixel of {mask} is {brightest} of 255, so that even "
            "there a part of the picture is kept; white is repainted wholly"
        )
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

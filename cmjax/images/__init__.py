"""Images: samples in [-1, 1], pixels in 0..255, and pictures in files.

All arguments that are arrays may be of NumPy or of JAX.
"""

from cmjax.images.grids import image_grid, save_grid, tidy_columns
from cmjax.images.pixels import center_crop_resize, from_uint8, to_pil, to_uint8
from cmjax.images.reading import check_picture, read_image
from cmjax.images.saving import save_npz, save_png_folder

__all__ = [
    "center_crop_resize",
    "check_picture",
    "from_uint8",
    "image_grid",
    "read_image",
    "save_grid",
    "save_npz",
    "save_png_folder",
    "tidy_columns",
    "to_pil",
    "to_uint8",
]

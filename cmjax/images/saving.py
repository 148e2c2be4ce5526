"""Writing of samples in the formats that programs for evaluation read."""

from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from cmjax.arrays import as_numpy
from cmjax.files import as_path
from cmjax.image_files import ImageSet, write_npz, write_png_folder
from cmjax.images.checks import as_images


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
    images = as_images(images)
    if labels is not None:
        labels = as_numpy("labels", labels)
        if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(
                f"labels must be one integer per image, [{len(images)}], "
                f"got {labels.dtype}{list(labels.shape)}"
            )
        if labels.size and labels.max() > np.iinfo(np.int64).max:
            raise ValueError(f"labels has numbers beyond int64, up to {labels.max()}")

    # A view without copies: gray pixels are tripled while they are written.
    rgb = np.broadcast_to(images, (*images.shape[:3], 3))
    path = as_path("path", path)
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
    images = as_images(images)
    folder = as_path("folder", folder)

    # Pictures of another set among these would falsify a measurement.
    found = []
    if folder.is_dir():
        found = sorted(file.name for file in folder.iterdir())
    if found:
        raise ValueError(
            f"{folder} must be new or empty, but holds {found[0]}; remove it or give another name"
        )
    write_png_folder(folder, ImageSet.of(images))

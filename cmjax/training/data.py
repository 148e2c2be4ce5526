"""Images and labels from the files people have, and which of them a step trains on."""

import gzip
import struct
from pathlib import Path

import numpy as np

from cmjax.images import fit, read_image

PICTURES = (".png", ".jpg", ".jpeg", ".webp")


def load_images(path: str | Path, size: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Reads images u8[N, H, W, C] and labels i32[N] from an `.npz`, an IDX file or a folder.

    Args:
        path: an `.npz` with `x_train` and `y_train`, or `images` and `labels` (zeros if absent); an
            IDX image file such as `train-images-idx3-ubyte.gz`, with `labels-idx1` beside it; or a folder
            of pictures, read in colour, with labels zero.
        size: height and width; the middle squares of a folder's pictures are scaled to it.

    Raises:
        ValueError: if the file holds no such arrays, or images of another size.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in PICTURES)
        if not files or size is None:
            raise ValueError(f"{path} must hold pictures ({', '.join(PICTURES)}), and needs a size to scale them to")
        images = np.stack([fit(read_image(file, 3), size) for file in files])
        labels = np.zeros(len(images))
    elif path.suffix == ".npz":
        with np.load(path) as arrays:
            image_key = next((k for k in ("x_train", "images") if k in arrays), None)
            if image_key is None:
                raise ValueError(f"{path} has neither 'x_train' nor 'images', but {sorted(arrays)}")
            images = arrays[image_key]
            label_key = {"x_train": "y_train", "images": "labels"}[image_key]
            labels = arrays[label_key] if label_key in arrays else np.zeros(len(images))
    else:
        images = read_idx(path)
        labels = read_idx(path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1")))
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or len(images) != len(labels):
        raise ValueError(
            f"{path} must hold u8 images [N, H, W(, C)] with as many labels, "
            f"got {images.dtype}{list(images.shape)} and {len(labels)} labels"
        )
    if size is not None and images.shape[1:3] != (size, size):
        raise ValueError(f"{path} holds images of {images.shape[2]}x{images.shape[1]}, but {size}x{size} are wanted")
    return images.reshape(*images.shape[:3], -1), labels.astype(np.int32)


def read_idx(path: str | Path) -> np.ndarray:
    """Reads an IDX file of unsigned bytes, gzipped or not (format: yann.lecun.com/exdb/mnist).

    Raises:
        ValueError: if it is not one, or is cut short.
    """
    path = Path(path)
    raw = path.read_bytes()
    raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    if len(raw) < 4 or raw[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is neither an .npz nor an IDX file of unsigned bytes")
    rank = raw[3]
    shape = struct.unpack(f">{rank}I", raw[4 : 4 + 4 * rank])
    values = np.frombuffer(raw, np.uint8, offset=4 + 4 * rank)
    if values.size != np.prod(shape):
        raise ValueError(f"{path} announces {shape} but holds {values.size} bytes")
    return values.reshape(shape)


def batch_indices(seed: int, step: int, batch_size: int, count: int) -> np.ndarray:
    """Returns the indices of the examples of a step: epochs without replacement, a function of seed and step."""
    per_epoch = count // batch_size
    if per_epoch == 0:
        raise ValueError(f"batch_size {batch_size} is larger than the data set of {count}")
    epoch, position = divmod(step, per_epoch)
    order = np.random.default_rng([seed, epoch]).permutation(count)
    return order[position * batch_size : (position + 1) * batch_size]

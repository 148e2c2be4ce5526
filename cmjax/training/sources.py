"""Training data from the files people have: `.npz`, IDX, and folders of pictures."""

import gzip
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cmjax.images import MODES, center_crop_resize, read_image

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
NPZ_NAMES = (("x_train", "y_train"), ("images", "labels"), ("arr_0", "arr_1"))  # of data and labels
# "data": u8[H, W, C], or floats ready for training; "class_labels": an integer.
Record = Mapping[str, Any]


class Source(Protocol):
    """What Grain calls a `RandomAccessDataSource`; several threads read it."""

    def __len__(self) -> int:
        """Number of records."""
        ...

    def __getitem__(self, index: int, /) -> Record:
        """Record number `index`."""
        ...


class Arrays:
    """Records in memory."""

    def __init__(self, data: np.ndarray, labels: np.ndarray | None = None):
        """Takes data `[N, ...]` and labels i32[N], or None."""
        self.data = data
        self.labels = labels

    def __len__(self) -> int:
        """Number of records."""
        return len(self.data)

    def __getitem__(self, index: int) -> Record:
        """Record number `index`."""
        if self.labels is None:
            return {"data": self.data[index]}
        return {"data": self.data[index], "class_labels": self.labels[index]}


class Pictures:
    """A folder of pictures, read when they are asked for; its subfolders are the classes."""

    def __init__(self, folder: str | Path, size: int, channels: int = 3):
        """Finds the pictures, in order of their names.

        Args:
            folder: of the pictures, or of a folder of pictures for each class.
            size: height and width; the middle square of each picture is scaled to it.
            channels: 1 or 3.

        Raises:
            ValueError: if there are no pictures in the folder or in one of its classes, or pictures
                in both the folder and its classes; or for another number of channels.
        """
        if channels not in MODES:
            raise ValueError(f"channels must be 1 or 3, got {channels}")
        folder = Path(folder)
        self.size = size
        self.channels = channels

        subfolders = sorted(
            path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
        )
        classes = {path.name: _find_pictures(path, "**/*") for path in subfolders}
        loose = _find_pictures(folder, "*")
        _check_folder(folder, classes, loose)
        self.classes = [] if loose else list(classes)
        files_by_class = [loose] if loose else classes.values()
        self.files = [(file, label) for label, files in enumerate(files_by_class) for file in files]

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.files)

    def __getitem__(self, index: int) -> Record:
        """Picture number `index`, u8[size, size, channels]."""
        file, label = self.files[index]
        record: dict[str, Any] = {
            "data": center_crop_resize(read_image(file, self.channels), self.size)
        }
        if self.classes:
            record["class_labels"] = np.int32(label)
        return record


def open_source(path: str | Path, size: int | None = None, channels: int = 3) -> Source:
    """Opens an `.npz`, an IDX file or a folder of pictures.

    Args:
        path: an `.npz` with `x_train` and `y_train`, `images` and `labels`, or `arr_0` and `arr_1`
            (labels may be absent): data u8[N, H, W(, C)], or floats `[N, ...]` that are scaled
            already; an IDX image file such as `train-images-idx3-ubyte.gz`, with `labels-idx1` next
            to it; or a folder of pictures, whose subfolders, if it has any, are the classes in
            order of their names.
        size: height and width of images; a folder's pictures are scaled to it.
        channels: of a folder's pictures, 1 or 3.

    Returns:
        Records with "data" and, if there are labels, "class_labels".

    Raises:
        ValueError: if the file holds no such arrays, images of another size, or numbers that are
            not finite.
        OSError: if it cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        if size is None:
            raise ValueError(f"{path} is a folder of pictures, and needs a size to scale them to")
        return Pictures(path, size, channels)
    data, labels = _read_npz(path) if path.suffix == ".npz" else _read_idx_pair(path)
    data = _checked_data(path, data, size)
    return Arrays(data, None if labels is None else _checked_labels(path, labels, len(data)))


def read_idx(path: str | Path) -> np.ndarray:
    """Reads an IDX file of unsigned bytes, gzipped or not (format: yann.lecun.com/exdb/mnist).

    Raises:
        ValueError: if it is not one, or is cut short.
    """
    path = Path(path)
    raw = path.read_bytes()
    try:
        raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is broken or cut short: {error}") from None

    # Two zero bytes, the type (8 is u8), the rank, then each size as a big-endian u32.
    if len(raw) < 4 or raw[:3] != b"\0\0\x08" or len(raw) < 4 + 4 * raw[3]:
        raise ValueError(f"{path} is neither an .npz nor an IDX file of unsigned bytes")
    rank = raw[3]
    shape = struct.unpack(f">{rank}I", raw[4 : 4 + 4 * rank])
    values = np.frombuffer(raw, np.uint8, offset=4 + 4 * rank)
    if values.size != np.prod(shape):
        raise ValueError(f"{path} announces {shape} but holds {values.size} bytes")
    return values.reshape(shape)


def first_not_finite(data: np.ndarray) -> int | None:
    """Returns the index of the first sample that holds a NaN or an infinity, or None."""
    is_bad = ~np.isfinite(data).reshape(len(data), -1).all(-1)
    return int(is_bad.argmax()) if is_bad.any() else None


def _checked_data(path, data, size):
    """Images u8[N, H, W, C], or floats f32[N, ...]."""
    if data.size and data.dtype == np.uint8 and data.ndim in (3, 4):
        data = data.reshape(*data.shape[:3], -1)
        if size is not None and data.shape[1:3] != (size, size):
            raise ValueError(
                f"{path} holds images of {data.shape[2]}x{data.shape[1]}, "
                f"but {size}x{size} are wanted"
            )
        return data
    if data.size and np.issubdtype(data.dtype, np.floating) and data.ndim >= 2:
        with np.errstate(over="ignore"):
            data = data.astype(np.float32, copy=False)
        index = first_not_finite(data)
        if index is not None:
            raise ValueError(
                f"{path}: sample {index} is not finite in float32; remove or repair it"
            )
        return data
    raise ValueError(
        f"{path} must hold u8[N, H, W(, C)] or floats [N, ...], got {data.dtype}{list(data.shape)}"
    )


def _checked_labels(path, labels, count):
    """Labels i32[count]."""
    if labels.size != count or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"{path} must have an integer label for each of {count} samples, "
            f"got {labels.dtype}{list(labels.shape)}"
        )
    return labels.reshape(-1).astype(np.int32)


def _read_npz(path):
    """Returns (data, labels or None)."""
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            for data, labels in NPZ_NAMES:
                if data in arrays:
                    return arrays[data], arrays[labels] if labels in arrays else None
            found = sorted(arrays)
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is not an .npz that can be read: {error}") from None
    names = " nor ".join(repr(data) for data, _ in NPZ_NAMES)
    raise ValueError(f"{path} has neither {names}, but {found}")


def _read_idx_pair(path):
    """Returns (images, labels or None): labels are in the file of that name next to the images."""
    labels = path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1"))
    if labels == path or not labels.exists():
        return read_idx(path), None
    return read_idx(path), read_idx(labels)


def _find_pictures(folder, pattern):
    """Returns paths of the pictures, in order of their names and without hidden ones."""
    found = []
    for file in folder.glob(pattern):
        is_hidden = any(part[0] == "." for part in file.relative_to(folder).parts)
        if file.suffix.lower() in PICTURES and not is_hidden:
            found.append(str(file))
    return sorted(found)


def _check_folder(folder, classes, loose):
    """Checks that pictures are all in the folder, or that each class has some."""
    empty = [name for name, files in classes.items() if not files]
    if loose and len(empty) < len(classes):
        raise ValueError(
            f"{folder} holds pictures and also folders of pictures, its classes; "
            f"move {loose[0]} into one"
        )
    if not loose and len(empty) == len(classes):
        raise ValueError(
            f"{folder} must hold pictures ({', '.join(PICTURES)}), "
            "or a folder of them for each class"
        )
    if not loose and empty:
        raise ValueError(
            f"{folder / empty[0]} is a class without pictures ({', '.join(PICTURES)}); remove it"
        )

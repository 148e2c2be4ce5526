"""Training data from common files: `.npz`, IDX, and folders of pictures or of their latents."""

import hashlib
import os
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cmjax.arrays import add_to_digest
from cmjax.configs import LARGEST
from cmjax.files import open_regular, path_of, text_of
from cmjax.images import center_crop_resize, read_image
from cmjax.images.checks import MODES
from cmjax.training.array_files import read_arrays
from cmjax.training.moments import Moments, holds_moments
from cmjax.training.picture_folders import (
    check_classes,
    endings_of_others,
    pictures_among,
    visible_files,
)

_SAMPLED = 64  # pictures, at least, whose content is part of a fingerprint
_SAMPLED_BYTES = 2**20  # of each of them

# "data": u8[H, W, C], or floats that are scaled already; "class_labels": an integer; "noise": what
# the sample was made from, floats in the shape of "data".
Record = Mapping[str, Any]


class Source(Protocol):
    """Records by index, as Grain's `RandomAccessDataSource`; several threads read it at a time."""

    def __len__(self) -> int:
        """Number of records."""
        ...

    def __getitem__(self, index: int, /) -> Record:
        """Record number `index`."""
        ...


class Arrays:
    """A source of records in memory."""

    def __init__(
        self,
        data: np.ndarray,
        labels: np.ndarray | None = None,
        noise: np.ndarray | None = None,
        unread_labels: str = "",
    ):
        """Takes the records of all samples.

        Args:
            data: samples, `[N, ...]`.
            labels: i32[N], or None.
            noise: what the samples were made from, f32 in the shape of `data`, or None.
            unread_labels: the end of an error for data without labels, as in `StoredArrays`.
        """
        self.data = data
        self.labels = labels
        self.unread_labels = unread_labels
        arrays = {"data": data, "class_labels": labels, "noise": noise}
        self._arrays = {name: array for name, array in arrays.items() if array is not None}

    def __len__(self) -> int:
        """Number of records."""
        return len(self.data)

    def __getitem__(self, index: int) -> Record:
        """Record number `index`."""
        return {name: array[index] for name, array in self._arrays.items()}

    def fingerprint(self) -> dict[str, Any]:
        """Returns, as JSON, what tells these records from others: shapes, and a digest of all."""
        digest = hashlib.blake2b(digest_size=16)
        for array in self._arrays.values():
            add_to_digest(digest, f"{array.dtype}{array.shape}", array)
        return {
            "samples": len(self),
            "shape": list(self.data.shape[1:]),
            "dtype": str(self.data.dtype),
            "digest": digest.hexdigest(),
        }


class Pictures:
    """A folder of pictures, which are read when needed; its subfolders are the classes."""

    def __init__(self, folder: str | Path, size: int, channels: int = 3):
        """Finds the pictures, in order of their names.

        Args:
            folder: folder of pictures, or of a folder of pictures for each class.
            size: height and width, in pixels; the middle square of each picture is scaled to it.
            channels: 1 for gray or 3 for RGB.

        Raises:
            ValueError: if the folder or one of its classes has no pictures, if both the folder and
                its classes have some, if these are the parts of a data set, such as train and test,
                or for another number of channels.
        """
        if channels not in MODES:
            raise ValueError(f"channels must be 1 or 3, got {channels}")
        folder = Path(folder)
        self.folder = folder
        self.size = size
        self.channels = channels

        # In order of their names, so that labels do not depend on the file system.
        subfolders = sorted(
            path
            for path in folder.iterdir()
            if path.is_dir() and not path.name.startswith(".")
        )
        found = {path: visible_files(path, below=True) for path in subfolders}
        classes = {
            text_of(path.name): pictures_among(files) for path, files in found.items()
        }
        own_files = visible_files(folder, below=False)
        loose = pictures_among(own_files)
        check_classes(folder, classes, loose)
        self.left_out = endings_of_others(chain(own_files, *found.values()))

        # Pairs (path, label) of all pictures, class by class. Without classes every label is 0, and
        # no record has one.
        self.classes = list(classes)
        files_by_class = list(classes.values())
        if loose:
            self.classes = []
            files_by_class = [loose]
        self.files = []
        for label, files in enumerate(files_by_class):
            self.files.extend((file, label) for file in files)

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.files)

    def __getitem__(self, index: int) -> Record:
        """Record number `index`, with "data" u8[size, size, channels]."""
        # Read and scaled at every epoch again, so that folders may be larger than the memory.
        file, label = self.files[index]
        record: dict[str, Any] = {
            "data": center_crop_resize(read_image(file, self.channels), self.size)
        }
        if self.classes:
            record["class_labels"] = np.int32(label)
        return record

    def fingerprint(self) -> dict[str, Any]:
        """Returns, as JSON, what tells these pictures from others.

        That is a digest of the names and sizes of all files, and of the content of a few of them.
        """
        digest = hashlib.blake2b(digest_size=16)
        every = max(1, len(self.files) // _SAMPLED)
        for number, (file, _) in enumerate(self.files):
            name = Path(file).relative_to(self.folder).as_posix()
            line = f"{name} {os.stat(file).st_size}\n"
            digest.update(line.encode(errors="surrogateescape"))
            if number % every == 0:
                with open_regular(file) as content:
                    digest.update(content.read(_SAMPLED_BYTES))
        return {
            "samples": len(self),
            "classes": len(self.classes),
            "digest": digest.hexdigest(),
        }


def open_source(
    path: str | Path, size: int | None = None, channels: int = 3
) -> Arrays | Pictures | Moments:
    """Opens an `.npz`, an IDX file, a folder of pictures, or one of `encode_folder`.

    Args:
        path: one of

            * an `.npz` with `x_train` and `y_train`, `images` and `labels`, or `arr_0` and `arr_1`,
              where labels may be absent; data are u8[N, H, W(, C)], or floats `[N, ...]` that are
              scaled already, and also `noise`, if they are `pairs.reflow_pairs`;
            * an IDX image file such as `train-images-idx3-ubyte.gz`; its labels are read from
              `train-labels-idx1-ubyte.gz` in the same folder, if that exists;
            * a folder of pictures, whose subfolders, if it has any, are the classes in order of
              their names;
            * a folder that `cmjax encode` has made of any of these.
        size: height and width in pixels, which a folder's pictures are scaled to, and images of a
            file must have; None for any, with files only.
        channels: 1 or 3, of a folder's pictures.

    Returns:
        Records with "data", "class_labels" if there are labels, and "noise" if there is some.

    Raises:
        ValueError: if the file does not hold such arrays, or holds images of another size or
            numbers that are not finite; if a folder has no pictures.
        OSError: if the file cannot be read.
    """
    path = path_of(path)
    if path.is_dir() and holds_moments(path):
        return Moments(path)
    if path.is_dir():
        if size is None:
            raise ValueError(
                f"{path} is a folder of pictures, and needs a size to scale them to: give size=N, "
                "or --size N"
            )
        if channels not in MODES:
            raise ValueError(
                f"{path} is a folder of pictures, which have 1 or 3 channels, but {channels} are "
                "wanted; if these are latents, cmjax encode makes them of pictures"
            )
        return Pictures(path, size, channels)

    # A file: everything is read into memory and checked once.
    stored = read_arrays(path)
    data = _checked_data(path, stored.data, size)
    labels = stored.labels
    if labels is not None:
        labels = _checked_labels(path, labels, len(data))
    noise = stored.noise
    if noise is not None:
        noise = _checked_noise(path, noise, data.shape)
    return Arrays(data, labels, noise, stored.unread_labels)


def check_outside(source: Source, out: str | Path) -> None:
    """Checks that a folder to write is not inside the pictures that are read.

    Raises:
        ValueError: if what is written there would become pictures, or a class of them.
    """
    if not isinstance(source, Pictures):
        return
    written = Path(os.path.realpath(out))
    folder = os.path.realpath(source.folder)
    if not written.is_relative_to(folder):
        return

    # Hidden folders are not looked into.
    if not any(part.startswith(".") for part in written.relative_to(folder).parts):
        raise ValueError(
            f"{out} is inside {source.folder}, where its files would become data; choose a folder "
            "outside"
        )


def first_not_finite(data: np.ndarray) -> int | None:
    """Returns the index of the first sample that holds a NaN or an infinity, or None."""
    # Samples of any shape, flattened to [N, -1].
    is_bad = ~np.isfinite(data).reshape(len(data), -1).all(-1)
    if not is_bad.any():
        return None
    return int(is_bad.argmax())


def _checked_data(path, data, size):
    """Returns images u8[N, H, W, C] or floats f32[N, ...], checked."""
    # Pixels; gray images [N, H, W] get a channel.
    if data.size and data.dtype == np.uint8 and data.ndim in (3, 4):
        data = data.reshape(*data.shape[:3], -1)
        if size is not None and data.shape[1:3] != (size, size):
            raise ValueError(
                f"{path} holds images of {data.shape[2]}x{data.shape[1]}, "
                f"but {size}x{size} are wanted"
            )
        return data

    # Floats. Those that are too large for float32 become infinite, and are found as such.
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
    """Returns labels i32[count], checked. Only a network says which of them are too large."""
    # CIFAR-10 in Keras's layout has labels [N, 1], so only the number of labels counts.
    if labels.size != count or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"{path} must have an integer label for each of {count} samples, "
            f"got {labels.dtype}{list(labels.shape)}; convert them, as by labels.astype(int), or "
            "labels.argmax(1) of one-hot labels"
        )

    # Before the cast, which would turn large labels into other ones.
    labels = labels.reshape(-1)
    is_wrong = (labels < 0) | (labels > LARGEST)
    if is_wrong.any():
        index = int(is_wrong.argmax())
        raise ValueError(
            f"{path}: sample {index} has label {labels[index]}; labels must be 0 to {LARGEST}"
        )
    return labels.astype(np.int32)


def _checked_noise(path, noise, shape):
    """Returns the noise that samples were made from, f32 in the shape of the data, checked."""
    if noise.shape != shape or not np.issubdtype(noise.dtype, np.floating):
        raise ValueError(
            f"{path} must have noise of floats in the shape of its data, {list(shape)}, "
            f"got {noise.dtype}{list(noise.shape)}"
        )
    with np.errstate(over="ignore"):
        noise = noise.astype(np.float32, copy=False)
    index = first_not_finite(noise)
    if index is not None:
        raise ValueError(f"{path}: the noise of sample {index} is not finite")
    return noise

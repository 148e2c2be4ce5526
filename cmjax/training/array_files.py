"""Arrays of training data from files: `.npz`, and the IDX files of MNIST."""

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from cmjax.files import as_path, open_regular

# Names of (data, labels) in an .npz: Keras's MNIST, this package's, and the guided-diffusion
# evaluator's.
NPZ_NAMES = (("x_train", "y_train"), ("images", "labels"), ("arr_0", "arr_1"))
# Names that labels may have in other files.
LABELS = ("y_train", "labels", "label", "y", "classes", "targets", "class_labels")
NOISE = "noise"  # name of the noise that samples were made from, next to any of these
_GZIP = b"\x1f\x8b"
NPY = b"\x93NUMPY"
ZIP = b"PK"
_LARGEST_RATIO = 1100  # of sizes before and after gzip, whose format allows about 1,030


class StoredArrays(NamedTuple):
    """The arrays of a file of training data, as they are stored.

    Attributes:
        data: samples, `[N, ...]`.
        labels: one for each sample, or None.
        noise: the noise that each sample was made from, in the shape of `data`, or None.
        unread_labels: the end of an error for data without labels: which array may be them.
    """

    data: np.ndarray
    labels: np.ndarray | None = None
    noise: np.ndarray | None = None
    unread_labels: str = ""


def read_arrays(path: Path) -> StoredArrays:
    """Returns the arrays of an `.npz`, or of an IDX file and the labels next to it.

    Raises:
        ValueError: if the file does not hold such arrays.
        OSError: if it cannot be read.
    """
    if path.suffix.lower() == ".npz":
        return _read_npz(path)

    # MNIST's names: train-images-idx3-ubyte.gz and train-labels-idx1-ubyte.gz.
    labels = path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1"))
    if labels == path or not labels.exists():
        return StoredArrays(read_idx(path))
    return StoredArrays(read_idx(path), read_idx(labels))


def read_idx(path: str | Path) -> np.ndarray:
    """Reads an IDX file of unsigned bytes, gzipped or not (format: yann.lecun.com/exdb/mnist).

    Raises:
        ValueError: if the file has another format, or is cut short.
    """
    path = as_path("path", path)
    try:
        with open_regular(path) as file:
            # Gzip is found by its magic number: the suffix of a download is not to be relied on.
            is_gzip = file.read(2) == _GZIP
            file.seek(0)
            largest = path.stat().st_size
            if not is_gzip:
                return _parse_idx(path, file, largest)
            with gzip.GzipFile(fileobj=file) as content:
                return _parse_idx(path, content, largest * _LARGEST_RATIO)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is broken or cut short: {error}") from None


def _parse_idx(path: Path, file: Any, largest: int) -> np.ndarray:
    """Reads the array of an IDX file that can hold at most `largest` bytes."""
    # The header: two zero bytes, the type (8 is u8), the rank, then each size as a big-endian u32.
    start = file.read(4)
    rank = start[3] if len(start) == 4 else 0
    sizes = file.read(4 * rank)
    if start[:3] != b"\0\0\x08" or len(sizes) < 4 * rank:
        raise ValueError(
            f"{path} is neither an .npz nor an IDX file of unsigned bytes; give one of these, or a "
            "folder of pictures; np.savez('x.npz', images=images, labels=labels) writes an .npz"
        )
    shape = struct.unpack(f">{rank}I", sizes)

    # The bytes after it are the array, in row-major order. No more is read than is announced, and
    # nothing if that is more than the file can hold.
    count = math.prod(shape)
    content = file.read(count + 1) if count <= largest else b""
    if len(content) != count:
        held = "more" if len(content) > count else len(content)
        raise ValueError(f"{path} announces {shape} but holds {held} bytes")
    return np.frombuffer(content, np.uint8).reshape(shape)


def _read_npz(path):
    """Returns the arrays of an `.npz`."""
    # `np.load` refuses pickled objects by default, which could run code.
    file = open_regular(path)
    try:
        with file, _opened_npz(file) as arrays:
            stored = _known_arrays(arrays)
            found = sorted(arrays)
    except MemoryError:
        raise ValueError(f"{path} announces arrays larger than the memory") from None
    except Exception as error:
        # A damaged zip archive or header makes NumPy raise errors of any kind.
        if isinstance(error, OSError) and error.errno:
            raise
        raise ValueError(f"{path} is not an .npz that can be read: {error}") from None

    if stored is None:
        names = " nor ".join(repr(data) for data, _ in NPZ_NAMES)
        raise ValueError(f"{path} has neither {names}, but {found}")
    return stored


def check_numpy_file(file: IO[bytes]) -> None:
    """Raises ValueError for a file that is neither an `.npz` nor a `.npy`, by its first bytes.

    `np.load` takes any other file for a pickle, and says how to load that.
    """
    first = file.read(len(NPY))
    file.seek(0)
    if first != NPY and not first.startswith(ZIP):
        raise ValueError("it is neither an archive nor an array of NumPy")


def _opened_npz(file: IO[bytes]) -> np.lib.npyio.NpzFile:
    """Opens the arrays of an `.npz`; raises ValueError for a single array."""
    check_numpy_file(file)
    found = np.load(file)
    if isinstance(found, np.ndarray):
        raise ValueError("it holds a single array, as a .npy does")
    return found


def _known_arrays(arrays: np.lib.npyio.NpzFile) -> StoredArrays | None:
    """Returns the arrays under the first of `NPZ_NAMES` that there are; None if there are none."""
    for data, labels in NPZ_NAMES:
        if data in arrays:
            return StoredArrays(
                data=_array(arrays, data),
                labels=_array(arrays, labels) if labels in arrays else None,
                noise=_array(arrays, NOISE) if NOISE in arrays else None,
                unread_labels="" if labels in arrays else _unread(arrays, data, labels),
            )
    return None


def _unread(arrays: np.lib.npyio.NpzFile, data: str, labels: str) -> str:
    """Says which array may be the labels of the data under another name, or returns ""."""
    # Those of another array of data are no labels of this.
    others = {label for name, label in NPZ_NAMES if name in arrays}
    for name in LABELS:
        if name in arrays and name not in others:
            return f"; if {name!r} are the labels of {data!r}, name them {labels!r}"
    return ""


def _array(arrays: np.lib.npyio.NpzFile, name: str) -> np.ndarray:
    """Returns an array of an `.npz`; raises ValueError for an entry that is none."""
    # NumPy returns the bytes of an entry that is no array, which any archive may have.
    found = arrays[name]
    if not isinstance(found, np.ndarray):
        raise ValueError(f"its entry {name!r} is no array")
    return found

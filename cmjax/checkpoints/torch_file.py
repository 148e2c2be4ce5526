"""PyTorch's `.pt` and `.bin` files, read without PyTorch and without running what they contain.

Such a file is a zip archive (PyTorch 1.6 and later): one pickle, which says how to build tensors,
and the raw bytes of every storage, uncompressed. `pickle_machine.py` runs the pickle, and calls
nothing.
"""

import dataclasses
import io
import math
import pickletools
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from cmjax.checkpoints.archives import BoundedReads
from cmjax.checkpoints.pickle_machine import Machine, Name, RefusedError, brief
from cmjax.checkpoints.tensors import StoredTensor, check_file
from cmjax.files import open_regular
from cmjax.printing import one_line

# Kinds of storages in torch -> dtypes in NumPy.
STORAGES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
    "ComplexFloatStorage": np.dtype(np.complex64),  # rotary frequencies, in some files
}
# Bytes of the pickle. That of the largest released model has under a tenth of one MiB; parsing more
# takes long, and many times the memory.
LARGEST_PICKLE = 4 * 2**20
MOST_AXES = 32  # what every version of NumPy can view
# Tensors may overlap and repeat values, but claim at most this many times the size of the file.
MOST_SHARING = 4
ZIP_MAGIC = b"PK\x03\x04"


def open_torch(path: Path) -> dict[str, StoredTensor]:
    """Lists the tensors of a `.pt` or `.bin` file that holds a state dict; only its pickle is read.

    Raises:
        ValueError: if the file is damaged, holds something else, or its pickle asks for anything
            but tensors.
    """
    check_file(path)
    try:
        with open_regular(path) as file, zipfile.ZipFile(BoundedReads(file)) as archive:
            entries = _entries(path, archive)
            (pickle,) = [name for name in entries if name.endswith("/data.pkl")]
            folder = pickle.removesuffix("data.pkl")
            found = _run_pickle(archive, entries, folder)
    except (
        OSError,
        zipfile.BadZipFile,
        NotImplementedError,
        RuntimeError,
        EOFError,
        ValueError,
    ) as error:
        raise ValueError(
            f"{path} is not a readable PyTorch file: {_why(path, error)}"
        ) from None

    # Values that are not tensors, such as an optimizer's settings, come with a training checkpoint.
    is_state_dict = isinstance(found, dict) and all(
        isinstance(name, str) and isinstance(tensor, _Tensor)
        for name, tensor in found.items()
    )
    if not is_state_dict:
        raise ValueError(
            f"{path} does not hold a state dict (names and tensors); save model.state_dict()"
        )

    # Strides of zero let a small file claim tensors of any size.
    stored = {
        name: _stored(path, name, tensor, entries, folder) for name, tensor in found.items()
    }
    claimed = sum(tensor.nbytes for tensor in stored.values())
    if claimed > MOST_SHARING * path.stat().st_size + 2**20:
        raise ValueError(
            f"{path}: its tensors claim {claimed} bytes by repeating values; save contiguous "
            "tensors"
        )
    return stored


def _run_pickle(
    archive: zipfile.ZipFile, entries: dict[str, zipfile.ZipInfo], folder: str
) -> Any:
    """Returns what the pickle of an archive builds, which says what the tensors are.

    Args:
        archive: the archive.
        entries: its files by name.
        folder: the folder in it that all its files are in.

    Raises:
        ValueError: if the pickle is too large, asks for anything but tensors, or if the values are
            big-endian.
    """
    # Checked first: a damaged file could claim more than there is memory.
    pickle = entries[f"{folder}data.pkl"]
    if pickle.file_size > LARGEST_PICKLE:
        raise ValueError(f"its pickle claims {pickle.file_size} bytes")

    # Newer versions of PyTorch store the byte order; without it, little-endian is assumed.
    order = entries.get(f"{folder}byteorder")
    if order is not None:
        is_little = order.file_size == len(b"little") and archive.read(order) == b"little"
        if not is_little:
            raise ValueError("it was written on a big-endian machine")
    return _Machine().run(_instructions(archive.read(pickle)))


def _why(path: Path, error: Exception) -> str:
    """Returns why a file could not be opened, in words."""
    try:
        with open_regular(path) as file:
            # The first byte of a pickle; an archive begins with "PK".
            if file.read(1) == b"\x80":
                return (
                    "it is a pickle without an archive, as before PyTorch 1.6; load and save it "
                    "with a newer one"
                )
    except OSError:
        pass
    if isinstance(error, zipfile.BadZipFile):
        return f"{one_line(str(error))}; give a whole one, or the folder of a model"
    return one_line(str(error), 1000) or type(error).__name__


def _entries(path: Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Returns the archive's files by name, which must be uncompressed and lie within it.

    Raises:
        ValueError: if they are not, if a name is not unique, or if there is no single pickle.
    """
    # Compressed entries could grow to any size, and could not be mapped into memory.
    size = path.stat().st_size
    for entry in archive.infolist():
        if (
            entry.compress_type != zipfile.ZIP_STORED
            or entry.compress_size != entry.file_size
        ):
            raise ValueError(
                f"its entry {entry.filename} is compressed, which PyTorch's own are not"
            )
        if entry.header_offset < 0 or entry.header_offset + entry.file_size > size:
            raise ValueError(
                f"its entry {entry.filename} claims {entry.file_size} bytes, more than there are"
            )

    # Of two entries with the same name, a scanner could have checked the other one.
    entries = {entry.filename: entry for entry in archive.infolist()}
    if len(entries) != len(archive.infolist()):
        raise ValueError("it has two entries with the same name")
    if sum(name.endswith("/data.pkl") for name in entries) != 1:
        raise ValueError("it has no single data.pkl")
    return entries


@dataclasses.dataclass(frozen=True)
class _Storage:
    """The bytes that tensors view: the archive's entry `data/<key>`, of `size` values."""

    dtype: np.dtype
    key: str
    size: int


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A view of a storage; offset and strides are numbers of values, not of bytes."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


# All that a pickle may name: the kinds of storages, and the three functions that a state dict is
# built by.
_STORAGE_NAMES = {f"torch.{name}": dtype for name, dtype in STORAGES.items()}
_CALLS = (
    "collections.OrderedDict",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
)


def _instructions(program: bytes) -> Iterator[tuple[str, Any]]:
    """Returns the instructions of a pickle with their arguments."""
    for opcode, argument, _ in pickletools.genops(io.BytesIO(program)):
        yield opcode.name, argument


class _Machine(Machine):
    """The machine of the pickles in PyTorch's files."""

    def persistent(self, description: Any) -> _Storage:
        """Returns the storage that a persistent id describes."""
        # The fourth part is the device it was saved from, which does not matter here.
        match description:
            case ("storage", Name(name), str() as key, _, int() as size) if (
                name in _STORAGE_NAMES
            ):
                return _Storage(_STORAGE_NAMES[name], key, size)
        raise RefusedError(
            f"its pickle refers to {brief(description)}, which is not a storage of numbers"
        )

    def built(self, function: Any, arguments: Any) -> Any:
        """Returns what the function of that name would return for these arguments."""
        match function, arguments:
            case Name("collections.OrderedDict"), ():
                return {}

            # The last two arguments are requires_grad and hooks. A seventh one would say that the
            # values are negated or conjugated.
            case (
                Name("torch._utils._rebuild_tensor_v2"),
                (
                    _Storage() as storage,
                    int() as offset,
                    tuple() as shape,
                    tuple() as strides,
                    _,
                    _,
                ),
            ):
                return _Tensor(storage, offset, shape, strides)

            # A parameter is its tensor, with requires_grad and hooks again.
            case Name("torch._utils._rebuild_parameter"), (_Tensor() as tensor, *_):
                return tensor
        return super().built(function, arguments)

    def knows(self, name: str) -> bool:
        """Whether a name is one of those that tensors need."""
        return name in _STORAGE_NAMES or name in _CALLS


def _stored(
    path: Path, name: str, tensor: _Tensor, entries: dict[str, zipfile.ZipInfo], folder: str
) -> StoredTensor:
    """Checks that a tensor lies within its storage, and the storage within the file.

    Args:
        path: the file.
        name: of the tensor.
        tensor: what the pickle says of it.
        entries: the archive's files by name.
        folder: the archive's folder, which all its files are in.

    Returns:
        The tensor, whose values are read from the file when asked for.

    Raises:
        ValueError: if it does not lie there.
    """
    # `type(n) is int` because True is an instance of int; 2**63 is where NumPy's sizes end.
    numbers = (tensor.offset, *tensor.shape, *tensor.strides)
    are_sizes = all(type(n) is int and 0 <= n < 2**63 for n in numbers)
    if not are_sizes or not len(tensor.shape) == len(tensor.strides) <= MOST_AXES:
        raise ValueError(
            f"{path}: tensor {one_line(name)} has a shape, strides or offset that makes no sense"
        )
    storage = tensor.storage
    entry = entries.get(f"{folder}data/{storage.key}")
    if entry is None or entry.file_size != storage.size * storage.dtype.itemsize:
        raise ValueError(
            f"{path}: the storage of tensor {one_line(name)} is missing or not of the size that "
            "it claims"
        )

    # The stride of an axis of length 1 is never used, and PyTorch may store any number there.
    strides = [
        stride if n > 1 else 0
        for n, stride in zip(tensor.shape, tensor.strides, strict=True)
    ]
    tensor = dataclasses.replace(tensor, strides=tuple(strides))

    # The place of the last value: offset + sum of (n - 1) * stride over the axes.
    last = tensor.offset
    for n, stride in zip(tensor.shape, strides, strict=True):
        last += (n - 1) * stride
    if math.prod(tensor.shape) and last >= storage.size:
        raise ValueError(f"{path}: tensor {one_line(name)} reaches beyond its storage")

    def read():
        start = _start_of(path, name, entry)
        return _values(path, tensor, start)

    return StoredTensor(tensor.shape, storage.dtype, read)


def _start_of(path: Path, name: str, entry: zipfile.ZipInfo) -> int:
    """Returns where in the file the bytes of a storage begin.

    Args:
        path: the file.
        name: of the tensor that views the storage, for the error.
        entry: the storage's entry in the archive's directory.

    Raises:
        ValueError: if they are not there.
    """
    # The entry's own header within the archive: 30 bytes, followed by its name and an extra field,
    # whose lengths differ from those in the archive's directory.
    with open_regular(path) as file:
        file.seek(entry.header_offset)
        header = file.read(30)
    name_length = int.from_bytes(header[26:28], "little")
    extra_length = int.from_bytes(header[28:30], "little")
    start = entry.header_offset + 30 + name_length + extra_length
    if header[:4] != ZIP_MAGIC or start + entry.file_size > path.stat().st_size:
        raise ValueError(
            f"{path}: the storage of tensor {one_line(name)} is not where the archive says"
        )
    return start


def _values(path: Path, tensor: _Tensor, start: int) -> np.ndarray:
    """Returns the values of a tensor whose storage begins at `start` in the file."""
    # An empty file cannot be mapped.
    storage = tensor.storage
    if not math.prod(tensor.shape):
        return np.empty(tensor.shape, storage.dtype)

    # A view of the mapped file, as the strides (in bytes here) say.
    flat = np.memmap(path, storage.dtype, "r", start, (storage.size,))
    strides = tuple(stride * storage.dtype.itemsize for stride in tensor.strides)
    view = np.lib.stride_tricks.as_strided(flat[tensor.offset :], tensor.shape, strides)
    return np.array(view)  # a copy: the file may change, and its pages leave memory

"""Tensors in files: their shapes and dtypes are read at once, their values when asked for."""

import contextlib
import dataclasses
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from cmjax.configs import shown
from cmjax.files import check_regular, give_usual_mode, identity, open_regular
from cmjax.printing import one_line

# Bytes of a safetensors file's header, which holds some 100 for each tensor: 4 MiB are 40,000
# tensors. Parsing takes long, and hundreds of times the memory.
LARGEST_HEADER = 4 * 2**20

# safetensors' names of the dtypes that NumPy has, with bfloat16 from ml_dtypes.
SAFETENSORS_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file.

    Attributes:
        shape: shape as stored.
        dtype: dtype as stored.
        read: reads and returns the values, in memory of their own: the file may change afterwards.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """Number of bytes of the values, by shape and dtype."""
        return math.prod(self.shape) * self.dtype.itemsize

    def transpose(self, axes: Sequence[int]) -> "StoredTensor":
        """Returns the tensor with its axes permuted, still unread."""
        shape = tuple(self.shape[axis] for axis in axes)
        return StoredTensor(shape, self.dtype, lambda: self.read().transpose(axes))

    def patches_as_rows(self) -> "StoredTensor":
        """Returns a convolution of patches as a dense layer over their pixels, still unread.

        PyTorch's kernel `[out, in, p, p]` becomes `[out, p * p * in]`.
        """
        by_pixel = self.transpose((0, 2, 3, 1))
        return by_pixel.reshaped((self.shape[0], math.prod(self.shape[1:])))

    def reshaped(self, shape: tuple[int, ...]) -> "StoredTensor":
        """Returns the tensor in another shape of as many values, still unread."""
        return StoredTensor(shape, self.dtype, lambda: self.read().reshape(shape))

    def rows(self, start: int, stop: int) -> "StoredTensor":
        """Returns a part of the first axis, without trailing axes of length one, still unread."""
        # Weights [out, in, 1] or [out, in, 1, 1] of 1x1 convolutions are those of a dense layer.
        shape = (stop - start, *self.shape[1:])
        while len(shape) > 1 and shape[-1] == 1:
            shape = shape[:-1]
        return StoredTensor(
            shape, self.dtype, lambda: self.read()[start:stop].reshape(shape)
        )


def check_file(path: Path) -> None:
    """Checks that `path` is a regular file.

    Raises:
        ValueError: if it is not, or is missing.
    """
    # For a name that is too long, os.path returns False where Path raises an error.
    if not os.path.lexists(path):
        raise ValueError(f"{path.parent} has no {path.name}")
    check_regular(path)


def stored_in(
    path: Path,
    start: int,
    shape: tuple[int, ...],
    dtype: np.dtype,
    order: Literal["C", "F"] = "C",
) -> StoredTensor:
    """Returns an array whose values follow one another in a file, unread.

    Args:
        path: the file.
        start: the place of the first byte.
        shape: of the array.
        dtype: of the array.
        order: which axis of neighbours in the file is the same: "C" (the last) or "F" (the first).
    """
    count = math.prod(shape) * dtype.itemsize

    def read():
        with open_regular(path) as file:
            file.seek(start)
            content = file.read(count)
        if len(content) != count:
            raise ValueError(f"{path} has become shorter while it was read")
        return np.frombuffer(content, dtype).reshape(shape, order=order)

    return StoredTensor(shape, dtype, read)


def of_wrapper(stored: Iterable[str], wanted: Iterable[str]) -> str:
    """Says that a wrapper has put a prefix in front of names, and what to do; "" if none has.

    The usual ones are "module." of DistributedDataParallel and "_orig_mod." of torch.compile.

    Args:
        stored: names of the tensors in a file.
        wanted: names of the network, all of which have the prefix in the file.
    """
    stored = dict.fromkeys(stored)
    wanted = list(wanted)
    for name in stored:
        prefix = name.removesuffix(wanted[0])
        if prefix in ("", name):
            continue
        if all(prefix + other in stored for other in wanted):
            return (
                f"the names of its tensors begin with {shown(prefix)}, which a wrapper has put in "
                "front; save the tensors of the module inside, without it"
            )
    return ""


def by_name(
    where: object, tensors: Iterable[tuple[str, StoredTensor]]
) -> dict[str, StoredTensor]:
    """Returns the tensors by name.

    Args:
        where: file or folder of the tensors, for the error.
        tensors: names and tensors.

    Raises:
        ValueError: if two tensors have the same name, as in two shards or after renaming.
    """
    found: dict[str, StoredTensor] = {}
    for name, tensor in tensors:
        if name in found:
            raise ValueError(f"{where} has two tensors for {one_line(name)}")
        found[name] = tensor
    return found


def open_safetensors(path: Path) -> dict[str, StoredTensor]:
    """Lists the tensors of a safetensors file by name, reading only its header.

    Raises:
        ValueError: if there is no such file or it is damaged.
    """
    # The header: name -> (shape, dtype). safetensors checks that the data lie within the file.
    with _opened(path) as (file, opened):
        slices = {name: file.get_slice(name) for name in file.keys()}
        headers = {
            name: (tuple(part.get_shape()), part.get_dtype())
            for name, part in slices.items()
        }

    # The format has dtypes, such as 8-bit floats, that no network here is stored in.
    for name, (_, dtype) in headers.items():
        if dtype not in SAFETENSORS_DTYPES:
            raise ValueError(
                f"{path}: tensor {one_line(name)} has dtype {dtype}; known are "
                f"{', '.join(SAFETENSORS_DTYPES)}"
            )

    # A function that makes functions: a closure in the loop would see the last name only.
    def reader(name):
        def read():
            # The file is opened for each tensor: otherwise the pages of those read before would
            # stay in memory, as much as the file in the end.
            with _opened(path) as (file, found):
                tensor = file.get_tensor(name)

            # Otherwise tensors of two models could be mixed.
            if found != opened:
                raise ValueError(f"{path} was replaced while it was read; load it again")
            return tensor

        return read

    return {
        name: StoredTensor(shape, SAFETENSORS_DTYPES[dtype], reader(name))
        for name, (shape, dtype) in headers.items()
    }


def read_metadata(path: Path) -> dict[str, str]:
    """Returns the texts by name in the header of a safetensors file.

    Raises:
        ValueError: if there is no such file or it is damaged.
    """
    with _opened(path) as (file, _):
        return file.metadata() or {}


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, tuple[int, ...]]]:
    """Opens a safetensors file, with its `identity`; it may be damaged or hostile.

    Every error is a ValueError.
    """
    check_file(path)
    try:
        # Before it is opened: one that takes its place meanwhile is another one later.
        found = identity(path)

        # The file begins with the size of its header, u64.
        with open_regular(path) as start:
            size = int.from_bytes(start.read(8), "little")
        if size > LARGEST_HEADER:
            raise SafetensorError(
                f"its header claims {size} bytes, more than {LARGEST_HEADER}"
            )
        with safe_open(path, framework="numpy") as file:
            yield file, found
    except (SafetensorError, OSError) as error:
        reason = one_line(str(error), 1000)
        raise ValueError(f"{path} is not a readable safetensors file: {reason}") from None


def write_safetensors(
    path: Path, tensors: Mapping[str, np.ndarray], metadata: dict[str, str] | None = None
) -> None:
    """Writes a safetensors file.

    Args:
        path: the file.
        tensors: arrays by name, in any order in memory.
        metadata: texts by name, for the header.

    Raises:
        ValueError: for a dtype that cannot be read again.
        OSError: if it cannot be written.
    """
    for name, array in tensors.items():
        if array.dtype not in SAFETENSORS_DTYPES.values():
            raise ValueError(
                f"tensor {name} has dtype {array.dtype}; known are "
                f"{', '.join(map(str, SAFETENSORS_DTYPES.values()))}"
            )

    # safetensors writes the memory of an array as it is, so it must be row by row.
    by_row = {name: np.asarray(array, order="C") for name, array in tensors.items()}

    # For a full disk safetensors raises an error of its own, which callers do not expect.
    try:
        save_file(by_row, path, metadata)
    except SafetensorError as error:
        raise OSError(f"cannot write {path}: {error}") from None

    # It writes through a temporary file that only its owner may read.
    give_usual_mode(path)

"""Tensors in files: their shapes and dtypes are read at once, their values when asked for."""

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

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

    def transpose(self, axes: Sequence[int]) -> "StoredTensor":
        """Returns the tensor with its axes permuted, still unread."""
        shape = tuple(self.shape[axis] for axis in axes)
        return StoredTensor(shape, self.dtype, lambda: self.read().transpose(axes))

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
    """Checks that `path` is a regular file: opening a pipe would wait, a device may have no end.

    Raises:
        ValueError: if it is not, or is missing.
    """
    # For a name that is too long, os.path returns False where Path raises an error.
    if not os.path.exists(path):
        raise ValueError(f"{path.parent} has no {path.name}")
    if not path.is_file():
        raise ValueError(f"{path} is not a file")


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
            raise ValueError(f"{where} has two tensors for {name}")
        found[name] = tensor
    return found


def open_safetensors(path: Path) -> dict[str, StoredTensor]:
    """Lists the tensors of a safetensors file by name, reading only its header.

    Raises:
        ValueError: if there is no such file or it is damaged.
    """
    check_file(path)

    # The header: name -> (shape, dtype). safetensors checks that the data lie within the file.
    try:
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}
            headers = {
                name: (tuple(part.get_shape()), part.get_dtype())
                for name, part in slices.items()
            }
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from None

    # The format has dtypes, such as 8-bit floats, that no network here is stored in.
    for name, (_, dtype) in headers.items():
        if dtype not in SAFETENSORS_DTYPES:
            raise ValueError(
                f"{path}: tensor {name} has dtype {dtype}; known are "
                f"{', '.join(SAFETENSORS_DTYPES)}"
            )

    # A function that makes functions: a closure in the loop would see the last name only.
    def reader(name):
        def read():
            # The file is opened for each tensor: otherwise the pages of those read before would
            # stay in memory, as much as the file in the end.
            with safe_open(path, framework="numpy") as file:
                return file.get_tensor(name)

        return read

    return {
        name: StoredTensor(shape, SAFETENSORS_DTYPES[dtype], reader(name))
        for name, (shape, dtype) in headers.items()
    }


def write_safetensors(
    path: Path, tensors: Mapping[str, np.ndarray], metadata: dict[str, str] | None = None
) -> None:
    """Writes a safetensors file.

    Args:
        path: the file.
        tensors: arrays by name, contiguous: safetensors writes their memory as it is.
        metadata: texts by name, for the header.

    Raises:
        OSError: if it cannot be written.
    """
    # For a full disk safetensors raises an error of its own, which callers do not expect.
    try:
        save_file(dict(tensors), path, metadata)
    except SafetensorError as error:
        raise OSError(f"cannot write {path}: {error}") from None

"""Tensors in files: shapes and dtypes are known at once, values are read when asked for."""

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

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
        shape: as stored.
        dtype: as stored.
        read: returns the values, in memory of their own.
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
        shape = (stop - start, *self.shape[1:])
        while len(shape) > 1 and shape[-1] == 1:
            shape = shape[:-1]
        return StoredTensor(shape, self.dtype, lambda: self.read()[start:stop].reshape(shape))


def check_file(path: Path) -> None:
    """Checks that `path` is a file: opening a pipe would wait, and a device may have no end.

    Raises:
        ValueError: if it is not, or is missing.
    """
    # os.path says False of a name that is too long or odd, where Path raises an error.
    if not os.path.exists(path):
        raise ValueError(f"{path.parent} has no {path.name}")
    if not path.is_file():
        raise ValueError(f"{path} is not a file")


def by_name(where: object, tensors: Iterable[tuple[str, StoredTensor]]) -> dict[str, StoredTensor]:
    """Returns the tensors by name; two of one name are a `ValueError`."""
    found: dict[str, StoredTensor] = {}
    for name, tensor in tensors:
        if name in found:
            raise ValueError(f"{where} has two tensors for {name}")
        found[name] = tensor
    return found


def open_safetensors(path: Path) -> dict[str, StoredTensor]:
    """Lists the tensors of a safetensors file by name; nothing but the header is read.

    Raises:
        ValueError: if there is no such file or it is damaged.
    """
    check_file(path)
    try:
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}
            headers = {
                name: (tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()
            }
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from None
    for name, (_, dtype) in headers.items():
        if dtype not in SAFETENSORS_DTYPES:
            raise ValueError(
                f"{path}: tensor {name} has dtype {dtype}; known are "
                f"{', '.join(SAFETENSORS_DTYPES)}"
            )

    def reader(name):
        def read():
            # Opened for each tensor, or the pages of those read before would stay in memory.
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

    Raises:
        OSError: if it cannot be written; safetensors has an error of its own for a full disk.
    """
    try:
        save_file(dict(tensors), path, metadata)
    except SafetensorError as error:
        raise OSError(f"cannot write {path}: {error}") from None

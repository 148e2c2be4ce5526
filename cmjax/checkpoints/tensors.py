"""Tensors in files: what they are is known at once, their values are read when asked for."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

SAFETENSORS_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
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
        """Returns a part of the first axis, its trailing axes of length one dropped, still unread."""
        shape = (stop - start, *self.shape[1:])
        while len(shape) > 1 and shape[-1] == 1:
            shape = shape[:-1]
        return StoredTensor(shape, self.dtype, lambda: self.read()[start:stop].reshape(shape))


def open_safetensors(path: Path) -> dict[str, StoredTensor]:
    """Lists the tensors of a safetensors file by name; nothing but the header is read.

    Raises:
        ValueError: if there is no such file or it is damaged.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            headers = {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}
    except FileNotFoundError:
        raise ValueError(f"{path.parent} has no {path.name}") from None
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from None
    for name, (_, dtype) in headers.items():
        if dtype not in SAFETENSORS_DTYPES:
            raise ValueError(f"{path}: tensor {name} has dtype {dtype}; known are {', '.join(SAFETENSORS_DTYPES)}")

    def reader(name):
        def read():
            # Opened anew for each tensor, or the pages of those read before would stay in memory.
            with safe_open(path, framework="numpy") as file:
                return file.get_tensor(name)

        return read

    return {
        name: StoredTensor(shape, SAFETENSORS_DTYPES[dtype], reader(name)) for name, (shape, dtype) in headers.items()
    }

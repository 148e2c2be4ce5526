"""Flax's `.msgpack` files, as `flax.serialization` writes them, read tensor by tensor.

MessagePack (https://github.com/msgpack/msgpack/blob/master/spec.md) holds data only: nothing in
such a file can run. Flax's own `msgpack_restore` runs nothing either, but it reads the whole file
into memory, builds whatever nesting the file claims, and raises errors of many kinds. The reader
here walks through the file once, notes where the bytes of each array are, and skips them. Training
states have numbers and None besides the arrays, which are passed over.
"""

import dataclasses
import math
from pathlib import Path
from typing import IO

import numpy as np

from cmjax.checkpoints.tensors import (
    SAFETENSORS_DTYPES,
    StoredTensor,
    check_file,
    stored_in,
)
from cmjax.files import open_regular

# An array, or a scalar of NumPy, is an extension of MessagePack of these types. What it holds is
# the triple (shape, name of the dtype, bytes), in MessagePack again (flax/serialization.py,
# `_ndarray_to_bytes`).
ARRAYS = (1, 3)
# Random keys of training states are of the last one; no parameter is.
DTYPES = {dtype.name: dtype for dtype in (*SAFETENSORS_DTYPES.values(), np.dtype("uint32"))}

# Bounds for files that are damaged or hostile; a large network has some thousand names of some
# twenty letters, five deep.
MOST_NAMES = 40_000
LONGEST_NAME = 256
DEEPEST = 32
MOST_AXES = 32

# First byte -> (bytes of the length that follow), for the kinds that have a length.
MAPS = {0xDE: 2, 0xDF: 4}
LISTS = {0xDC: 2, 0xDD: 4}
TEXTS = {0xD9: 1, 0xDA: 2, 0xDB: 4}
BYTES = {0xC4: 1, 0xC5: 2, 0xC6: 4}
EXTENSIONS = {0xC7: 1, 0xC8: 2, 0xC9: 4}
INTEGERS = {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}
# First byte -> bytes that follow, for values that are no arrays: None, truth values, floats, and
# integers with a sign.
PLAIN = {0xC0: 0, 0xC2: 0, 0xC3: 0, 0xCA: 4, 0xCB: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}


def open_msgpack(path: Path) -> dict[str, StoredTensor]:
    """Lists the arrays of a `.msgpack` file by their dotted names, such as "conv_in.kernel".

    The entries of a list are named by their numbers.

    Raises:
        ValueError: if the file is damaged, or holds anything but arrays and numbers by name.
    """
    check_file(path)
    try:
        with open_regular(path) as file:
            size = path.stat().st_size
            reader = _Reader(path, file, size)
            reader.read_map("", 0)
            if file.tell() != size:
                raise ValueError("bytes follow its end")
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not a readable Flax file: {error}") from None
    return reader.found


@dataclasses.dataclass
class _Reader:
    """Walks through a file.

    Attributes:
        path: the file.
        file: the same, opened.
        size: its bytes.
        names: number of names so far.
        found: the arrays so far.
    """

    path: Path
    file: IO[bytes]
    size: int
    names: int = 0
    found: dict[str, StoredTensor] = dataclasses.field(default_factory=dict)

    def read_map(self, prefix: str, depth: int) -> None:
        """Reads names with what they stand for.

        Args:
            prefix: the dotted name of the map itself, with a dot at its end.
            depth: number of maps and lists around it.
        """
        for _ in range(self._length(self._byte(), MAPS, 0x80, 16, "a map")):
            self._read_value(f"{prefix}{self._text()}", depth)

    def _read_list(self, prefix: str, depth: int) -> None:
        """Reads the entries of a list, as `read_map`."""
        for i in range(self._length(self._byte(), LISTS, 0x90, 16, "a list")):
            self._read_value(f"{prefix}{i}", depth)

    def _read_value(self, name: str, depth: int) -> None:
        """Reads what a name stands for: a map, a list, an array, or a value to pass over."""
        self.names += 1
        if self.names > MOST_NAMES:
            raise ValueError(f"it has more than {MOST_NAMES} names")
        if depth > DEEPEST:
            raise ValueError(f"its maps are nested more than {DEEPEST} deep")

        # The next byte tells what follows.
        kind = self._byte()
        self.file.seek(-1, 1)
        if 0x80 <= kind < 0x90 or kind in MAPS:
            self.read_map(f"{name}.", depth + 1)
        elif 0x90 <= kind < 0xA0 or kind in LISTS:
            self._read_list(f"{name}.", depth + 1)
        elif self._passes_over():
            return
        elif name in self.found:
            raise ValueError(f"it has two arrays for {name}")
        else:
            self.found[name] = self._array(name)

    def _passes_over(self) -> bool:
        """Goes to the end of a value that is no array; returns whether it was one."""
        kind = self._byte()
        if kind < 0x80 or kind >= 0xE0:
            count = 0
        elif kind in PLAIN or kind in INTEGERS:
            count = (PLAIN | INTEGERS)[kind]
        elif 0xA0 <= kind < 0xC0:
            count = kind - 0xA0
        elif kind in TEXTS or kind in BYTES:
            count = self._integer((TEXTS | BYTES)[kind])
        else:
            self.file.seek(-1, 1)
            return False
        if self.file.tell() + count > self.size:
            raise ValueError("it ends too early")
        self.file.seek(count, 1)
        return True

    def _array(self, name: str) -> StoredTensor:
        """Notes the shape, the dtype and the place of an array, and goes to its end."""
        kind = self._byte()
        if 0xD4 <= kind <= 0xD8:
            length = 1 << (kind - 0xD4)
        elif kind in EXTENSIONS:
            length = self._integer(EXTENSIONS[kind])
        else:
            raise ValueError(f"{name} is not an array")
        if self._byte() not in ARRAYS:
            raise ValueError(f"{name} is not an array")
        end = self.file.tell() + length

        # The triple.
        if self._length(self._byte(), LISTS, 0x90, 16, "a triple") != 3:
            raise ValueError(f"{name} is not a triple of shape, dtype and bytes")
        axes = self._length(self._byte(), LISTS, 0x90, 16, "a shape")
        if axes > MOST_AXES:
            raise ValueError(f"{name} has {axes} axes")
        shape = tuple(self._number() for _ in range(axes))
        dtype = DTYPES.get(self._text())
        if dtype is None:
            raise ValueError(f"{name} has a dtype other than {', '.join(DTYPES)}")
        count = self._length(self._byte(), BYTES, None, 0, "bytes")
        start = self.file.tell()

        # The bytes end the extension, and are as many as the shape says.
        if start + count != end or end > self.size:
            raise ValueError(f"{name} reaches beyond its end")
        if math.prod(shape) * dtype.itemsize != count:
            raise ValueError(f"{name} has {count} bytes, not those of {dtype}{list(shape)}")
        self.file.seek(end)
        return stored_in(self.path, start, shape, dtype)

    def _text(self) -> str:
        """Reads a short text."""
        length = self._length(self._byte(), TEXTS, 0xA0, 32, "a name")
        if length > LONGEST_NAME:
            raise ValueError(f"it has a name of {length} bytes")
        # It is shown in errors, which have one line.
        try:
            text = self._bytes(length).decode()
        except UnicodeDecodeError:
            text = "\n"
        if not text.isprintable():
            raise ValueError("it has a name that is not printable text")
        return text

    def _number(self) -> int:
        """Reads an integer that is not negative."""
        kind = self._byte()
        if kind < 0x80:
            return kind
        if kind in INTEGERS:
            return self._integer(INTEGERS[kind])
        raise ValueError("a shape has a number that makes no sense")

    def _length(self, kind, long, first, count, what) -> int:
        """Returns the length that a first byte tells or announces.

        Args:
            kind: the first byte.
            long: kinds whose length follows.
            first: the first of those that are a length themselves, or None.
            count: number of these.
            what: the kind that is expected, in words.
        """
        if kind in long:
            return self._integer(long[kind])
        if first is not None and first <= kind < first + count:
            return kind - first
        raise ValueError(f"it has something else where {what} belongs")

    def _byte(self) -> int:
        return self._bytes(1)[0]

    def _integer(self, size: int) -> int:
        return int.from_bytes(self._bytes(size), "big")

    def _bytes(self, count: int) -> bytes:
        content = self.file.read(count)
        if len(content) != count:
            raise ValueError("it ends too early")
        return content

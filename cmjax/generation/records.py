"""Single records of shards, read where they lie: a folder may be larger than the memory."""

import math
import struct
import zipfile
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from cmjax.files import open_regular
from cmjax.generation.shards import Shards, member_of, read_header

# Of a file within a zip file: the size of its header, and where there the lengths of its name and
# of its extra field are, each of 2 bytes (APPNOTE.TXT, section 4.3.7).
_HEADER = 30
_LENGTHS = 26


class _Place(NamedTuple):
    """Where an array of a shard is.

    Attributes:
        offset: of its first byte in the file.
        shape: of one row.
        dtype: of its numbers.
    """

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype


class Records:
    """The records of a folder by their numbers; threads may read at the same time.

    Args:
        shards: the shards of the folder.
        num: number of records; the shards of all of them must be there.

    Attributes:
        files: the numbers and the path of each shard, in order.

    Raises:
        ValueError: if a shard is missing.
    """

    def __init__(self, shards: Shards, num: int):  # noqa: D107
        # Up to the first gap: a manifest may claim any number of shards.
        listed = shards.listed()
        size = shards.settings.shard_size
        self.files: list[tuple[range, Path]] = []
        first = 0
        while first < num:
            shard = range(first, min(first + size, num))
            if shard not in listed:
                break
            self.files.append((shard, listed[shard]))
            first = shard.stop
        if first < num:
            num_done = sum(len(shard) for shard in listed if shard.stop <= num)
            raise ValueError(
                f"{shards.folder} holds {num_done:,} of {num:,} {shards.settings.KIND}; "
                f"run the same {shards.settings.FUNCTION} again to make the rest"
            )
        self._num = num
        self._arrays = shards.settings.arrays
        self._size = shards.settings.shard_size
        self._function = shards.settings.FUNCTION
        self._places: dict[Path, dict[str, _Place]] = {}

    def __len__(self) -> int:
        """Number of records."""
        return self._num

    def read(self, index: int) -> dict[str, np.ndarray]:
        """Returns the arrays of record number `index`, by name.

        Raises:
            ValueError: if the file of its shard is damaged, as far as that shows in its headers.
            OSError: if the file cannot be read.
        """
        number, row = divmod(index, self._size)
        shard, path = self.files[number]
        with open_regular(path) as file:
            places = self._places_of(path, shard, file)
            return {
                name: _rows(path, file, place, row, 1)[0] for name, place in places.items()
            }

    def column(self, name: str) -> np.ndarray:
        """Returns one array of all records, `[N, ...]`; only its bytes are read."""
        parts = []
        for shard, path in self.files:
            with open_regular(path) as file:
                place = self._places_of(path, shard, file)[name]
                parts.append(_rows(path, file, place, 0, len(shard)))
        return np.concatenate(parts)

    def _places_of(self, path: Path, shard: range, file: IO[bytes]) -> dict[str, _Place]:
        """Returns where the arrays of a shard are; its headers are read once."""
        if path not in self._places:
            try:
                self._places[path] = _places(file, len(shard), self._arrays)
            except (
                ValueError,
                KeyError,
                EOFError,
                struct.error,
                zipfile.BadZipFile,
            ) as error:
                raise ValueError(
                    f"{path} is no shard: {error}; run the same {self._function} again"
                ) from None
        return self._places[path]


def _places(file: IO[bytes], num: int, arrays: dict) -> dict[str, _Place]:
    """Finds the arrays in the open file of a shard of `num` records.

    Raises:
        ValueError: if one is compressed, or has another shape or dtype.
        KeyError: if one is missing.
    """
    places = {}
    with zipfile.ZipFile(file) as archive:
        for name, (shape, dtype) in arrays.items():
            # The content begins after the member's own header, whose length the archive's list of
            # members does not give.
            member = member_of(archive, name)
            file.seek(member.header_offset)
            lengths = struct.unpack("<HH", file.read(_HEADER)[_LENGTHS:])
            file.seek(member.header_offset + _HEADER + sum(lengths))
            found, own = read_header(file)
            if found != (num, *shape) or own != dtype:
                wanted = f"{dtype}{[num, *shape]}"
                raise ValueError(f"{name} is {own}{list(found)}, not {wanted}")
            places[name] = _Place(file.tell(), shape, dtype)
    return places


def _rows(path: Path, file: IO[bytes], place: _Place, first: int, num: int) -> np.ndarray:
    """Reads `num` rows of an array, `[num, ...]`."""
    size = math.prod(place.shape) * place.dtype.itemsize
    file.seek(place.offset + first * size)
    content = file.read(num * size)
    if len(content) < num * size:
        raise ValueError(f"{path} is cut short")
    return np.frombuffer(content, place.dtype).reshape(num, *place.shape)

"""Shards: files of records that survive the process, and are checked whenever they are read."""

import hashlib
import io
import json
import math
import re
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import numpy as np

from cmjax.files import read_regular, replacing
from cmjax.generation.folder_settings import MAX_NUM, FolderSettings
from cmjax.image_files import write_shard

# Name of a shard: the first and the last sample number, and the digest.
NAME = re.compile(r"([0-9]{9,10})-([0-9]{9,10})-([0-9a-f]{16})\.npz")
OVERHEAD = 2**12  # most bytes of a shard that are not those of its arrays


class Shards:
    """The files `shards/first-last-digest.npz` of a run, each with the records of those numbers.

    A record is a sample with its class, or whatever else the settings say: a file holds one array
    for each of `settings.arrays`. Its name ends in a digest of the run's settings, the numbers and
    the file's content. So a shard that is incomplete, altered, of another run or renamed is never
    accepted, and no process needs to know what another has written.

    Args:
        folder: the folder of the run.
        settings: everything that the records depend on.

    Attributes:
        folder: the folder of the run, which contains the folder `shards`.
        settings: everything that the records depend on.
    """

    def __init__(self, folder: Path, settings: FolderSettings):  # noqa: D107
        self.folder = folder
        self.settings: Any = settings  # a kind of FolderSettings

        # The settings are the key of a keyed hash: shards of other runs do not match.
        text = json.dumps(settings.to_json(), sort_keys=True)
        self._run_key = hashlib.blake2b(text.encode()).digest()

    def ranges(self, num: int) -> list[range]:
        """Returns the sample numbers of each shard of the first `num` samples."""
        size = self.settings.shard_size
        return [range(first, min(first + size, num)) for first in range(0, num, size)]

    def files(self) -> list[tuple[range, Path]]:
        """Returns the sample numbers and path of each file, by their names; no file is read."""
        # In reverse order of names: in the dict of `listed`, where the last one stays, the first of
        # several files of the same range wins.
        found = []
        for path in sorted((self.folder / "shards").glob("[0-9]*.npz"), reverse=True):
            # Other names are not shards; `strangers` reports them.
            if match := NAME.fullmatch(path.name):
                found.append((range(int(match[1]), int(match[2]) + 1), path))
        return found

    def listed(self) -> dict[range, Path]:
        """Returns one file for each shard that a run of this size of shards has, by the names."""
        return {shard: path for shard, path in self.files() if self._is_of_run(shard)}

    def count(self, num: int) -> int:
        """Returns how many of the first `num` samples have files, by the files' names."""
        listed = self.listed()
        return sum(len(shard) for shard in self.ranges(num) if shard in listed)

    def find(self) -> tuple[dict[range, Path], list[Path]]:
        """Reads every file; returns a file for each intact shard, and all damaged files."""
        # Threads help: reading waits for the disk, and hashing releases the GIL.
        files = self.files()
        with ThreadPoolExecutor() as readers:
            matches = list(readers.map(self._is_intact, files))

        # A range may have an intact file and a damaged one.
        intact = {}
        damaged = []
        for (shard, path), good in zip(files, matches, strict=True):
            if good:
                intact[shard] = path
            else:
                damaged.append(path)
        return intact, damaged

    def gaps(self) -> list[Path]:
        """Returns a pattern for each row of missing shards before the last one.

        It has the first and the last sample number of the row, as the name of a shard has its own.
        """
        # How many samples were asked for is not recorded: the last shard stands for that. All
        # shards before it are whole.
        size = self.settings.shard_size
        listed = self.listed()
        end = max((shard.stop for shard in listed), default=0)
        starts = {
            shard.start for shard in listed if len(shard) == size or shard.stop == end
        }

        # From one file to the next, not from sample to sample: a name may claim any numbers.
        patterns = []
        expected = 0
        for start in sorted(starts):
            if start > expected:
                prefix = _prefix(range(expected, start))
                patterns.append(self.folder / "shards" / f"{prefix}-*.npz")
            expected = start + size
        return patterns

    def strangers(self) -> list[Path]:
        """Returns the files in the folder of shards that are not shards, by their names."""
        # Hidden files are temporary ones, of shards that were being written.
        known = {path for _, path in self.files()}
        there = sorted((self.folder / "shards").glob("*"))
        return [
            path for path in there if path not in known and not path.name.startswith(".")
        ]

    def write(self, shard: range, rows: np.ndarray) -> None:
        """Writes a shard.

        Args:
            shard: the numbers of the records, n of them.
            rows: the records as `settings.arrays_of` takes them, `[n, ...]`.

        Raises:
            OSError: if it cannot be written; no part of it is left then.
        """
        # In memory first, since the file's name contains the digest of its content.
        content = io.BytesIO()
        write_shard(content, self.settings.arrays_of(shard, rows))
        name = f"{_prefix(shard)}-{self._digest(shard, content.getbuffer())}.npz"
        with replacing(self.folder / "shards" / name) as file:
            file.write(content.getbuffer())

    def read(self, shard: range, path: Path, name: str = "images") -> np.ndarray:
        """Returns an array of a shard, `[n, ...]`.

        Args:
            shard: the numbers of its records, n of them.
            path: the file, one of `listed`.
            name: the array, one of `settings.arrays`.

        Raises:
            ValueError: if the file is damaged.
        """
        # Read once, checked and decoded from the same bytes.
        content = self._content(shard, path)
        if content is None:
            raise ValueError(
                f"{path} is damaged; run the same {self.settings.FUNCTION} again to repair it"
            )
        shape, dtype = self.settings.arrays[name]
        return _decode(path, content, name, (len(shard), *shape), dtype)

    def _is_intact(self, file: tuple[range, Path]) -> bool:
        shard, path = file
        return self._content(shard, path) is not None

    def _content(self, shard: range, path: Path) -> bytes | None:
        """Returns the content of a file, or None if it is not that of this shard of this run."""
        # Neither waits for a pipe nor reads more than a shard can have.
        if not self._is_of_run(shard):
            return None
        arrays = self.settings.arrays.values()
        size = sum(math.prod(shape) * dtype.itemsize for shape, dtype in arrays)
        largest = len(shard) * size + OVERHEAD
        try:
            content = read_regular(path, largest)
        except (ValueError, FileNotFoundError):  # the latter for a link that leads nowhere
            return None

        # The name ends in the digest.
        matches = path.stem.split("-")[-1] == self._digest(shard, content)
        return content if matches else None

    def _is_of_run(self, shard: range) -> bool:
        """Returns whether a run of these settings may have a shard of these sample numbers."""
        size = self.settings.shard_size
        return shard.start % size == 0 and 0 < len(shard) <= size and shard.stop <= MAX_NUM

    def _digest(self, shard: range, content: bytes | memoryview) -> str:
        # blake2b(key=settings, "first-stop " + content): 8 bytes, as 16 hexadecimal digits.
        place = f"{shard.start}-{shard.stop} ".encode()
        digest = hashlib.blake2b(place, digest_size=8, key=self._run_key)
        digest.update(content)
        return digest.hexdigest()


def _decode(
    path: Path, content: bytes, name: str, shape: tuple[int, ...], dtype: np.dtype
) -> np.ndarray:
    """Returns an array of a shard, of this shape and dtype.

    A digest is no signature: whoever knows the settings can compute one for any content.

    Raises:
        ValueError: if the file holds anything else than an uncompressed array of this shape.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            stored = io.BytesIO(archive.read(member_of(archive, name)))

        # The header is compared before any memory is taken for what it claims.
        found, own = read_header(stored)
        if found != shape or own != dtype:
            raise ValueError(f"it holds {own}{list(found)}, not {dtype}{list(shape)}")
        array = np.frombuffer(stored.getvalue(), dtype, offset=stored.tell())
        return array.reshape(shape)
    except (ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is no shard: {error}") from None


def member_of(archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
    """Returns where an array of a shard is in its archive.

    Raises:
        ValueError: if it is compressed.
        KeyError: if it is missing.
    """
    member = archive.getinfo(f"{name}.npy")
    if member.compress_type != zipfile.ZIP_STORED:
        raise ValueError("it is compressed")
    return member


def read_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    """Reads shape and dtype of an `.npy`, up to where its values begin."""
    np.lib.format.read_magic(file)
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    return shape, dtype


def _prefix(shard: range) -> str:
    # Leading zeros keep names in the order of the numbers, up to 10^9 samples.
    return f"{shard.start:09}-{shard.stop - 1:09}"

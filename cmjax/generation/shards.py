"""Shards: files of samples that survive the process, and are checked whenever they are read."""

import hashlib
import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from cmjax.files import replacing
from cmjax.generation.settings import RunSettings
from cmjax.image_files import write_shard


class Shards:
    """The files `shards/first-last-digest.npz` of a run, each with the samples of those numbers.

    A file holds `images` u8[n, H, W, C] and, for a model with classes, `labels` i32[n]. Its name
    ends in a digest of the run's settings, the sample numbers and the file's content. So a shard
    that is incomplete, altered, of another run or renamed is never accepted, and no process needs
    to know what another has written.

    Args:
        folder: the folder of the run.
        settings: everything that the samples depend on.

    Attributes:
        folder: the folder of the run, which contains the folder `shards`.
        settings: everything that the samples depend on.
    """

    def __init__(self, folder: Path, settings: RunSettings):  # noqa: D107
        self.folder = folder
        self.settings = settings

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
            numbers = path.name.split("-")[:2]

            # Other names are not shards; `strangers` reports them.
            if all(number.isdigit() for number in numbers):
                first, last = map(int, numbers)
                found.append((range(first, last + 1), path))
        return found

    def listed(self) -> dict[range, Path]:
        """Returns one file for each range of sample numbers, by the files' names."""
        return dict(self.files())

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
        """Returns patterns for the files of shards that are missing before the last one."""
        # How many samples were asked for is not recorded: the last shard stands for that.
        listed = self.listed()
        end = max((shard.stop for shard in listed), default=0)
        return [
            self.folder / "shards" / f"{_prefix(shard)}-*.npz"
            for shard in self.ranges(end)
            if shard not in listed
        ]

    def strangers(self) -> list[Path]:
        """Returns the files in the folder of shards that are not shards, by their names."""
        # Hidden files are temporary ones, of shards that were being written.
        known = {path for _, path in self.files()}
        there = sorted((self.folder / "shards").glob("*"))
        return [
            path for path in there if path not in known and not path.name.startswith(".")
        ]

    def write(self, shard: range, images: np.ndarray) -> None:
        """Writes a shard.

        Args:
            shard: the sample numbers, n of them.
            images: the samples, u8[n, H, W, C].

        Raises:
            OSError: if it cannot be written; no part of it is left then.
        """
        # In memory first, since the file's name contains the digest of its content.
        content = io.BytesIO()
        write_shard(content, images, self.settings.request.labels_of(shard))
        name = f"{_prefix(shard)}-{self._digest(shard, content.getbuffer())}.npz"
        with replacing(self.folder / "shards" / name) as file:
            file.write(content.getbuffer())

    def read(self, shard: range, path: Path) -> np.ndarray:
        """Returns the images of a shard, u8[n, H, W, C].

        Args:
            shard: the sample numbers.
            path: the file, one of `listed`.

        Raises:
            ValueError: if the file is damaged.
        """
        # Read once, checked and decoded from the same bytes.
        content = path.read_bytes()
        if not self._matches(shard, path, content):
            raise ValueError(
                f"{path} is damaged; run the same generate_folder again to repair it"
            )
        with np.load(io.BytesIO(content)) as arrays:
            return arrays["images"]

    def _is_intact(self, file: tuple[range, Path]) -> bool:
        shard, path = file
        return self._matches(shard, path, path.read_bytes())

    def _matches(self, shard: range, path: Path, content: bytes) -> bool:
        """Whether a file's name ends in the digest of its content."""
        return path.stem.split("-")[-1] == self._digest(shard, content)

    def _digest(self, shard: range, content: bytes | memoryview) -> str:
        # blake2b(key=settings, "first-stop " + content): 8 bytes, as 16 hexadecimal digits.
        place = f"{shard.start}-{shard.stop} ".encode()
        digest = hashlib.blake2b(place, digest_size=8, key=self._run_key)
        digest.update(content)
        return digest.hexdigest()


def _prefix(shard: range) -> str:
    # Leading zeros keep names in the order of the numbers, up to 10^9 samples.
    return f"{shard.start:09}-{shard.stop - 1:09}"

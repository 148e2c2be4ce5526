"""Samples in shards: files that outlive the process and are checked whenever they are read."""

import hashlib
import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cmjax.files import replacing
from cmjax.image_files import write_shard

if TYPE_CHECKING:
    from cmjax.generation.manifest import RunSettings


class Shards:
    """Files `first-last-digest.npz`, each with the samples of those numbers.

    A file holds `images` u8[n, H, W, C] and, for a model with classes, `labels` i32[n]. Its name
    ends in a digest of the run's settings, its indices and its content: a shard that is torn,
    altered, of another run or in another's place is never taken for the right one, and no process
    needs to know what another has written.

    Attributes:
        folder: of the run, which holds the folder `shards`.
        settings: everything that the samples depend on.
    """

    def __init__(self, folder: Path, settings: "RunSettings"):  # noqa: D107
        self.folder = folder
        self.settings = settings
        text = json.dumps(settings.to_json(), sort_keys=True)
        self._run_key = hashlib.blake2b(text.encode()).digest()

    def ranges(self, num: int) -> list[range]:
        """Returns the indices of each shard of the first `num` samples."""
        size = self.settings.shard_size
        return [range(first, min(first + size, num)) for first in range(0, num, size)]

    def files(self) -> list[tuple[range, Path]]:
        """Returns the indices that the names of files claim, and the files; none is read."""
        found = []
        for path in sorted((self.folder / "shards").glob("[0-9]*.npz"), reverse=True):
            numbers = path.name.split("-")[:2]
            if all(number.isdigit() for number in numbers):
                first, last = map(int, numbers)
                found.append((range(first, last + 1), path))
        return found

    def listed(self) -> dict[range, Path]:
        """Returns one file of each range of `files`."""
        return dict(self.files())

    def count(self, num: int) -> int:
        """Returns how many of the first `num` samples are in files, by their names."""
        listed = self.listed()
        return sum(len(shard) for shard in self.ranges(num) if shard in listed)

    def find(self) -> tuple[dict[range, Path], list[Path]]:
        """Reads every file; returns one of each shard that is whole, and all that are damaged."""
        files = self.files()
        with ThreadPoolExecutor() as readers:
            intact = list(readers.map(self._is_intact, files))
        whole = {}
        damaged = []
        for (shard, path), good in zip(files, intact, strict=True):
            if good:
                whole[shard] = path
            else:
                damaged.append(path)
        return whole, damaged

    def gaps(self) -> list[Path]:
        """Returns the names, without digest, of shards missing below the last one there."""
        listed = self.listed()
        end = max((shard.stop for shard in listed), default=0)
        return [
            self.folder / "shards" / f"{_prefix(shard)}-*.npz"
            for shard in self.ranges(end)
            if shard not in listed
        ]

    def strangers(self) -> list[Path]:
        """Returns what lies among the shards and is none, unfinished (hidden) files aside."""
        known = {path for _, path in self.files()}
        there = sorted((self.folder / "shards").glob("*"))
        return [path for path in there if path not in known and not path.name.startswith(".")]

    def write(self, shard: range, images: np.ndarray) -> None:
        """Writes a shard.

        Raises:
            OSError: if it cannot be written; nothing is left of it then.
        """
        content = io.BytesIO()
        write_shard(content, images, self.settings.request.labels_of(shard))
        name = f"{_prefix(shard)}-{self._digest(shard, content.getbuffer())}.npz"
        with replacing(self.folder / "shards" / name) as file:
            file.write(content.getbuffer())

    def read(self, shard: range, path: Path) -> np.ndarray:
        """Returns the images of a shard.

        Raises:
            ValueError: if the file is not what was written.
        """
        content = path.read_bytes()
        if not self._matches(shard, path, content):
            raise ValueError(f"{path} is damaged; run the same generate_folder again to repair it")
        with np.load(io.BytesIO(content)) as arrays:
            return arrays["images"]

    def _is_intact(self, file: tuple[range, Path]) -> bool:
        shard, path = file
        return self._matches(shard, path, path.read_bytes())

    def _matches(self, shard: range, path: Path, content: bytes) -> bool:
        """Whether a file's name ends in the digest of its content."""
        return path.stem.split("-")[-1] == self._digest(shard, content)

    def _digest(self, shard: range, content: bytes | memoryview) -> str:
        place = f"{shard.start}-{shard.stop} ".encode()
        digest = hashlib.blake2b(place, digest_size=8, key=self._run_key)
        digest.update(content)
        return digest.hexdigest()


def _prefix(shard: range) -> str:
    return f"{shard.start:09}-{shard.stop - 1:09}"

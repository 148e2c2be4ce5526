"""A folder of samples in shards: what is finished outlives the process, and is checked whenever it is read."""

import hashlib
import io
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from cmjax.files import replacing


class Shards:
    """Shards `first-last-digest.npz` of `images` u8[n, H, W, C] and, for models with classes, `labels` i32[n].

    A shard's name ends in a digest of the run's settings, its indices and its content, so that a shard that is torn,
    altered, of another run or another place is never taken for the right one. No process needs to know what another
    has written.

    Args:
        folder: of the run, which holds the folder `shards`.
        settings: everything that samples depend on, as JSON, with `shard_size`, `shape` and `labels` among it.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]):  # noqa: D107
        self.folder, self.settings = folder, settings
        self._run = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode()).digest()

    def ranges(self, num: int) -> list[range]:
        """Returns the indices of each shard of the first `num` samples."""
        size = self.settings["shard_size"]
        return [range(first, min(first + size, num)) for first in range(0, num, size)]

    def files(self) -> list[tuple[range, Path]]:
        """Returns the files of the folder with the indices that their names claim; their contents are not read."""
        found = []
        for path in sorted((self.folder / "shards").glob("[0-9]*.npz"), reverse=True):
            numbers = path.name.split("-")[:2]
            if all(number.isdigit() for number in numbers):
                found.append((range(int(numbers[0]), int(numbers[1]) + 1), path))
        return found

    def listed(self) -> dict[range, Path]:
        """Returns one file of each range of `files`."""
        return dict(self.files())

    def count(self, num: int) -> int:
        """Returns how many of the first `num` samples are in files, by their names."""
        listed = self.listed()
        return sum(len(shard) for shard in self.ranges(num) if shard in listed)

    def find(self) -> tuple[dict[range, Path], list[Path]]:
        """Returns the files of shards that are whole, one of each, and all that are not; every file is read."""
        files = self.files()
        with ThreadPoolExecutor() as readers:
            right = list(readers.map(self._whole, files))
        whole = {shard: path for (shard, path), good in zip(files, right, strict=True) if good}
        return whole, [path for (_, path), good in zip(files, right, strict=True) if not good]

    def gaps(self) -> list[Path]:
        """Returns the names, without digest, of shards that are missing below the last one that is there."""
        listed = self.listed()
        last = max((shard.stop for shard in listed), default=0)
        missing = (shard for shard in self.ranges(last) if shard not in listed)
        return [
            self.folder / "shards" / f"{shard.start:09}-{shard.stop - 1:09}-*.npz"
            for shard in missing
        ]

    def strangers(self) -> list[Path]:
        """Returns what lies among the shards and is none; unfinished ones and others of hidden names aside."""
        known = {path for _, path in self.files()}
        there = sorted((self.folder / "shards").glob("*"))
        return [path for path in there if path not in known and not path.name.startswith(".")]

    def labels(self, indices: np.ndarray | range) -> np.ndarray | None:
        """Returns i32[n], the classes of samples, or None for a model without classes: they repeat in turn."""
        labels = self.settings["labels"]
        return (
            None
            if labels is None
            else np.asarray(labels, np.int32)[np.asarray(indices) % len(labels)]
        )

    def write(self, shard: range, images: np.ndarray) -> None:
        """Writes a shard.

        Raises:
            OSError: if it cannot be written; nothing is left of it then.
        """
        arrays, labels, content = {"images": images}, self.labels(shard), io.BytesIO()
        if labels is not None:
            arrays["labels"] = labels
        np.savez(content, allow_pickle=False, **arrays)
        name = (
            f"{shard.start:09}-{shard.stop - 1:09}-{self._digest(shard, content.getbuffer())}.npz"
        )
        with replacing(self.folder / "shards" / name) as file:
            file.write(content.getbuffer())

    def read(self, shard: range, path: Path) -> np.ndarray:
        """Returns the images of a shard.

        Raises:
            ValueError: if the file is not what was written.
        """
        content = path.read_bytes()
        if not self._right(shard, path, content):
            raise ValueError(
                f"{path} is damaged; run the same `cmjax generate` again to make it anew"
            )
        with np.load(io.BytesIO(content)) as arrays:
            return arrays["images"]

    def _whole(self, file):
        shard, path = file
        return self._right(shard, path, path.read_bytes())

    def _right(self, shard, path, content):
        return path.stem.split("-")[-1] == self._digest(shard, content)

    def _digest(self, shard, content):
        digest = hashlib.blake2b(
            f"{shard.start}-{shard.stop} ".encode(), digest_size=8, key=self._run
        )
        digest.update(content)
        return digest.hexdigest()

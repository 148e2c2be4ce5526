"""What the shards of a finished run are made into: one file, pictures or records, with digests."""

import hashlib
import importlib.util
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cmjax.files import replacing
from cmjax.generation.shards import Shards
from cmjax.image_files import ImageSet, write_array_record, write_npz, write_png_folder

SUMS = "SHA256SUMS"


class Format(NamedTuple):
    """A layout that a run can be exported to.

    Attributes:
        suffix: of the name of the file or folder.
        write: of `cmjax.image_files`.
    """

    suffix: str
    write: Callable[[Path, ImageSet], None]


FORMATS = {
    "npz": Format(".npz", write_npz),
    "png": Format("_png", write_png_folder),
    "array-record": Format(".array_record", write_array_record),
}


def check_formats(formats: Sequence[str], shape: Sequence[int]) -> None:
    """Raises ValueError unless samples of a shape can be made into each of the formats."""
    for name in formats:
        if name not in FORMATS:
            raise ValueError(f"formats must be of {list(FORMATS)}, got {name!r}")
    if "png" in formats and shape[-1] not in (1, 3):
        raise ValueError(
            f"pictures have 1 or 3 channels, but the samples have {shape[-1]}; use the format npz"
        )
    if "array-record" in formats and importlib.util.find_spec("array_record") is None:
        raise ValueError(
            "the format array-record needs the package array-record; pip install array-record"
        )


def export(
    shards: Shards, num: int, format_name: str, stopping: Callable[[], bool] = lambda: False
) -> Path:
    """Makes the shards of the first `num` samples into one file or folder, in bounded memory.

    What is there already is kept if it is what was written.

    Args:
        shards: all of them there.
        num: number of samples.
        format_name: one of `FORMATS`.
        stopping: is asked before each shard whether to stop.

    Returns:
        The path of the file or folder.

    Raises:
        KeyboardInterrupt: if it was stopped.
        ValueError: if a shard is damaged or missing.
        OSError: if something cannot be written.
    """
    shape = tuple(shards.settings.shape)
    suffix, write = FORMATS[format_name]
    name = "x".join(str(size) for size in (num, *shape))
    path = shards.folder / f"samples_{name}{suffix}"
    recorded = _of_export(read_sums(shards.folder), path)
    if recorded and _sums(path) == recorded:
        return path

    listed = shards.listed()
    if missing := [shard for shard in shards.ranges(num) if shard not in listed]:
        raise ValueError(
            f"{shards.folder}: the shard of samples {missing[0].start} to {missing[0][-1]} "
            "is missing"
        )
    images = ImageSet(num, shape, _read(shards, num, stopping), _labels(shards, num))
    write(path, images)
    _record_sums(path)
    return path


def _read(shards: Shards, num: int, stopping: Callable[[], bool]) -> Iterator[np.ndarray]:
    """Yields the images of each shard."""
    listed = shards.listed()
    for shard in shards.ranges(num):
        if stopping():
            raise KeyboardInterrupt
        yield shards.read(shard, listed[shard])


def _labels(shards: Shards, num: int) -> np.ndarray | None:
    return shards.settings.request.labels_of(range(num))


def read_sums(folder: Path) -> dict[str, str]:
    """Returns the digests of everything exported, by name; `sha256sum -c` reads that file, too.

    Raises:
        ValueError: if the file is damaged.
    """
    path = folder / SUMS
    lines = path.read_bytes().splitlines() if path.exists() else []
    sums = {}
    for line in lines:
        if not re.fullmatch(rb"[0-9a-f]{64}  [ -~]+", line):
            raise ValueError(
                f"{path} is damaged; remove it, and run the same generate_folder again to repair it"
            )
        digest, name = line.decode().split("  ", 1)
        sums[name] = digest
    return sums


def damaged_exports(folder: Path) -> Iterator[Path]:
    """Yields what was exported and is not as it was written, and what lies there and was not."""
    recorded = read_sums(folder)
    there = {}
    for path in folder.glob("samples_*"):
        there |= _sums(path)
    for name in sorted(recorded.keys() | there.keys()):
        if recorded.get(name) != there.get(name):
            yield folder / name


def _record_sums(path: Path) -> None:
    """Writes down the digests of an export, and forgets those of exports that are gone."""
    folder = path.parent
    before = read_sums(folder)
    kept = {
        name: digest
        for name, digest in before.items()
        if name not in _of_export(before, path) and (folder / name.split("/")[0]).exists()
    }
    sums = kept | _sums(path)
    with replacing(folder / SUMS) as file:
        for name, digest in sorted(sums.items()):
            file.write(f"{digest}  {name}\n".encode())


def _of_export(sums: Mapping[str, str], path: Path) -> dict[str, str]:
    """The digests of one export, which is a file, or a folder of files."""
    return {name: digest for name, digest in sums.items() if name.split("/")[0] == path.name}


def _sums(path: Path) -> dict[str, str]:
    """Computes the digests of an export."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    sums = {}
    for file in files:
        if file.is_file():
            name = os.fspath(file.relative_to(path.parent))
            with file.open("rb") as opened:
                sums[name] = hashlib.file_digest(opened, "sha256").hexdigest()
    return sums

"""Exports of a finished run: one `.npz`, a folder of pictures or records, with their digests."""

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
        suffix: the end of the file's or folder's name.
        write: the function of `cmjax.image_files` that writes it.
    """

    suffix: str
    write: Callable[[Path, ImageSet], None]


FORMATS = {
    "npz": Format(".npz", write_npz),
    "png": Format("_png", write_png_folder),
    "array-record": Format(".array_record", write_array_record),
}


def check_formats(formats: Sequence[str], shape: Sequence[int]) -> None:
    """Raises ValueError unless samples of shape (H, W, C) can be exported to all `formats`."""
    for name in formats:
        if name not in FORMATS:
            raise ValueError(f"formats must be among {list(FORMATS)}, got {name!r}")
    if "png" in formats and shape[-1] not in (1, 3):
        raise ValueError(
            f"pictures have 1 or 3 channels, but the samples have {shape[-1]}; use the format npz"
        )

    # Looked up, not imported: a missing package must fail here, not after days of sampling.
    if "array-record" in formats and importlib.util.find_spec("array_record") is None:
        raise ValueError(
            "the format array-record needs the package array-record; pip install array-record"
        )


def export(
    shards: Shards, num: int, format_name: str, stopping: Callable[[], bool] = lambda: False
) -> Path:
    """Exports the first `num` samples to one file or folder, in bounded memory.

    An export that exists already is kept if its digests are those recorded.

    Args:
        shards: the shards of the run; those of the first `num` samples must exist.
        num: number of samples.
        format_name: a key of `FORMATS`.
        stopping: called before each shard; returns whether to stop.

    Returns:
        The path of the file or folder.

    Raises:
        KeyboardInterrupt: if `stopping` returned True.
        ValueError: if a shard is damaged or missing.
        OSError: if something cannot be written.
    """
    # Named after the shape, as OpenAI does: samples_50000x64x64x3.npz.
    shape = tuple(shards.settings.shape)
    suffix, write = FORMATS[format_name]
    name = "x".join(str(size) for size in (num, *shape))
    path = shards.folder / f"samples_{name}{suffix}"

    # An export that matches its digests need not be made again.
    recorded = _of_export(read_sums(shards.folder), path)
    if recorded and _sums(path) == recorded:
        return path

    # Check that all shards are there before anything is written.
    listed = shards.listed()
    if missing := [shard for shard in shards.ranges(num) if shard not in listed]:
        raise ValueError(
            f"{shards.folder}: the shard of samples {missing[0].start} to {missing[0][-1]} "
            "is missing"
        )

    # The digests are written last: an export without them, as a kill leaves it, is made again.
    images = ImageSet(num, shape, _read(shards, num, stopping), _labels(shards, num))
    write(path, images)
    _record_sums(path)
    return path


def _read(shards: Shards, num: int, stopping: Callable[[], bool]) -> Iterator[np.ndarray]:
    """Yields the images of each shard, u8[n, H, W, C], one shard in memory at a time."""
    listed = shards.listed()
    for shard in shards.ranges(num):
        # An exception, so that the writer in progress removes its unfinished file.
        if stopping():
            raise KeyboardInterrupt
        yield shards.read(shard, listed[shard])


def _labels(shards: Shards, num: int) -> np.ndarray | None:
    # From the request, which gives them without reading any shard.
    return shards.settings.request.labels_of(range(num))


def read_sums(folder: Path) -> dict[str, str]:
    """Returns the recorded SHA-256 digests of all exported files, by name.

    The file has the format of `sha256sum`, so that `sha256sum -c` checks it too.

    Raises:
        ValueError: if the file is damaged.
    """
    path = folder / SUMS
    lines = path.read_bytes().splitlines() if path.exists() else []
    sums = {}
    for line in lines:
        # A line of `sha256sum`: 64 hex digits, two spaces, the name.
        if not re.fullmatch(rb"[0-9a-f]{64}  [ -~]+", line):
            raise ValueError(
                f"{path} is damaged; remove it, and run the same generate_folder again to repair it"
            )
        digest, name = line.decode().split("  ", 1)
        sums[name] = digest
    return sums


def damaged_exports(folder: Path) -> Iterator[Path]:
    """Yields exported files that are altered or missing, and files that no export has written."""
    recorded = read_sums(folder)

    # A folder can hold several exports: of other formats, or of earlier, smaller numbers.
    there = {}
    for path in folder.glob("samples_*"):
        there |= _sums(path)

    # A file in only one of the two is either missing or unknown: `get` gives None for it.
    for name in sorted(recorded.keys() | there.keys()):
        if recorded.get(name) != there.get(name):
            yield folder / name


def _record_sums(path: Path) -> None:
    """Records the digests of an export, and drops those of exports that no longer exist."""
    folder = path.parent
    before = read_sums(folder)

    # A whole export that is gone was removed on purpose, and does not count as missing. Lines of
    # this export are replaced: an earlier one may have had other files.
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
    """Selects the digests of one export, which is a file or a folder of files."""
    # Names are relative to the run's folder: "samples.npz", or "samples_png/000000.png".
    return {
        name: digest for name, digest in sums.items() if name.split("/")[0] == path.name
    }


def _sums(path: Path) -> dict[str, str]:
    """Computes the SHA-256 digests of an export's files, by their names in the run's folder."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    sums = {}
    for file in files:
        if file.is_file():
            name = os.fspath(file.relative_to(path.parent))
            with file.open("rb") as opened:
                sums[name] = hashlib.file_digest(opened, "sha256").hexdigest()
    return sums

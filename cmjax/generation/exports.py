"""Exports of a finished run: one `.npz`, a folder of pictures or records."""

import contextlib
import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cmjax.files import (
    check_content,
    check_no_link,
    naming,
    set_aside,
    temporary_name,
)
from cmjax.generation.shards import Shards
from cmjax.generation.sums import digests_of, read_sums, record_sums, sums_of_export
from cmjax.image_files import ImageSet, write_array_record, write_npz, write_png_folder
from cmjax.system import flush


class Format(NamedTuple):
    """A layout that a run can be exported to.

    Attributes:
        suffix: the end of the file's or folder's name.
        write: the function of `cmjax.image_files` that writes it.
        is_folder: whether it is a folder of one file for each sample.
    """

    suffix: str
    write: Callable[[Path, ImageSet], None]
    is_folder: bool = False


FORMATS = {
    "npz": Format(".npz", write_npz),
    "png": Format("_png", write_png_folder, is_folder=True),
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


def check_places(
    folder: Path, num: int, shape: Sequence[int], formats: Sequence[str]
) -> None:
    """Checks that nothing but cmjax's own stands where the exports of a run go.

    Raises:
        ValueError: naming what does: something that no export has recorded, or a symbolic link.
    """
    for name in formats:
        _check_place(_export_path(folder, num, shape, name), _num_files(name, num))


def export(
    shards: Shards,
    num: int,
    format_name: str,
    stopping: Callable[[], bool] = lambda: False,
    report: Callable[[str], None] = lambda text: None,
) -> Path:
    """Exports the first `num` samples to one file or folder, in bounded memory.

    An export that exists already is kept if its digests are those recorded; a damaged one is moved
    to the folder `.removed`.

    Args:
        shards: the shards of the run; those of the first `num` samples must exist.
        num: number of samples.
        format_name: a key of `FORMATS`.
        stopping: called before each shard; returns whether to stop.
        report: called with a message for the user if something is moved.

    Returns:
        The path of the file or folder.

    Raises:
        KeyboardInterrupt: if `stopping` returned True.
        ValueError: if a shard is damaged or missing, or something that cmjax did not write stands
            in the export's place.
        OSError: if something cannot be written.
    """
    folder = shards.folder
    shape = tuple(shards.settings.shape)
    path = _export_path(folder, num, shape, format_name)
    num_files = _num_files(format_name, num)
    if _is_whole(path, num_files):
        return path
    _check_place(path, num_files)

    # Check that all shards are there before anything is written.
    listed = shards.listed()
    if missing := [shard for shard in shards.ranges(num) if shard not in listed]:
        raise ValueError(
            f"{folder}: the shard of samples {missing[0].start} to {missing[0][-1]} is missing"
        )

    # Written next to its place. The digests come before the name, so that whatever has the name is
    # recorded, and what is not was written by somebody else.
    images = ImageSet(num, shape, _read(shards, num, stopping), _labels(shards, num))
    with _written(path, FORMATS[format_name].write, images) as written:
        _check_place(path, num_files)
        if os.path.lexists(path):
            report(
                f"{path} is damaged; it was moved to {set_aside(path)} and is made again"
            )
        record_sums(folder, path.name, digests_of(written, path.name))
        written.rename(path)
        flush(folder)
    return path


def _export_path(folder: Path, num: int, shape: Sequence[int], format_name: str) -> Path:
    """Returns where an export goes, such as `samples_50000x64x64x3.npz`, as OpenAI names it."""
    name = "x".join(str(size) for size in (num, *shape))
    return folder / f"samples_{name}{FORMATS[format_name].suffix}"


def _num_files(format_name: str, num: int) -> int:
    """Returns how many files an export of `num` samples has."""
    return num if FORMATS[format_name].is_folder else 1


def _check_place(path: Path, num_files: int) -> None:
    """Raises ValueError if anything that no export has recorded stands at this path."""
    check_no_link(path)
    if not os.path.lexists(path):
        return
    recorded = sums_of_export(read_sums(path.parent), path.name)
    if not recorded:
        raise ValueError(f"{path} is there, but cmjax did not write it; move it away")

    # The user's files in a folder of pictures do not matter as long as it need not be made again.
    try:
        if path.is_dir():
            check_content(path, lambda name: f"{path.name}/{name}" in recorded)
    except ValueError:
        if not _is_whole(path, num_files):
            raise


def _is_whole(path: Path, num_files: int) -> bool:
    """Returns whether all files of an export are recorded, and have these digests."""
    recorded = sums_of_export(read_sums(path.parent), path.name)
    if len(recorded) != num_files or path.is_symlink() or not path.exists():
        return False
    found = digests_of(path, path.name, recorded)
    return all(found.get(name) == digest for name, digest in recorded.items())


@contextlib.contextmanager
def _written(
    path: Path, write: Callable[[Path, ImageSet], None], images: ImageSet
) -> Iterator[Path]:
    """Writes an export under a temporary name, which is removed unless it is renamed."""
    temporary = temporary_name(path, path.suffix)
    try:
        write(temporary, images)
        yield temporary
    except OSError as error:
        raise naming(error, path, temporary) from None
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


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

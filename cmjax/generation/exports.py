"""What the shards of a finished run are made into: one file, pictures or records, with their digests."""

import errno
import hashlib
import importlib.util
import itertools
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from flax.serialization import msgpack_serialize

from cmjax.files import replacing, replacing_folder
from cmjax.generation.shards import Shards
from cmjax.images import save_png

SUMS = "SHA256SUMS"

# What a finished run is made into: (path, number of samples, their shape, labels or None, batches of images).
Writer = Callable[[Path, int, tuple[int, ...], np.ndarray | None, Iterable[np.ndarray]], None]


def write_npz(
    path: Path,
    num: int,
    shape: tuple[int, ...],
    labels: np.ndarray | None,
    parts: Iterable[np.ndarray],
):
    """Writes `arr_0` u8[N, H, W, C] and `arr_1` i64[N], the layout of guided-diffusion's evaluator, part by part."""
    with replacing(path) as file, zipfile.ZipFile(file, "w") as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as member:
            header = {"descr": "|u1", "fortran_order": False, "shape": (num, *shape)}
            np.lib.format.write_array_header_1_0(member, header)
            for images in parts:
                member.write(np.ascontiguousarray(images).data)
        if labels is not None:
            with archive.open("arr_1.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, labels.astype(np.int64), allow_pickle=False)


def write_png(
    path: Path,
    num: int,
    shape: tuple[int, ...],
    labels: np.ndarray | None,
    parts: Iterable[np.ndarray],
):
    """Writes a folder of `000000.png`, `000001.png`, ..., as torch-fidelity takes it."""
    del shape, labels
    digits, first = max(6, len(str(num - 1))), 0
    with replacing_folder(path) as folder, ThreadPoolExecutor() as encoders:
        for images in parts:
            files = [folder / f"{first + i:0{digits}}.png" for i in range(len(images))]
            list(encoders.map(save_png, files, images))
            first += len(images)


def write_array_record(
    path: Path,
    num: int,
    shape: tuple[int, ...],
    labels: np.ndarray | None,
    parts: Iterable[np.ndarray],
):
    """Writes records `{"image": u8[H, W, C], "label": int}` as Flax's `msgpack_restore` reads them."""
    del num, shape
    from array_record.python.array_record_module import ArrayRecordWriter

    rows = itertools.chain.from_iterable(parts)
    with replacing(path) as file:
        try:
            writer = ArrayRecordWriter(
                file.name, "group_size:1"
            )  # one record at a time can be read
            for i, image in enumerate(rows):
                label = {} if labels is None else {"label": int(labels[i])}
                writer.write(msgpack_serialize({"image": image, **label}))
            writer.close()
        except RuntimeError as error:
            raise OSError(errno.EIO, str(error), os.fspath(path)) from None


FORMATS: dict[str, tuple[str, Writer]] = {
    "npz": (".npz", write_npz),
    "png": ("_png", write_png),
    "array-record": (".array_record", write_array_record),
}


def check_formats(formats: Sequence[str], shape: tuple[int, ...]) -> None:
    """Raises ValueError unless samples of a shape can be made into each of the formats."""
    for kind in formats:
        if kind not in FORMATS:
            raise ValueError(f"formats must be of {list(FORMATS)}, got {kind!r}")
    if "png" in formats and shape[-1] not in (1, 3):
        raise ValueError(
            f"pictures have 1 or 3 channels, but the samples have {shape[-1]}; use the format npz"
        )
    if "array-record" in formats and importlib.util.find_spec("array_record") is None:
        raise ValueError(
            "the format array-record needs the package array-record; pip install array-record"
        )


def export(
    shards: Shards, num: int, kind: str, stopping: Callable[[], bool] = lambda: False
) -> Path:
    """Makes the shards of the first `num` samples into one file or folder, in bounded memory; returns its path.

    What is there already is kept if it is what was written.

    Args:
        shards: all of them there.
        num: number of samples.
        kind: one of `FORMATS`.
        stopping: is asked before each shard whether to stop.

    Raises:
        KeyboardInterrupt: if it was stopped.
        ValueError: if a shard is damaged or missing.
        OSError: if something cannot be written.
    """
    suffix, write = FORMATS[kind]
    shape = tuple(shards.settings["shape"])
    path = shards.folder / f"samples_{'x'.join(map(str, (num, *shape)))}{suffix}"
    sums = read_sums(shards.folder)
    known = {name: digest for name, digest in sums.items() if name.split("/")[0] == path.name}
    if known and _sums(path) == known:
        return path
    listed = shards.listed()
    if missing := [shard for shard in shards.ranges(num) if shard not in listed]:
        raise ValueError(
            f"{shards.folder}: the shard of samples {missing[0].start} to {missing[0][-1]} is missing"
        )

    def parts():
        for shard in shards.ranges(num):
            if stopping():
                raise KeyboardInterrupt
            yield shards.read(shard, listed[shard])

    write(path, num, shape, shards.labels(range(num)), parts())
    others = {
        name: digest
        for name, digest in sums.items()
        if (shards.folder / name.split("/")[0]).exists()
    }
    sums = {name: digest for name, digest in others.items() if name not in known} | _sums(path)
    with replacing(shards.folder / SUMS) as file:
        file.writelines(f"{digest}  {name}\n".encode() for name, digest in sorted(sums.items()))
    return path


def read_sums(folder: Path) -> dict[str, str]:
    """Returns the digests of everything exported, by name, from a file that `sha256sum -c` reads too.

    Raises:
        ValueError: if that file is damaged.
    """
    path = folder / SUMS
    lines = path.read_bytes().splitlines() if path.exists() else []
    if not all(re.fullmatch(rb"[0-9a-f]{64}  [ -~]+", line) for line in lines):
        raise ValueError(
            f"{path} is damaged; remove it, and the same `cmjax generate` makes it anew"
        )
    return {name: digest for digest, _, name in (line.decode().partition("  ") for line in lines)}


def damaged_exports(folder: Path) -> Iterator[Path]:
    """Yields what was exported and is not as it was written, and what lies there and was not."""
    known = read_sums(folder)
    there = {
        name: digest for path in folder.glob("samples_*") for name, digest in _sums(path).items()
    }
    for name in sorted(known.keys() | there.keys()):
        if known.get(name) != there.get(name):
            yield folder / name


def _sums(path):
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return {
        os.fspath(file.relative_to(path.parent)): _sha256(file) for file in files if file.is_file()
    }


def _sha256(path):
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

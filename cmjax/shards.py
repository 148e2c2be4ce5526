"""A folder of samples in shards: what is finished outlives the process, and is checked whenever it is read."""

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from flax.serialization import msgpack_serialize

from cmjax.files import replacing, replacing_folder
from cmjax.images import save_png

MANIFEST, SUMS, STOP = "manifest.json", "SHA256SUMS", ".stop"


class Shards:
    """Shards `first-last-digest.npz` of `images` u8[n, H, W, C] and, for models with classes, `labels` i32[n].

    A shard's name ends in a digest of the run's settings and of the file, so that a shard that is torn, altered or
    of another run is never taken for one of this. No process needs to know what another has written.

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

    def listed(self) -> dict[range, Path]:
        """Returns the files of the folder by the indices that their names claim; their contents are not read."""
        found = {}
        for path in sorted((self.folder / "shards").glob("[0-9]*.npz"), reverse=True):
            numbers = path.name.split("-")[:2]
            if all(number.isdigit() for number in numbers):
                found[range(int(numbers[0]), int(numbers[1]) + 1)] = path
        return found

    def find(self, num: int) -> tuple[dict[range, Path], list[Path]]:
        """Returns the shards of the first `num` samples that are whole, and the files of those that are not."""
        listed = self.listed()
        wanted = {shard: listed[shard] for shard in self.ranges(num) if shard in listed}
        with ThreadPoolExecutor() as readers:
            whole = readers.map(lambda path: self._named(path.read_bytes(), path), wanted.values())
            right = dict(zip(wanted, whole, strict=True))
        return {s: p for s, p in wanted.items() if right[s]}, [p for s, p in wanted.items() if not right[s]]

    def labels(self, indices: np.ndarray | range) -> np.ndarray | None:
        """Returns i32[n], the classes of samples, or None for a model without classes: they repeat in turn."""
        labels = self.settings["labels"]
        return None if labels is None else np.asarray(labels, np.int32)[np.asarray(indices) % len(labels)]

    def write(self, shard: range, images: np.ndarray) -> None:
        """Writes a shard.

        Raises:
            OSError: if it cannot be written; nothing is left of it then.
        """
        arrays, labels, content = {"images": images}, self.labels(shard), io.BytesIO()
        if labels is not None:
            arrays["labels"] = labels
        np.savez(content, allow_pickle=False, **arrays)
        name = f"{shard.start:09}-{shard.stop - 1:09}-{self._digest(content.getbuffer())}.npz"
        with replacing(self.folder / "shards" / name) as file:
            file.write(content.getbuffer())

    def read(self, path: Path) -> np.ndarray:
        """Returns the images of a shard.

        Raises:
            ValueError: if it is not what was written.
        """
        content = path.read_bytes()
        if not self._named(content, path):
            raise ValueError(f"{path} is damaged; run the same `cmjax generate` again to make it anew")
        with np.load(io.BytesIO(content)) as arrays:
            return arrays["images"]

    def _named(self, content, path):
        return path.stem.split("-")[-1] == self._digest(content)

    def _digest(self, content):
        return hashlib.blake2b(content, digest_size=8, key=self._run).hexdigest()


def open_shards(folder: Path, settings: Mapping[str, Any], source: str, shard_size: int | None) -> Shards:
    """Opens the folder of a run, or begins one.

    Args:
        folder: of the run.
        settings: everything that samples depend on; `shard_size` is added.
        source: of the model, for `--verify`.
        shard_size: samples in a shard; None for that of the folder, 100 if it is new.

    Raises:
        ValueError: if the folder is of a run with other settings, or holds something else.
        OSError: if it cannot be written.
    """
    path = folder / MANIFEST
    if path.exists():
        before = read_manifest(folder)["settings"]
        settings = {**settings, "shard_size": shard_size or before.get("shard_size")}
        if different := [
            f"{name} was {_short(before.get(name))}, now {_short(settings.get(name))}"
            for name in sorted(before.keys() | settings.keys())
            if before.get(name) != settings.get(name)
        ]:
            raise ValueError(f"{folder} holds samples of other settings: {'; '.join(different)}; choose another --out")
        return Shards(folder, settings)
    if folder.is_dir() and (others := sorted(f.name for f in folder.iterdir() if not f.name.startswith(".cmjax-"))):
        raise ValueError(f"{folder} must be new or empty, or of the same run, but holds {others[0]}; choose another")
    (folder / "shards").mkdir(parents=True, exist_ok=True)
    settings = {**settings, "shard_size": shard_size or 100}
    with replacing(path) as file:
        file.write(json.dumps({"settings": settings, "source": source}, indent=1).encode())
    return Shards(folder, settings)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Returns `settings` and `source` of a run.

    Raises:
        ValueError: if the folder holds none.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        return {"settings": dict(manifest["settings"]), "source": manifest["source"]}
    except FileNotFoundError:
        raise ValueError(f"{folder} has no {MANIFEST}; it is no folder of `cmjax generate`") from None
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{folder / MANIFEST} is damaged; restore it, or choose another --out") from None


def _short(value):
    text = json.dumps(value)
    return text if len(text) < 60 else f"{text[:56]} ..."


# What a finished run is made into: (path, number of samples, their shape, labels or None, batches of images).
Writer = Callable[[Path, int, tuple[int, ...], np.ndarray | None, Iterable[np.ndarray]], None]


def write_npz(path: Path, num: int, shape: tuple[int, ...], labels: np.ndarray | None, parts: Iterable[np.ndarray]):
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


def write_png(path: Path, num: int, shape: tuple[int, ...], labels: np.ndarray | None, parts: Iterable[np.ndarray]):
    """Writes a folder of `000000.png`, `000001.png`, ..., as torch-fidelity takes it."""
    del shape, labels
    digits, first = max(6, len(str(num - 1))), 0
    with replacing_folder(path) as folder, ThreadPoolExecutor() as encoders:
        for images in parts:
            files = [folder / f"{first + i:0{digits}}.png" for i in range(len(images))]
            list(encoders.map(save_png, files, images))
            first += len(images)


def write_array_record(
    path: Path, num: int, shape: tuple[int, ...], labels: np.ndarray | None, parts: Iterable[np.ndarray]
):
    """Writes records `{"image": u8[H, W, C], "label": int}` as Flax's `msgpack_restore` reads them."""
    del num, shape
    from array_record.python.array_record_module import ArrayRecordWriter

    first = 0
    with replacing(path) as file:
        writer = ArrayRecordWriter(file.name, "group_size:1")  # one record at a time can be read
        for images in parts:
            for i, image in enumerate(images, first):
                label = {} if labels is None else {"label": int(labels[i])}
                writer.write(msgpack_serialize({"image": image, **label}))
            first += len(images)
        writer.close()


FORMATS: dict[str, tuple[str, Writer]] = {
    "npz": (".npz", write_npz),
    "png": ("_png", write_png),
    "array-record": (".array_record", write_array_record),
}


def export(shards: Shards, num: int, kind: str) -> Path:
    """Makes the shards of the first `num` samples into one file or folder, in bounded memory; returns its path.

    What is there already is kept if it is what was written.

    Args:
        shards: all of them there.
        num: number of samples.
        kind: one of `FORMATS`.

    Raises:
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
        raise ValueError(f"{shards.folder}: the shard of samples {missing[0].start} to {missing[0][-1]} is missing")
    write(path, num, shape, shards.labels(range(num)), (shards.read(listed[s]) for s in shards.ranges(num)))
    sums = {name: digest for name, digest in sums.items() if name not in known} | _sums(path)
    with replacing(shards.folder / SUMS) as file:
        file.writelines(f"{digest}  {name}\n".encode() for name, digest in sorted(sums.items()))
    return path


def read_sums(folder: Path) -> dict[str, str]:
    """Returns the digests of everything exported, by name, from a file that `sha256sum -c` reads too."""
    path = folder / SUMS
    lines = path.read_text().splitlines() if path.exists() else []
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def damaged_exports(folder: Path) -> Iterator[Path]:
    """Yields what was exported and is not as it was written."""
    for name, digest in read_sums(folder).items():
        if not (folder / name).is_file() or _sha256(folder / name) != digest:
            yield folder / name


def _sums(path):
    files = sorted(path.iterdir()) if path.is_dir() else [path] * path.is_file()
    return {os.fspath(file.relative_to(path.parent)): _sha256(file) for file in files}


def _sha256(path):
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

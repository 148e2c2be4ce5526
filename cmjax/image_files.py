"""Many images in files: one writer for each layout, all of which take the images in parts.

* `write_npz`: the `.npz` of OpenAI's guided-diffusion, `arr_0` and `arr_1`.
* `write_png_folder`: numbered pictures.
* `write_array_record`: records with random access, for data loaders such as grain.
* `write_shard`: a part of a run of `cmjax.generation`, `images` and `labels`.
"""

import errno
import itertools
import os
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from PIL import Image

from cmjax.files import replacing, replacing_folder

MIN_DIGITS = 6  # of the number in a picture's name


class ImageSet(NamedTuple):
    """Images to be written, which need not be in memory together.

    Attributes:
        num: number of images, N.
        shape: (H, W, C) of each.
        parts: the images in order, u8[n, H, W, C] each.
        labels: the classes, integers [N], or None.
    """

    num: int
    shape: tuple[int, ...]
    parts: Iterable[np.ndarray]
    labels: np.ndarray | None = None

    @classmethod
    def of(cls, images: np.ndarray, labels: np.ndarray | None = None) -> "ImageSet":
        """Returns the set of images u8[N, H, W, C] that are in memory."""
        return cls(len(images), images.shape[1:], [images], labels)


def write_npz(path: Path, images: ImageSet) -> None:
    """Writes `arr_0` u8[N, H, W, C] and, if there are labels, `arr_1` i64[N], part by part.

    It is the layout of OpenAI's `image_sample.py`, which guided-diffusion's evaluator reads.

    Raises:
        OSError: if the file cannot be written; `path` is then as it was.
    """
    with replacing(path) as file, zipfile.ZipFile(file, "w") as archive:
        _write_array(archive, "arr_0", (images.num, *images.shape), np.uint8, images.parts)
        if images.labels is not None:
            labels = images.labels.astype(np.int64)
            _write_array(archive, "arr_1", labels.shape, labels.dtype, [labels])


def write_shard(file: IO[bytes], images: np.ndarray, labels: np.ndarray | None) -> None:
    """Writes `images` u8[n, H, W, C] and, if there are labels, `labels` i32[n], as `.npz`.

    A shard's name holds a digest of these bytes: another layout would make old folders unreadable.
    """
    with zipfile.ZipFile(file, "w") as archive:
        _write_array(archive, "images", images.shape, images.dtype, [images])
        if labels is not None:
            _write_array(archive, "labels", labels.shape, labels.dtype, [labels])


def write_png_folder(folder: Path, images: ImageSet) -> None:
    """Writes a folder of `000000.png`, `000001.png`, ..., as torch-fidelity and others take it.

    Raises:
        OSError: if it cannot be written; `folder` is then as it was.
    """
    digits = max(MIN_DIGITS, len(str(images.num - 1)))
    with replacing_folder(folder) as complete, ThreadPoolExecutor() as encoders:
        first = 0
        for part in images.parts:
            paths = [complete / f"{first + i:0{digits}}.png" for i in range(len(part))]
            list(encoders.map(save_png, paths, part))  # a list: raises what a thread raised
            first += len(part)


def save_png(path: Path, image: np.ndarray) -> None:
    """Writes u8[H, W, C], C being 1 or 3, as it is."""
    picture_of(image).save(path)


def picture_of(image: np.ndarray) -> Image.Image:
    """Returns u8[H, W, C], C being 1 or 3, as a picture of Pillow."""
    gray = image.shape[-1] == 1
    return Image.fromarray(image.squeeze(-1) if gray else image)


def write_array_record(path: Path, images: ImageSet) -> None:
    """Writes records `{"image": u8[H, W, C], "label": int}`, for Flax's `msgpack_restore`.

    Raises:
        OSError: if the file cannot be written; `path` is then as it was.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    with replacing(path) as file:
        try:
            # Groups of one: a loader can then read any record without its neighbours.
            writer = ArrayRecordWriter(file.name, "group_size:1")
            for record in _records(images):
                writer.write(record)
            writer.close()
        except RuntimeError as error:  # such as a full disk
            raise OSError(errno.EIO, str(error), os.fspath(path)) from None


def _records(images: ImageSet) -> Iterator[bytes]:
    from flax.serialization import msgpack_serialize

    for i, image in enumerate(itertools.chain.from_iterable(images.parts)):
        record: dict[str, Any] = {"image": image}
        if images.labels is not None:
            record["label"] = int(images.labels[i])
        yield msgpack_serialize(record)


def _write_array(
    archive: zipfile.ZipFile,
    name: str,
    shape: Sequence[int],
    dtype: Any,
    parts: Iterable[np.ndarray],
) -> None:
    """Adds an array whose rows come in parts; the bytes are those of `np.savez`."""
    header = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
        "fortran_order": False,
        "shape": tuple(shape),
    }
    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array_header_1_0(member, header)
        for part in parts:
            member.write(np.ascontiguousarray(part).data)

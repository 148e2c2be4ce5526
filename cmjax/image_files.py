"""Writers of image sets, one for each file layout.

* `write_npz`: the `.npz` of OpenAI's guided-diffusion, with `arr_0` and `arr_1`.
* `write_png_folder`: numbered pictures.
* `write_array_record`: records with random access, for data loaders such as grain.
* `write_shard`: a part of a run of `cmjax.generation`, such as `images` and `labels`.

The first three take images in parts, so that a set may be larger than the memory.
"""

import errno
import itertools
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from cmjax.files import replacing, replacing_folder

MIN_DIGITS = 6  # minimum number of digits in a picture's name


class ImageSet(NamedTuple):
    """Images to be written, which need not be in memory at the same time.

    Attributes:
        num: number of images, N.
        shape: (H, W, C) of each image.
        parts: the images in order, as arrays u8[n, H, W, C] whose n may vary.
        labels: their classes, integers [N], or None.
    """

    num: int
    shape: tuple[int, ...]
    parts: Iterable[np.ndarray]
    labels: np.ndarray | None = None

    @classmethod
    def of(cls, images: ArrayLike, labels: ArrayLike | None = None) -> "ImageSet":
        """Returns a set of images that are in memory, u8[N, H, W, C], as one part."""
        # Pillow and zip files take NumPy's arrays only, not those of JAX.
        images = np.asarray(images)
        if labels is not None:
            labels = np.asarray(labels)
        return cls(len(images), images.shape[1:], [images], labels)


def write_npz(path: Path, images: ImageSet) -> None:
    """Writes `arr_0` u8[N, H, W, C] and, if there are labels, `arr_1` i64[N], part by part.

    This is the layout of OpenAI's `image_sample.py`, which guided-diffusion's evaluator reads.

    Raises:
        OSError: if the file cannot be written; `path` is then unchanged.
    """
    # `np.savez` would need all images in memory.
    with replacing(path) as file, zipfile.ZipFile(file, "w") as archive:
        _write_array(archive, "arr_0", (images.num, *images.shape), np.uint8, images.parts)
        if images.labels is not None:
            labels = np.asarray(images.labels, np.int64)
            _write_array(archive, "arr_1", labels.shape, labels.dtype, [labels])


def write_shard(file: IO[bytes], arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays as an `.npz`, uncompressed and in this order.

    The name of a shard contains a digest of these bytes, so the layout must not change: shards of
    earlier versions would count as damaged.
    """
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            _write_array(archive, name, array.shape, array.dtype, [array])


def write_png_folder(folder: Path, images: ImageSet) -> None:
    """Writes a folder of `000000.png`, `000001.png`, ..., which torch-fidelity and others read.

    Raises:
        OSError: if the folder cannot be written; it is then unchanged.
    """
    # All names have the same length, so that they sort by number.
    digits = max(MIN_DIGITS, len(str(images.num - 1)))

    # Threads help, since Pillow releases the GIL while it compresses.
    with replacing_folder(folder) as complete, ThreadPoolExecutor() as encoders:
        first = 0
        for part in images.parts:
            paths = [complete / f"{first + i:0{digits}}.png" for i in range(len(part))]
            # `list` waits for the threads and raises what they raised.
            list(encoders.map(save_png, paths, part))
            first += len(part)


def save_png(path: Path, image: ArrayLike) -> None:
    """Writes an image u8[H, W, C] with C of 1 or 3, gray or colour."""
    picture_of(image).save(path)


def picture_of(image: ArrayLike) -> Image.Image:
    """Returns an image u8[H, W, C] with C of 1 or 3 as a picture of Pillow."""
    # Pillow takes NumPy's arrays only, and gray pixels as [H, W].
    image = np.asarray(image)
    gray = image.shape[-1] == 1
    return Image.fromarray(image.squeeze(-1) if gray else image)


def write_array_record(path: Path, images: ImageSet) -> None:
    """Writes records `{"image": u8[H, W, C], "label": int}`, which Flax's `msgpack_restore` reads.

    Raises:
        OSError: if the file cannot be written; `path` is then unchanged.
    """
    # Imported here, since the package is optional.
    from array_record.python.array_record_module import ArrayRecordWriter

    # The writer takes a file's name, not an open file, and its errors do not name the file.
    with replacing(path) as file:
        try:
            # Groups of one record: a loader can read any of them without its neighbours.
            writer = ArrayRecordWriter(file.name, "group_size:1")
            for record in _records(images):
                writer.write(record)
            writer.close()
        except RuntimeError as error:  # such as a full disk
            raise OSError(errno.EIO, str(error), os.fspath(path)) from None


def _records(images: ImageSet) -> Iterator[bytes]:
    """Yields the record of each image, serialized."""
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
    """Adds an array to an `.npz` in parts; the bytes of the array are those of `np.savez`.

    Args:
        archive: the open `.npz`, which is a zip file of `.npy` files.
        name: name of the array.
        shape: shape of the whole array.
        dtype: its dtype, that of all parts.
        parts: its rows, in order.
    """
    # The header of a `.npy` file gives the whole shape, before any row is there.
    header = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
        "fortran_order": False,
        "shape": tuple(shape),
    }

    # Zip allows members of 2 GiB and more only if that is declared before they are written.
    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array_header_1_0(member, header)
        for part in parts:
            member.write(np.ascontiguousarray(part).data)

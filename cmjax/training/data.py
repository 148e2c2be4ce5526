"""Training data from the files people have, and the batch of each step, by Grain."""

import gzip
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from cmjax.images import MODES, center_crop_resize, from_uint8, read_image

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
NPZ_NAMES = (("x_train", "y_train"), ("images", "labels"), ("arr_0", "arr_1"))  # of data and labels
READ_AHEAD = 4  # batches, each by a thread
Record = Mapping[
    str, Any
]  # "data": u8[H, W, C], or floats ready for training; "class_labels": an integer


class Source(Protocol):
    """What Grain calls a `RandomAccessDataSource`; any of your own will do, if several threads may read it."""

    def __len__(self) -> int:
        """Number of records."""
        ...

    def __getitem__(self, index: int, /) -> Record:
        """Record number `index`."""
        ...


class Arrays:
    """Records in memory."""

    def __init__(self, data: np.ndarray, labels: np.ndarray | None = None):
        """Takes data `[N, ...]` and labels i32[N], or None."""
        self.data, self.labels = data, labels

    def __len__(self) -> int:
        """Number of records."""
        return len(self.data)

    def __getitem__(self, index: int) -> Record:
        """Record number `index`."""
        labels = {} if self.labels is None else {"class_labels": self.labels[index]}
        return {"data": self.data[index], **labels}


class Pictures:
    """A folder of pictures, read when they are wanted; its folders, if it has any, are the classes."""

    def __init__(self, folder: str | Path, size: int, channels: int = 3):
        """Finds the pictures, in order of their names; their middle squares are scaled to `size`.

        Raises:
            ValueError: if there are none, in the folder or in one of its classes, or some in both; or for a number
                of channels other than 1 and 3.
        """
        if channels not in MODES:
            raise ValueError(f"channels must be 1 or 3, got {channels}")
        folder, self.size, self.channels = Path(folder), size, channels
        within = sorted(
            path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
        )
        classes = {path.name: _pictures(path, "**/*") for path in within}
        loose = _pictures(folder, "*")
        empty = [name for name, files in classes.items() if not files]
        if loose and len(empty) < len(classes):
            raise ValueError(
                f"{folder} holds pictures beside folders of pictures, its classes; move {loose[0]} into one"
            )
        if not loose and len(empty) == len(classes):
            raise ValueError(
                f"{folder} must hold pictures ({', '.join(PICTURES)}), or a folder of them for each class"
            )
        if not loose and empty:
            raise ValueError(
                f"{folder / empty[0]} is a class without pictures ({', '.join(PICTURES)}); remove it"
            )
        self.classes = [] if loose else list(classes)
        labelled = enumerate([loose] if loose else classes.values())
        self.files = [(file, label) for label, files in labelled for file in files]

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.files)

    def __getitem__(self, index: int) -> Record:
        """Picture number `index`, u8[size, size, channels]."""
        file, label = self.files[index]
        labels = {"class_labels": np.int32(label)} if self.classes else {}
        return {"data": center_crop_resize(read_image(file, self.channels), self.size), **labels}


def open_source(path: str | Path, size: int | None = None, channels: int = 3) -> Source:
    """Opens an `.npz`, an IDX file or a folder of pictures.

    Args:
        path: an `.npz` with `x_train` and `y_train`, `images` and `labels`, or `arr_0` and `arr_1` (labels may be
            absent): data u8[N, H, W(, C)], or floats `[N, ...]` that are scaled already; an IDX image file such as
            `train-images-idx3-ubyte.gz`, with `labels-idx1` beside it; or a folder of pictures, whose folders, if
            it has any, are the classes in order of their names.
        size: height and width; the middle squares of a folder's pictures are scaled to it.
        channels: of a folder's pictures, 1 or 3.

    Returns:
        Records with "data" and, if there are labels, "class_labels".

    Raises:
        ValueError: if the file holds no such arrays, images of another size, or numbers that are not finite.
        OSError: if it cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        if size is None:
            raise ValueError(f"{path} is a folder of pictures, and needs a size to scale them to")
        return Pictures(path, size, channels)
    data, labels = _read_npz(path) if path.suffix == ".npz" else _read_idx_pair(path)
    if data.size and data.dtype == np.uint8 and data.ndim in (3, 4):
        data = data.reshape(*data.shape[:3], -1)
        if size is not None and data.shape[1:3] != (size, size):
            raise ValueError(
                f"{path} holds images of {data.shape[2]}x{data.shape[1]}, but {size}x{size} are wanted"
            )
    elif data.size and np.issubdtype(data.dtype, np.floating) and data.ndim >= 2:
        with np.errstate(over="ignore"):
            data = data.astype(np.float32, copy=False)
        if (bad := _not_finite(data)) is not None:
            raise ValueError(f"{path}: sample {bad} is not finite in float32; remove or repair it")
    else:
        raise ValueError(
            f"{path} must hold u8[N, H, W(, C)] or floats [N, ...], got {data.dtype}{list(data.shape)}"
        )
    if labels is not None and (
        labels.size != len(data) or not np.issubdtype(labels.dtype, np.integer)
    ):
        raise ValueError(
            f"{path} must have an integer label for each of {len(data)} samples, got {labels.dtype}{list(labels.shape)}"
        )
    return Arrays(data, None if labels is None else labels.reshape(-1).astype(np.int32))


def batches(
    source: Source,
    batch_size: int,
    *,
    seed: int,
    start: int = 0,
    num_classes: int | None = None,
    flip: bool = False,
    process_index: int | None = None,
    process_count: int | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Returns the batches of step `start`, `start + 1`, ... without end, each a function of seed and step alone.

    Every epoch is a permutation of the data, another one each time; a batch may span two. Threads read ahead.

    Args:
        source: records, see `open_source`. What they hold beside "data" and "class_labels" is stacked as it is.
        batch_size: over all processes together.
        seed: of the order and the flips, at least 0.
        start: the first step.
        num_classes: labels must be below it; None allows any that is not negative.
        flip: mirror every image left to right, or not, by chance.
        process_index: which rows of every batch are wanted; this process's by default.
        process_count: how many processes share a batch; by default as many as there are.

    Returns:
        An iterator of {"data": f32[batch_size / process_count, ...], "class_labels": i32[...]}, pixels mapped to
        [-1, 1]. All processes' rows, one after another, are the same batch for any number of them.

    Raises:
        ValueError: if a batch is larger than the data or does not divide by the processes, or grain is not
            installed; when it comes to them, for records that are not finite, not alike or have labels out of range.
    """
    index = jax.process_index() if process_index is None else process_index
    count = jax.process_count() if process_count is None else process_count
    for name, value, least in (
        ("batch_size", batch_size, 1),
        ("seed", seed, 0),
        ("start", start, 0),
    ):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if batch_size > len(source):
        raise ValueError(f"batch_size {batch_size} is larger than the data set of {len(source)}")
    if not 0 <= index < count:
        raise ValueError(
            f"process_index must be from 0 to {count - 1} for {count} processes, got {index}"
        )
    if batch_size % count:
        raise ValueError(
            f"batch_size {batch_size} does not divide over {count} processes; choose a multiple of {count}"
        )
    grain, share = _import_grain(), batch_size // count

    def read(rows, rng):
        batch = _collate(source, rows, num_classes)
        return (
            _mirrored(batch, rng.random(batch_size)[index * share :][:share] < 0.5)
            if flip
            else batch
        )

    order = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat(None)
    shares = order.batch(share, drop_remainder=True)[
        index::count
    ]  # a batch is the shares of all processes in turn
    ahead = grain.ReadOptions(num_threads=READ_AHEAD, prefetch_buffer_size=READ_AHEAD)
    return iter(shares.random_map(read)[start:].to_iter_dataset(ahead))


def read_idx(path: str | Path) -> np.ndarray:
    """Reads an IDX file of unsigned bytes, gzipped or not (format: yann.lecun.com/exdb/mnist).

    Raises:
        ValueError: if it is not one, or is cut short.
    """
    path = Path(path)
    raw = path.read_bytes()
    try:
        raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is broken or cut short: {error}") from None
    if len(raw) < 4 or raw[:3] != b"\0\0\x08" or len(raw) < 4 + 4 * raw[3]:
        raise ValueError(f"{path} is neither an .npz nor an IDX file of unsigned bytes")
    rank = raw[3]
    shape = struct.unpack(f">{rank}I", raw[4 : 4 + 4 * rank])
    values = np.frombuffer(raw, np.uint8, offset=4 + 4 * rank)
    if values.size != np.prod(shape):
        raise ValueError(f"{path} announces {shape} but holds {values.size} bytes")
    return values.reshape(shape)


def _import_grain():
    try:
        import grain
    except ImportError:
        raise ValueError("training data needs the package grain: pip install grain") from None
    return grain


def _collate(source, rows, num_classes):
    """The records of these rows as one batch."""
    records = [source[int(row)] for row in rows]
    for row, record in zip(rows, records, strict=True):
        if not isinstance(record, Mapping) or "data" not in record:
            raise ValueError(
                f'record {row} of the data must be a mapping with "data", got {type(record).__name__}'
            )
        if record.keys() != records[0].keys():
            raise ValueError(
                f"record {row} of the data has {sorted(record)}, record {rows[0]} {sorted(records[0])}"
            )
    batch = {name: _stack([record[name] for record in records], rows, name) for name in records[0]}
    batch["data"] = _scaled(batch["data"], rows)
    if "class_labels" in batch:
        batch["class_labels"] = _checked_labels(batch["class_labels"], rows, num_classes)
    return batch


def _stack(values, rows, name):
    arrays = [np.asarray(value) for value in values]
    first = arrays[0]
    for row, array in zip(rows, arrays, strict=True):
        if (array.dtype, array.shape) != (first.dtype, first.shape):
            raise ValueError(
                f"record {row} of the data has {name} {array.dtype}{list(array.shape)}, "
                f"but record {rows[0]} {first.dtype}{list(first.shape)}"
            )
    return np.stack(arrays)


def _scaled(data, rows):
    """Pixels as samples in [-1, 1]; floats as they are, but checked."""
    if data.dtype == np.uint8:
        return from_uint8(data)
    if not jnp.issubdtype(data.dtype, jnp.floating):
        raise ValueError(
            f"record {rows[0]} of the data is {data.dtype}; give pixels as uint8, or floats scaled already"
        )
    data = data.astype(np.float32)
    if (bad := _not_finite(data)) is not None:
        raise ValueError(f"record {rows[bad]} of the data is not finite; remove or repair it")
    return data


def _checked_labels(labels, rows, num_classes):
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"record {rows[0]} of the data must have one integer label, got {labels.dtype}{labels.shape[1:]}"
        )
    wrong = (labels < 0) | (labels >= (2**31 if num_classes is None else num_classes))
    if wrong.any():
        label, row = labels[wrong.argmax()], rows[wrong.argmax()]
        classes = "" if num_classes is None else f", below num_classes {num_classes}"
        raise ValueError(
            f"record {row} of the data has label {label}; labels must be 0 or more{classes}"
        )
    return labels.astype(np.int32)


def _mirrored(batch, chosen):
    data = batch["data"]
    if data.ndim != 4:
        raise ValueError(
            f"flip needs images [H, W, C], got data of shape {data.shape[1:]}; leave it out"
        )
    return {**batch, "data": np.where(chosen[:, None, None, None], data[:, :, ::-1], data)}


def _not_finite(data):
    """The first sample that holds a NaN or an infinity, or None."""
    bad = ~np.isfinite(data).reshape(len(data), -1).all(-1)
    return int(bad.argmax()) if bad.any() else None


def _read_npz(path):
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            for data, labels in NPZ_NAMES:
                if data in arrays:
                    return arrays[data], arrays[labels] if labels in arrays else None
            found = sorted(arrays)
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is not an .npz that can be read: {error}") from None
    names = " nor ".join(repr(data) for data, _ in NPZ_NAMES)
    raise ValueError(f"{path} has neither {names}, but {found}")


def _read_idx_pair(path):
    labels = path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1"))
    if labels == path:
        return read_idx(path), None
    return read_idx(path), read_idx(labels) if labels.exists() else None


def _pictures(folder, pattern):
    """Paths of the pictures, without hidden ones."""
    found = (file for file in folder.glob(pattern) if file.suffix.lower() in PICTURES)
    return sorted(
        str(file)
        for file in found
        if not any(part[0] == "." for part in file.relative_to(folder).parts)
    )

"""The batch of each training step, by Grain: a function of only the seed and the step."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cmjax.configs import LARGEST, is_int, shown
from cmjax.images import from_uint8
from cmjax.training.sections import LARGEST_SEED
from cmjax.training.sources import Source, first_not_finite

READ_AHEAD = 4  # batches that are prepared ahead, each by a thread of its own


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
    """Returns an endless iterator of the batches of step `start`, `start + 1`, ...

    Every epoch is another permutation of the data; a batch may span two epochs. Threads prepare
    batches ahead.

    Args:
        source: records, see `sources.open_source`. Values other than "data" and "class_labels" are
            stacked as they are.
        batch_size: samples per batch, over all processes together.
        seed: seed of the order and the flips, at least 0.
        start: the first step.
        num_classes: labels must be below it; None allows all labels of at least 0.
        flip: mirror images left to right at random.
        process_index: the process whose rows of every batch to return; this one by default.
        process_count: number of processes that share a batch; all of JAX's by default.

    Returns:
        An iterator of {"data": f32[batch_size / process_count, ...], "class_labels": i32[...]},
        with pixels mapped to [-1, 1]. The rows of all processes in turn make up the same batch for
        any number of processes.

    Raises:
        ValueError: if a batch is larger than the data or does not divide by the number of
            processes, or if grain is not installed; from the iterator, for records that are not
            finite, that differ in shape, or whose labels are out of range.
    """
    # The place of this process among those that share a batch.
    index = jax.process_index() if process_index is None else process_index
    count = jax.process_count() if process_count is None else process_count
    _check_arguments(source, batch_size, seed, start, index, count)

    # NumPy's small integers would overflow.
    batch_size = int(batch_size)
    seed = int(seed)
    start = int(start)
    grain = import_grain()
    rows_per_process = batch_size // count

    def read(rows, rng):
        batch = collate([source[int(row)] for row in rows], rows, num_classes)
        if not flip:
            return batch
        # Every process draws the flips of the whole batch and keeps those of its own rows, so that
        # they do not depend on the number of processes.
        first = index * rows_per_process
        is_flipped = rng.random(batch_size) < 0.5
        return _mirror(batch, is_flipped[first : first + rows_per_process])

    # The indices of records, shuffled again in every epoch.
    indices = grain.MapDataset.range(len(source))
    order = indices.seed(seed).shuffle().repeat(None)

    # Parts of `batch_size / count` rows. Those of all processes in turn are one batch, so this
    # process takes every `count`-th part.
    parts = order.batch(rows_per_process, drop_remainder=True)[index::count]

    # Slicing by `start` skips the batches of earlier steps without reading any of them.
    remaining = parts.random_map(read)[start:]
    read_ahead = grain.ReadOptions(num_threads=READ_AHEAD, prefetch_buffer_size=READ_AHEAD)
    return iter(remaining.to_iter_dataset(read_ahead))


def _check_arguments(source, batch_size, seed, start, index, count):
    """Raises ValueError for arguments of `batches` that are out of range."""
    # A mapping of arrays would be a source of as many records as it has arrays.
    is_source = hasattr(source, "__len__") and hasattr(source, "__getitem__")
    if not is_source or isinstance(source, Mapping):
        raise ValueError(
            "source must have a __len__ and a __getitem__(index) that returns a record such as "
            f'{{"data": array}}, got {type(source).__name__}; a list of records has'
        )
    for name, value, least, most in (
        ("batch_size", batch_size, 1, LARGEST),
        ("seed", seed, 0, LARGEST_SEED),
        ("start", start, 0, LARGEST),
    ):
        if not is_int(value, least, most):
            raise ValueError(
                f"{name} must be an integer from {least} to {most}, got {shown(value)}"
            )
    if batch_size > len(source):
        raise ValueError(
            f"batch_size {batch_size} is larger than the data set of {len(source)} samples; "
            f"take at most {len(source)}"
        )
    if not 0 <= index < count:
        raise ValueError(
            f"process_index must be from 0 to {count - 1} for {count} processes, got {index}"
        )
    if batch_size % count:
        raise ValueError(
            f"batch_size {batch_size} does not divide over {count} processes; "
            f"choose a multiple of {count}"
        )


def import_grain() -> Any:
    """Returns the module grain, an optional dependency: sampling does not need it.

    Raises:
        ValueError: if it is not installed.
    """
    try:
        import grain
    except ImportError:
        raise ValueError(
            "training data needs the package grain: pip install grain"
        ) from None
    return grain


def collate(
    records: Sequence[Any], rows: Sequence[int] | np.ndarray, num_classes: int | None = None
) -> dict[str, np.ndarray]:
    """Returns records as one batch: "data" f32[B, ...], pixels mapped to [-1, 1], and the rest.

    Args:
        records: those of a source.
        rows: the number of each in the source, for error messages.
        num_classes: labels must be below it; None for all of at least 0.

    Raises:
        ValueError: for records that are not finite, that differ in shape, or whose labels are out
            of range.
    """
    # A source may be the user's own: check all that it gives, and name the record in errors.
    for row, record in zip(rows, records, strict=True):
        if not isinstance(record, Mapping) or "data" not in record:
            has = list(record) if isinstance(record, Mapping) else type(record).__name__
            raise ValueError(
                f'record {row} of the data must be a mapping with "data", got {shown(has)}'
            )
        if record.keys() != records[0].keys():
            raise ValueError(
                f"record {row} of the data has {sorted(map(str, record))}, "
                f"record {rows[0]} {sorted(map(str, records[0]))}"
            )

    # Arrays [B, ...] by name: f32 samples, i32 labels, and anything else as it is.
    batch = {
        name: _stack([record[name] for record in records], rows, name)
        for name in records[0]
    }
    batch["data"] = _as_samples(batch["data"], rows)
    for name, array in batch.items():
        if name != "data" and jnp.issubdtype(array.dtype, jnp.floating):
            _check_finite(array, rows, f"{name} of record")
    if "class_labels" in batch:
        batch["class_labels"] = checked_labels(batch["class_labels"], rows, num_classes)
    return batch


def _stack(values, rows, name):
    """Returns the values of records as one array; all must have the same dtype and shape."""
    # What is masked would count as data.
    for row, value in zip(rows, values, strict=True):
        if isinstance(value, np.ma.MaskedArray):
            raise ValueError(
                f"record {row} of the data has {name} with a mask, which batches do not have; "
                "take .filled(0), or leave the record out"
            )

    # Otherwise `np.stack` would promote dtypes without a word, and not name the record.
    arrays = []
    for row, value in zip(rows, values, strict=True):
        # Such as PyTorch's bfloat16, which NumPy has not, and lists of lists of other lengths.
        try:
            arrays.append(np.asarray(value))
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"record {row} of the data has {name} that NumPy cannot hold: {error}"
            ) from None
    first = arrays[0]
    for row, array in zip(rows, arrays, strict=True):
        if (array.dtype, array.shape) != (first.dtype, first.shape):
            raise ValueError(
                f"record {row} of the data has {name} {array.dtype}{list(array.shape)}, "
                f"but record {rows[0]} {first.dtype}{list(first.shape)}"
            )
    return np.stack(arrays)


def _as_samples(data, rows):
    """Returns samples f32[B, ...]: pixels mapped to [-1, 1], or floats if they are finite."""
    if data.dtype == np.uint8:
        return from_uint8(data)
    # Asked of jnp, for which bfloat16 is a float; for NumPy it is not.
    if not jnp.issubdtype(data.dtype, jnp.floating):
        raise ValueError(
            f"record {rows[0]} of the data is {data.dtype}; "
            "give pixels as uint8, or floats scaled already"
        )

    # Checked in float32, where large float64 numbers become infinite.
    data = data.astype(np.float32)
    _check_finite(data, rows, "record")
    return data


def _check_finite(array, rows, what):
    """Raises ValueError naming the first record that is not finite; `what` is the array's name."""
    index = first_not_finite(array)
    if index is not None:
        raise ValueError(
            f"{what} {rows[index]} of the data is not finite; remove or repair it"
        )


def checked_labels(
    labels: np.ndarray, rows: Sequence[int] | np.ndarray, num_classes: int | None
) -> np.ndarray:
    """Returns labels i32[B], if all are integers in range.

    Args:
        labels: `[B]`.
        rows: the number of each record in the data, for error messages.
        num_classes: labels must be below it; None for all of at least 0.

    Raises:
        ValueError: naming the record whose label is not.
    """
    # On the device an index that is out of bounds would raise no error.
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"record {rows[0]} of the data must have one integer label, "
            f"got {labels.dtype}{list(labels.shape[1:])}"
        )
    limit = 2**31 if num_classes is None else num_classes
    is_wrong = (labels < 0) | (labels >= limit)
    if is_wrong.any():
        index = int(is_wrong.argmax())
        classes = "" if num_classes is None else f", below num_classes {num_classes}"
        raise ValueError(
            f"record {rows[index]} of the data has label {labels[index]}; "
            f"labels must be 0 or more{classes}"
        )
    return labels.astype(np.int32)


def _mirror(batch, is_flipped):
    """Returns the batch with the images where `is_flipped`, bool[B], mirrored left to right."""
    if "noise" in batch:
        raise ValueError(
            "flip would part samples from the noise that they were made from; leave it out"
        )
    if "data_std" in batch:
        raise ValueError("flip would part latents from their data_std; leave it out")

    data = batch["data"]
    if data.ndim != 4:
        raise ValueError(
            f"flip needs images [H, W, C], got data of shape {data.shape[1:]}; leave it out"
        )

    # A low resolution or a mask would be of the picture that is not mirrored.
    for name, value in batch.items():
        is_spatial = value.ndim > 3 or value.shape[1:3] == data.shape[1:3]
        if name != "data" and is_spatial:
            raise ValueError(
                f"flip would mirror data, but not {name}; leave it out, or mirror both in your "
                "own source"
            )

    # Along the axis of the width, the third of [B, H, W, C].
    return {
        **batch,
        "data": np.where(is_flipped[:, None, None, None], data[:, :, ::-1], data),
    }

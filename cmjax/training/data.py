"""The batch of each training step, by Grain: a function of the seed and the step alone."""

from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from cmjax.images import from_uint8
from cmjax.training.sources import Source, first_not_finite

READ_AHEAD = 4  # batches, each by a thread


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
    """Returns the batches of step `start`, `start + 1`, ... without end.

    Every epoch is another permutation of the data; a batch may span two. Threads read ahead.

    Args:
        source: records, see `sources.open_source`. What they hold besides "data" and
            "class_labels" is stacked as it is.
        batch_size: over all processes together.
        seed: of the order and the flips, at least 0.
        start: the first step.
        num_classes: labels must be below it; None allows any that is not negative.
        flip: mirror images left to right at random.
        process_index: which rows of every batch are wanted; this process's by default.
        process_count: how many processes share a batch; by default as many as there are.

    Returns:
        An iterator of {"data": f32[batch_size / process_count, ...], "class_labels": i32[...]},
        pixels mapped to [-1, 1]. All processes' rows, one after another, are the same batch for any
        number of them.

    Raises:
        ValueError: if a batch is larger than the data or does not divide by the processes, or grain
            is not installed; from the iterator, for records that are not finite, that differ in
            shape, or that have labels out of range.
    """
    index = jax.process_index() if process_index is None else process_index
    count = jax.process_count() if process_count is None else process_count
    _check_arguments(source, batch_size, seed, start, index, count)
    grain = _import_grain()
    share = batch_size // count

    def read(rows, rng):
        batch = _collate(source, rows, num_classes)
        if not flip:
            return batch
        # Every process draws for the whole batch, and takes its own rows.
        is_flipped = rng.random(batch_size)[index * share :][:share] < 0.5
        return _mirror(batch, is_flipped)

    order = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat(None)
    # A batch is the shares of all processes in turn.
    shares = order.batch(share, drop_remainder=True)[index::count]
    read_ahead = grain.ReadOptions(num_threads=READ_AHEAD, prefetch_buffer_size=READ_AHEAD)
    return iter(shares.random_map(read)[start:].to_iter_dataset(read_ahead))


def _check_arguments(source, batch_size, seed, start, index, count):
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
            f"batch_size {batch_size} does not divide over {count} processes; "
            f"choose a multiple of {count}"
        )


def _import_grain():
    try:
        import grain
    except ImportError:
        raise ValueError("training data needs the package grain: pip install grain") from None
    return grain


def _collate(source, rows, num_classes):
    """Returns the records of these rows as one batch."""
    records = [source[int(row)] for row in rows]
    for row, record in zip(rows, records, strict=True):
        if not isinstance(record, Mapping) or "data" not in record:
            raise ValueError(
                f'record {row} of the data must be a mapping with "data", '
                f"got {type(record).__name__}"
            )
        if record.keys() != records[0].keys():
            raise ValueError(
                f"record {row} of the data has {sorted(record)}, "
                f"record {rows[0]} {sorted(records[0])}"
            )
    batch = {name: _stack([record[name] for record in records], rows, name) for name in records[0]}
    batch["data"] = _as_samples(batch["data"], rows)
    if "class_labels" in batch:
        batch["class_labels"] = _checked_labels(batch["class_labels"], rows, num_classes)
    return batch


def _stack(values, rows, name):
    """Returns the values of records as one array; they must be alike."""
    arrays = [np.asarray(value) for value in values]
    first = arrays[0]
    for row, array in zip(rows, arrays, strict=True):
        if (array.dtype, array.shape) != (first.dtype, first.shape):
            raise ValueError(
                f"record {row} of the data has {name} {array.dtype}{list(array.shape)}, "
                f"but record {rows[0]} {first.dtype}{list(first.shape)}"
            )
    return np.stack(arrays)


def _as_samples(data, rows):
    """Returns pixels as samples in [-1, 1]; floats as they are, but checked."""
    if data.dtype == np.uint8:
        return from_uint8(data)
    if not jnp.issubdtype(data.dtype, jnp.floating):
        raise ValueError(
            f"record {rows[0]} of the data is {data.dtype}; "
            "give pixels as uint8, or floats scaled already"
        )
    data = data.astype(np.float32)
    index = first_not_finite(data)
    if index is not None:
        raise ValueError(f"record {rows[index]} of the data is not finite; remove or repair it")
    return data


def _checked_labels(labels, rows, num_classes):
    """Returns labels i32[B], if all are integers in range."""
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"record {rows[0]} of the data must have one integer label, "
            f"got {labels.dtype}{labels.shape[1:]}"
        )
    limit = 2**31 if num_classes is None else num_classes
    is_wrong = (labels < 0) | (labels >= limit)
    if is_wrong.any():
        index = is_wrong.argmax()
        classes = "" if num_classes is None else f", below num_classes {num_classes}"
        raise ValueError(
            f"record {rows[index]} of the data has label {labels[index]}; "
            f"labels must be 0 or more{classes}"
        )
    return labels.astype(np.int32)


def _mirror(batch, is_flipped):
    """Returns the batch with some of its images mirrored left to right."""
    data = batch["data"]
    if data.ndim != 4:
        raise ValueError(
            f"flip needs images [H, W, C], got data of shape {data.shape[1:]}; leave it out"
        )
    return {**batch, "data": np.where(is_flipped[:, None, None, None], data[:, :, ::-1], data)}

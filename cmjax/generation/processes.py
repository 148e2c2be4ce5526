"""What the processes of a run agree on. While they sample, its folder is all that they tell each other by."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from cmjax.generation.manifest import open_shards
from cmjax.generation.shards import Shards
from cmjax.interrupts import interruptible

STOP = ".stop"  # a file by which one process stops all


def open_together(folder: Path, settings: Mapping[str, Any], source: str, shard_size: int | None) -> Shards:
    """Opens a folder by `open_shards` on process 0, then on the others, which must find the same settings.

    Raises:
        ValueError: if a process cannot; each says why it could not itself, or which one could not.
        OSError: if this process cannot.
    """
    result: Any = None
    for turn in (True, False):
        if turn == (jax.process_index() == 0):
            try:
                result = open_shards(folder, settings, source, shard_size)
                (folder / STOP).unlink(missing_ok=True)
            except (OSError, ValueError) as error:
                result = error
        failed = np.array(isinstance(result, Exception))
        everywhere = np.atleast_1d(multihost_utils.process_allgather(failed) if jax.process_count() > 1 else failed)
        if failed:
            raise result
        if everywhere.any():
            raise ValueError(f"process {everywhere.argmax()} could not open {folder}; see its message")
    return result


def share(ranges: list[range], found: Iterable[range]) -> list[range]:
    """Returns the shards that this process is to make: a consecutive part of those that process 0 did not find."""
    found = set(found)
    missing = np.array([shard not in found for shard in ranges])
    if jax.process_count() > 1:
        missing = multihost_utils.broadcast_one_to_all(missing)
    parts = np.array_split(np.flatnonzero(missing), jax.process_count())
    return [ranges[i] for i in parts[jax.process_index()]]


@contextlib.contextmanager
def stopping_together(folder: Path) -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether to stop: a signal, or an error within, of one process stops all."""
    several = jax.process_count() > 1
    with interruptible() as interrupted:
        try:
            yield lambda: bool(interrupted) or (several and (folder / STOP).exists())
        except BaseException:
            interrupted.append(0)
            raise
        finally:
            if interrupted and several:
                (folder / STOP).touch()


def wait_for_all(shards: Shards, num: int, stopping: Callable[[], bool], refresh: Callable[[], None]) -> None:
    """Returns once the shards of the first `num` samples are there, whoever makes them, or the run is to stop."""
    while jax.process_count() > 1 and not stopping() and shards.count(num) < num:
        refresh()
        time.sleep(0.2)

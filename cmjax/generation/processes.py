"""What the processes of a run agree on. While they sample, its folder is all that they tell each other by."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from cmjax.generation.manifest import MANIFEST, open_shards
from cmjax.generation.shards import Shards
from cmjax.interrupts import interruptible

STOP = ".stop"  # a file by which one process stops all
FINISHED = ".finished"  # and one by which process 0 says that everything is made
PATIENCE = 30.0  # seconds that a network file system may take to show a file


def open_together(folder: Path, settings: Mapping[str, Any], source: str, shard_size: int | None, num: int) -> Shards:
    """Opens a folder by `open_shards` on process 0, then on the others, which must see it and want as many samples.

    Raises:
        ValueError: if a process cannot; each says why it could not itself, or which one could not.
        OSError: if this process cannot.
    """
    result: Any = None
    for turn in (True, False):
        if turn == (jax.process_index() == 0):
            try:
                _wait_for_manifest(folder)
                result = open_shards(folder, settings, source, shard_size)
                for file in (STOP, FINISHED) if turn else ():
                    (folder / file).unlink(missing_ok=True)
            except (OSError, ValueError) as error:
                result = error
        failed, wanted = _of_all(isinstance(result, Exception), num - 1)
        if isinstance(result, Exception):
            raise result
        if failed.any():
            raise ValueError(f"process {failed.argmax()} could not open {folder}; see its message")
        if (wanted != wanted[0]).any():
            raise ValueError(f"all processes must make the same number of samples, got {[int(n) + 1 for n in wanted]}")
    return result


def _wait_for_manifest(folder):
    if jax.process_index() == 0:
        return
    deadline = time.monotonic() + PATIENCE
    while not (folder / MANIFEST).exists():
        if time.monotonic() > deadline:
            raise ValueError(
                f"process {jax.process_index()} does not see {folder / MANIFEST}, which process 0 has written; "
                "the folder must be the same one for all processes"
            )
        time.sleep(0.2)


def _of_all(*values):
    """Returns the values of all processes, u32[processes] each."""
    mine = np.array(values, np.uint32)
    return (multihost_utils.process_allgather(mine) if jax.process_count() > 1 else mine[None]).T


def missing_shards(ranges: list[range], found: Iterable[range]) -> list[range]:
    """Returns, on every process, the shards that process 0 did not find."""
    found = set(found)
    missing = np.array([shard not in found for shard in ranges])
    if jax.process_count() > 1:
        missing = multihost_utils.broadcast_one_to_all(missing)
    return [ranges[i] for i in np.flatnonzero(missing)]


def my_share(shards: list[range]) -> list[range]:
    """Returns the consecutive part of shards that this process is to make."""
    parts = np.array_split(np.arange(len(shards)), jax.process_count())
    return [shards[i] for i in parts[jax.process_index()]]


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


def wait_until(done: Callable[[], bool], stopping: Callable[[], bool]) -> None:
    """Returns once something is done by other processes, or the run is to stop."""
    while jax.process_count() > 1 and not stopping() and not done():
        time.sleep(0.2)

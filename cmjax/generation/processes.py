"""Coordination between the processes of a run.

At the start the processes exchange a few integers through JAX. While sampling they communicate only
through files in the run's folder, so that none waits for another.
"""

import contextlib
import errno
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from filelock import FileLock, Timeout
from jax.experimental import multihost_utils

from cmjax.generation.manifest import LOCK, MANIFEST, check_folder, open_shards
from cmjax.generation.settings import RunSettings
from cmjax.generation.shards import Shards
from cmjax.interrupts import interruptible

PATIENCE = 30.0  # seconds that a network file system may take to show a new file
POLL = 0.2  # seconds between two looks at the folder
MARKER = r"\.(stop|finished)-[0-9a-f]{8}"  # names of `Markers`

# Errors by which a file system says that it has no locks.
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)

Result = TypeVar("Result")


class Markers(NamedTuple):
    """Empty files by which one process signals something to the others.

    Their names differ at each start of a run, since a network file system may go on showing a
    removed file for a while.

    Attributes:
        stop: exists once all processes are to stop.
        finished: exists once process 0 has exported the samples.
    """

    stop: Path
    finished: Path


def run_on_all_processes(do: Callable[[], Result]) -> Result:
    """Calls `do()` on every process and returns its result once all calls have succeeded.

    If a call fails on one process, all raise. Otherwise the rest would wait forever, in their next
    exchange, for a process that has ended.

    Args:
        do: a function without arguments; every process passes its own.

    Raises:
        Exception: the error of this process, if its call failed.
        ValueError: if the call failed on another process, whose own error says why.
    """
    # Any error is kept until all processes have exchanged whether they failed.
    result: Any = None
    error = None
    try:
        result = do()
    except Exception as caught:
        error = caught

    # bool[processes]: which of them failed.
    (failed,) = _gather(error is not None)
    if error is not None:
        raise error
    if failed.any():
        raise ValueError(f"process {failed.argmax()} failed; see its message")
    return result


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Creates the folder and keeps every other run out of it until all processes have left it.

    Process 0 holds a file lock, which the system releases even if the process is killed. A file
    system without locks gives no such protection.

    Args:
        folder: the folder of the run, the same for all processes.

    Raises:
        ValueError: if another run is using the folder, or it holds something else.
        OSError: if the folder cannot be created.
    """
    with run_on_all_processes(lambda: _lock(folder)):
        try:
            yield
        finally:
            _gather(0)  # a barrier: process 0 keeps the lock until the others are done


def _lock(folder: Path) -> contextlib.AbstractContextManager:
    """Creates and locks the folder, on process 0; leaving the result's context unlocks it."""
    if jax.process_index() > 0:
        return contextlib.nullcontext()
    check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)

    # Does not wait for the lock: the other run may take days.
    try:
        return FileLock(folder / LOCK, timeout=0).acquire()
    except Timeout:
        raise ValueError(
            f"another run is at work in {folder}; wait for it or choose another folder. "
            "The processes of one run join by jax.distributed.initialize. "
            f"(If there is no such run, remove {folder / LOCK}.)"
        ) from None

    # Without locks a run is still correct, as long as the user starts only one.
    except NotImplementedError:
        return contextlib.nullcontext()
    except OSError as error:
        if error.errno in WITHOUT_LOCKS:
            return contextlib.nullcontext()
        raise


def open_on_all(
    folder: Path, settings: RunSettings, source: str, shard_size: int | None, num: int
) -> tuple[Shards, Markers]:
    """Opens a folder with `open_shards`, first on process 0 and then on the others.

    All processes must see the same folder, and must have been asked for the same `num`.

    Args:
        folder: the folder of the run, which must exist.
        settings: everything that the samples depend on.
        source: what the model was loaded from.
        shard_size: number of samples in a shard, or None; see `open_shards`.
        num: number of samples of the run.

    Returns:
        The shards of the folder, and the markers of this start of the run.

    Raises:
        ValueError: if a process cannot open the folder. It says why; the others name the process.
        OSError: if this process cannot write to the folder.
    """
    first = jax.process_index() == 0

    def begin():
        # Markers of earlier starts have other names; removing them is tidiness.
        for pattern in (".stop-*", ".finished-*"):
            for marker in folder.glob(pattern):
                # Whatever else has such a name is not ours.
                if re.fullmatch(MARKER, marker.name) and not marker.is_symlink():
                    marker.unlink(missing_ok=True)
        return open_shards(folder, settings, source, shard_size)

    def join():
        _wait_for_manifest(folder)
        return open_shards(folder, settings, source, shard_size)

    # Process 0 writes the manifest; only then do the others look for it.
    opened = run_on_all_processes(lambda: begin() if first else None)
    shards = run_on_all_processes(lambda: opened or join())

    # `num` may be 2^32, so num - 1 is exchanged, which fits in 32 bits. The random token of process
    # 0 names the markers of this start.
    wanted, token = _gather(num - 1, secrets.randbits(32))
    if (wanted != wanted[0]).any():
        numbers = [int(n) + 1 for n in wanted]
        raise ValueError(
            f"all processes must make the same number of samples, got {numbers}"
        )
    name = f"{token[0]:08x}"
    return shards, Markers(
        stop=folder / f".stop-{name}", finished=folder / f".finished-{name}"
    )


def _wait_for_manifest(folder: Path) -> None:
    """Waits until a network file system shows this process the manifest that process 0 wrote."""
    deadline = time.monotonic() + PATIENCE
    while not (folder / MANIFEST).exists():
        if time.monotonic() > deadline:
            raise ValueError(
                f"process {jax.process_index()} does not see {folder / MANIFEST}, which process 0 "
                "has written; the folder must be the same one for all processes"
            )
        time.sleep(POLL)


def _gather(*values: int) -> np.ndarray:
    """Exchanges integers between all processes; returns them as u32[values, processes]."""
    # Unsigned 32 bits: without jax_enable_x64 JAX would cut off longer integers silently.
    mine = np.array(values, np.uint32)
    if jax.process_count() == 1:
        return mine[:, None]
    return multihost_utils.process_allgather(mine).T


def missing_shards(ranges: list[range], found: Iterable[range]) -> list[range]:
    """Returns the shards that process 0 did not find, on every process.

    Args:
        ranges: the sample numbers of each shard of the run.
        found: those that exist; only that of process 0 counts.
    """
    # A network file system may show each process different files; all must divide the same shards.
    found = set(found)
    missing = np.array([shard not in found for shard in ranges])
    if jax.process_count() > 1:
        missing = multihost_utils.broadcast_one_to_all(missing)
    return [ranges[i] for i in np.flatnonzero(missing)]


def local_shards(shards: list[range]) -> list[range]:
    """Returns the part of the missing shards that this process is to make."""
    # A consecutive part, so that each process fills its part of the folder in order. Parts differ
    # by one shard at most.
    parts = np.array_split(np.arange(len(shards)), jax.process_count())
    return [shards[i] for i in parts[jax.process_index()]]


@contextlib.contextmanager
def stopping_together(stop: Path) -> Iterator[Callable[[], bool]]:
    """Yields a function that returns whether to stop.

    Ctrl-C or SIGTERM to one process, or an error in one, stops all.

    Args:
        stop: the marker by which one process stops the others.
    """
    several = jax.process_count() > 1
    with interruptible() as interrupted:
        try:
            yield lambda: bool(interrupted) or (several and stop.exists())
        except BaseException:
            interrupted.append(
                0
            )  # an error counts as a signal: the marker is written below
            raise
        finally:
            if interrupted and several:
                stop.touch()


def wait_until(done: Callable[[], bool], stopping: Callable[[], bool]) -> None:
    """Waits until `done()` or `stopping()` is true; a single process does not wait."""
    # Polling, not a collective operation of JAX: that would hang if a process had been killed.
    while jax.process_count() > 1 and not stopping() and not done():
        time.sleep(POLL)

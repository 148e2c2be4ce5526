"""Coordination between the processes of a run: by JAX at its start, then through its folder."""

import contextlib
import errno
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from filelock import FileLock, Timeout
from jax.experimental import multihost_utils

from cmjax.generation.manifest import LOCK, MANIFEST, RunSettings, check_folder, open_shards
from cmjax.generation.shards import Shards
from cmjax.interrupts import interruptible

PATIENCE = 30.0  # seconds that a network file system may take to show a file
POLL = 0.2  # seconds between two looks at the folder
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)

Result = TypeVar("Result")


class Markers(NamedTuple):
    """Empty files by which processes tell each other something.

    Each start of a run names its own: a file system may show a removed file for a while.

    Attributes:
        stop: one process stops all.
        finished: process 0 has made everything.
    """

    stop: Path
    finished: Path


def run_on_all_processes(do: Callable[[], Result]) -> Result:
    """Returns `do()` of this process, once it has succeeded on every one.

    If it fails on one, all raise: none waits for a process that has ended.

    Raises:
        Exception: that of this process.
        ValueError: if another one failed; that one says why.
    """
    result: Any = None
    error = None
    try:
        result = do()
    except Exception as caught:
        error = caught
    (failed,) = _gather(error is not None)
    if error is not None:
        raise error
    if failed.any():
        raise ValueError(f"process {failed.argmax()} could not go on; see its message")
    return result


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Makes the folder, and keeps every other run out of it until all processes have left it.

    Process 0 holds a lock, which the system releases even if the process is killed. There is none
    where the file system has none.

    Raises:
        ValueError: if another run is at work in it, or it holds something else.
        OSError: if it cannot be made.
    """
    with run_on_all_processes(lambda: _lock(folder)):
        try:
            yield
        finally:
            _gather(0)


def _lock(folder: Path) -> contextlib.AbstractContextManager:
    if jax.process_index() > 0:
        return contextlib.nullcontext()
    check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return FileLock(folder / LOCK, timeout=0).acquire()
    except Timeout:
        raise ValueError(
            f"another run is at work in {folder}; wait for it or choose another folder. "
            "The processes of one run join by jax.distributed.initialize. "
            f"(If there is no such run, remove {folder / LOCK}.)"
        ) from None
    except NotImplementedError:
        return contextlib.nullcontext()
    except OSError as error:
        if error.errno in WITHOUT_LOCKS:
            return contextlib.nullcontext()
        raise


def open_on_all(
    folder: Path, settings: RunSettings, source: str, shard_size: int | None, num: int
) -> tuple[Shards, Markers]:
    """Opens a folder by `open_shards` on process 0, then on the others.

    They must see the same folder, and be asked for as many samples.

    Raises:
        ValueError: if a process cannot; each says why it could not itself, or which one could not.
        OSError: if this process cannot.
    """
    first = jax.process_index() == 0

    def begin():
        for pattern in (".stop-*", ".finished-*"):
            for marker in folder.glob(pattern):
                marker.unlink(missing_ok=True)
        return open_shards(folder, settings, source, shard_size)

    def join():
        _wait_for_manifest(folder)
        return open_shards(folder, settings, source, shard_size)

    opened = run_on_all_processes(lambda: begin() if first else None)
    shards = run_on_all_processes(lambda: opened or join())

    # 32 bits hold num - 1; the token of process 0 names the markers of this start.
    wanted, token = _gather(num - 1, secrets.randbits(32))
    if (wanted != wanted[0]).any():
        numbers = [int(n) + 1 for n in wanted]
        raise ValueError(f"all processes must make the same number of samples, got {numbers}")
    name = f"{token[0]:08x}"
    return shards, Markers(stop=folder / f".stop-{name}", finished=folder / f".finished-{name}")


def _wait_for_manifest(folder: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not (folder / MANIFEST).exists():
        if time.monotonic() > deadline:
            raise ValueError(
                f"process {jax.process_index()} does not see {folder / MANIFEST}, which process 0 "
                "has written; the folder must be the same one for all processes"
            )
        time.sleep(POLL)


def _gather(*values: int) -> np.ndarray:
    """Returns the values of all processes, u32[values, processes]; waits for them."""
    mine = np.array(values, np.uint32)
    if jax.process_count() == 1:
        return mine[:, None]
    return multihost_utils.process_allgather(mine).T


def missing_shards(ranges: list[range], found: Iterable[range]) -> list[range]:
    """Returns, on every process, the shards that process 0 did not find."""
    found = set(found)
    missing = np.array([shard not in found for shard in ranges])
    if jax.process_count() > 1:
        missing = multihost_utils.broadcast_one_to_all(missing)
    return [ranges[i] for i in np.flatnonzero(missing)]


def local_shards(shards: list[range]) -> list[range]:
    """Returns the consecutive part of shards that this process is to make."""
    parts = np.array_split(np.arange(len(shards)), jax.process_count())
    return [shards[i] for i in parts[jax.process_index()]]


@contextlib.contextmanager
def stopping_together(stop: Path) -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether to stop.

    A signal to one process, or an error within one, stops all.

    Args:
        stop: the marker by which one tells the others.
    """
    several = jax.process_count() > 1
    with interruptible() as interrupted:
        try:
            yield lambda: bool(interrupted) or (several and stop.exists())
        except BaseException:
            interrupted.append(0)
            raise
        finally:
            if interrupted and several:
                stop.touch()


def wait_until(done: Callable[[], bool], stopping: Callable[[], bool]) -> None:
    """Returns once other processes have done something, or the run is to stop."""
    while jax.process_count() > 1 and not stopping() and not done():
        time.sleep(POLL)

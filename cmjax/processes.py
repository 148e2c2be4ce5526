"""Several processes of one run: they fail together, and keep other runs out of their folder."""

import collections
import contextlib
import errno
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from filelock import FileLock, Timeout
from jax.experimental import multihost_utils

from cmjax.files import check_writable

LOCK = ".lock"

# Errors by which a file system says that it has no locks.
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)

Result = TypeVar("Result")


def device_names(devices: Iterable[Any]) -> str:
    """Returns the kinds of devices with their numbers, such as "cpu" or "8 x NVIDIA H200"."""
    kinds = collections.Counter(device.device_kind for device in devices)
    return ", ".join(
        kind if count == 1 else f"{count} x {kind}" for kind, count in kinds.items()
    )


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
    (failed,) = gather(error is not None)
    if error is not None:
        raise error
    if failed.any():
        raise ValueError(f"process {failed.argmax()} failed; see its message")
    return result


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """As `locked`, until all processes have left the folder: process 0 waits for the others."""
    with locked(folder):
        try:
            yield
        finally:
            gather(0)  # a barrier


def locked(folder: Path) -> contextlib.AbstractContextManager:
    """Creates a folder and keeps every other run out of it; leaving the result unlocks it.

    Process 0 holds a file lock, which the system releases even if the process is killed. A file
    system without locks gives no such protection.

    Args:
        folder: the folder of the run, the same for all processes.

    Raises:
        ValueError: if another run is using the folder, or its lock is a file of another program.
        OSError: if the folder cannot be created.
    """
    return run_on_all_processes(lambda: _lock(folder))


def _lock(folder: Path) -> contextlib.AbstractContextManager:
    """Creates and locks the folder on process 0, which does it for all."""
    if jax.process_index() > 0:
        return contextlib.nullcontext()
    folder.mkdir(parents=True, exist_ok=True)

    # A lock is emptied when it is taken, so it must be a file of cmjax's own, which is empty.
    lock = folder / LOCK
    check_writable(lock)
    if lock.exists() and lock.stat().st_size > 0:
        raise ValueError(f"{lock} is there, but cmjax did not write it; move it away")

    # Does not wait for the lock: the other run may take days.
    try:
        return FileLock(lock, timeout=0).acquire()
    except Timeout:
        raise ValueError(
            f"another run is at work in {folder}; wait for it or choose another folder. "
            "The processes of one run join by jax.distributed.initialize. "
            f"(If there is no such run, remove {lock}.)"
        ) from None

    # Without locks a run is still correct, as long as the user starts only one.
    except NotImplementedError:
        return contextlib.nullcontext()
    except OSError as error:
        if error.errno in WITHOUT_LOCKS:
            return contextlib.nullcontext()
        raise


def gather(*values: int) -> np.ndarray:
    """Exchanges integers between all processes; returns them as u32[values, processes]."""
    # Unsigned 32 bits: without jax_enable_x64 JAX would cut off longer integers silently.
    mine = np.array(values, np.uint32)
    if jax.process_count() == 1:
        return mine[:, None]
    return multihost_utils.process_allgather(mine).T

"""What the processes of a run agree on. While they sample, its folder is all that they tell each other by."""

import contextlib
import errno
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from filelock import FileLock, Timeout
from jax.experimental import multihost_utils

from cmjax.generation.manifest import LOCK, MANIFEST, check_folder, open_shards
from cmjax.generation.shards import Shards
from cmjax.interrupts import interruptible

PATIENCE = 30.0  # seconds that a network file system may take to show a file


class Signs(NamedTuple):
    """Files of a run's folder, named anew for every start: a file system may show a removed one for a while."""

    stop: Path  # by which one process stops all
    finished: Path  # by which process 0 says that everything is made


def all_together(do: Callable[[], Any]) -> Any:
    """Returns `do()` of this process once it has succeeded on every one, so that none waits for one that failed.

    Raises:
        Exception: that of this process.
        ValueError: if another one failed; that one says why.
    """
    result, error = None, None
    try:
        result = do()
    except Exception as caught:
        error = caught
    (failed,) = _of_all(error is not None)
    if error is not None:
        raise error
    if failed.any():
        raise ValueError(f"process {failed.argmax()} could not go on; see its message")
    return result


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Makes the folder, and keeps every other run out of it until all processes have left it.

    Process 0 holds a lock, which ends with the process if it is killed; there is none where the file system has none.

    Raises:
        ValueError: if another run is at work in it, or it holds something else.
        OSError: if it cannot be made.
    """

    def lock():
        if jax.process_index() > 0:
            return contextlib.nullcontext()
        check_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            return FileLock(folder / LOCK, timeout=0).acquire()
        except Timeout:
            raise ValueError(
                f"another run is at work in {folder}; wait for it or choose another folder. Processes of one run join "
                f"by --coordinator. (If there is none, remove {folder / LOCK}.)"
            ) from None
        except NotImplementedError:
            return contextlib.nullcontext()
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP):
                return contextlib.nullcontext()
            raise

    with all_together(lock):
        try:
            yield
        finally:
            _of_all(0)


def open_together(
    folder: Path, settings: Mapping[str, Any], source: str, shard_size: int | None, num: int
) -> tuple[Shards, Signs]:
    """Opens a folder by `open_shards` on process 0, then on the others, which must see it and want as many samples.

    Raises:
        ValueError: if a process cannot; each says why it could not itself, or which one could not.
        OSError: if this process cannot.
    """
    first = jax.process_index() == 0

    def begin():
        for name in (".stop-*", ".finished-*"):
            for sign in folder.glob(name):
                sign.unlink(missing_ok=True)
        return open_shards(folder, settings, source, shard_size)

    def join():
        _wait_for_manifest(folder)
        return open_shards(folder, settings, source, shard_size)

    shards = all_together(lambda: begin() if first else None)
    shards = all_together(lambda: shards or join())
    wanted, token = _of_all(num - 1, secrets.randbits(32))
    if (wanted != wanted[0]).any():
        raise ValueError(
            f"all processes must make the same number of samples, got {[int(n) + 1 for n in wanted]}"
        )
    return shards, Signs(folder / f".stop-{token[0]:08x}", folder / f".finished-{token[0]:08x}")


def _wait_for_manifest(folder):
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
def stopping_together(sign: Path) -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether to stop: a signal, or an error within, of one process stops all.

    Args:
        sign: the file by which one tells the others.
    """
    several = jax.process_count() > 1
    with interruptible() as interrupted:
        try:
            yield lambda: bool(interrupted) or (several and sign.exists())
        except BaseException:
            interrupted.append(0)
            raise
        finally:
            if interrupted and several:
                sign.touch()


def wait_until(done: Callable[[], bool], stopping: Callable[[], bool]) -> None:
    """Returns once something is done by other processes, or the run is to stop."""
    while jax.process_count() > 1 and not stopping() and not done():
        time.sleep(0.2)

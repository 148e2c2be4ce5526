"""Coordination between the processes of a run.

At the start the processes exchange a few integers through JAX. While sampling they communicate only
through files in the run's folder, so that none waits for another.
"""

import contextlib
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from cmjax.files import MANIFEST
from cmjax.generation.folder_settings import FolderSettings
from cmjax.generation.manifest import open_shards
from cmjax.generation.shards import Shards
from cmjax.interrupts import interruptible
from cmjax.processes import gather, run_on_all_processes

PATIENCE = 30.0  # seconds that a network file system may take to show a new file
POLL = 0.2  # seconds between two looks at the folder
MARKER = r"\.(stop|finished)-[0-9a-f]{8}"  # names of `Markers`


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


def open_on_all(
    folder: Path, settings: FolderSettings, source: str, shard_size: int | None, num: int
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

    # Process 0 writes the manifest; only then do the others look for it.
    def begin():
        if jax.process_index() != 0:
            return None
        _remove_markers(folder)
        return open_shards(folder, settings, source, shard_size)

    def join():
        if opened is not None:
            return opened
        _wait_for_manifest(folder)
        return open_shards(folder, settings, source, shard_size)

    opened = run_on_all_processes(begin)
    shards = run_on_all_processes(join)

    # `num` may be 2^32, so num - 1 is exchanged, which fits in 32 bits. The random token of process
    # 0 names the markers of this start.
    wanted, token = gather(num - 1, secrets.randbits(32))
    if (wanted != wanted[0]).any():
        numbers = [int(n) + 1 for n in wanted]
        raise ValueError(
            f"all processes must make the same number of samples, got {numbers}"
        )
    name = f"{token[0]:08x}"
    markers = Markers(stop=folder / f".stop-{name}", finished=folder / f".finished-{name}")
    return shards, markers


def _remove_markers(folder: Path) -> None:
    """Removes the markers of earlier starts, for tidiness: those of this one have other names."""
    for pattern in (".stop-*", ".finished-*"):
        for marker in folder.glob(pattern):
            # Whatever else has such a name is not ours.
            if re.fullmatch(MARKER, marker.name) and not marker.is_symlink():
                marker.unlink(missing_ok=True)


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
    own_part = parts[jax.process_index()]
    return [shards[i] for i in own_part]


class Stopping:
    """Whether a run is to stop, because of a signal to one of its processes or an error in one.

    Args:
        caught: the signals that this process has noted; see `interruptible`.
        stop: the marker by which one process stops the others.
    """

    def __init__(self, caught: list[int], stop: Path):  # noqa: D107
        self._caught = caught
        self._stop = stop

    def __call__(self) -> bool:
        """Returns whether to stop."""
        several = jax.process_count() > 1
        return bool(self._caught) or (several and self._stop.exists())

    @property
    def signal(self) -> int:
        """Number of the signal that stops the run; 0 for none, or for an error elsewhere."""
        if self._caught:
            return self._caught[0]
        number = self._stop.read_text() if self._stop.exists() else ""
        return int(number) if number.isdecimal() else 0


@contextlib.contextmanager
def stopping_together(
    stop: Path, answer: Callable[[], object] = lambda: None
) -> Iterator[Stopping]:
    """Yields whether to stop, a function without arguments.

    Ctrl-C or SIGTERM to one process, or an error in one, stops all.

    Args:
        stop: the marker by which one process stops the others. It holds the signal's number.
        answer: called as soon as this process gets a signal.
    """
    with interruptible(answer) as caught:
        try:
            yield Stopping(caught, stop)
        except BaseException:
            # An error counts as a signal: the marker is written below.
            caught.append(0)
            raise
        finally:
            if caught and jax.process_count() > 1:
                stop.write_text(str(caught[0]))


def wait_until(done: Callable[[], bool], stopping: Callable[[], bool]) -> None:
    """Waits until `done()` or `stopping()` is true; a single process does not wait."""
    # Polling, not a collective operation of JAX: that would hang if a process had been killed.
    while jax.process_count() > 1 and not stopping() and not done():
        time.sleep(POLL)

"""Filling a folder with shards, which an interrupted run resumes; on all processes."""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Protocol

import jax
import numpy as np

from cmjax.files import clear_unfinished, set_aside
from cmjax.generation.batches import regroup
from cmjax.generation.folder_settings import FolderSettings
from cmjax.generation.processes import (
    Markers,
    local_shards,
    missing_shards,
    open_on_all,
    stopping_together,
    wait_until,
)
from cmjax.generation.progress import Progress
from cmjax.generation.shards import Shards
from cmjax.processes import exclusive, run_on_all_processes

QUEUE = 2  # maximum number of shards that wait to be written while others are computed


class Outcome(NamedTuple):
    """What `generate_folder` and `encode_folder` return.

    Attributes:
        paths: what was written in the end: the exported files or folders, one for each format.
            Empty if the run was stopped, and on all processes but process 0.
        num_done: number of records (samples, or encoded pictures) in the folder.
        num_resumed: number of records that were in the folder before.
        num_made: number of records that this process made.
        seconds: time that this process spent on them, from its first batch to its last shard.
        stopped: whether a signal to one of the processes stopped the run.
        signal: number of a signal that arrived meanwhile; 0 if none did.
    """

    paths: list[Path]
    num_done: int
    num_resumed: int
    num_made: int
    seconds: float
    stopped: bool
    signal: int = 0


class Maker(Protocol):
    """What makes records; `BatchSampler` is one."""

    size: int  # number of records that it makes at a time

    def batches(self, indices: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yields the records of each batch of numbers u32[n], `[n, ...]`."""
        ...


class Work(NamedTuple):
    """What a run does, apart from being resumable.

    Attributes:
        doing: what is being done, such as "sampling".
        unit: what is counted, in the singular.
        check: called on process 0 before anything is written; raises ValueError.
        make: compiles and returns what makes the records.
        finish: called on process 0 once all shards are there, with a function that says whether to
            stop; returns what it wrote. It raises KeyboardInterrupt if it was stopped.
    """

    doing: str
    unit: str
    check: Callable[[Shards], None]
    make: Callable[[], Maker]
    finish: Callable[[Shards, Callable[[], bool]], list[Path]]


def fill_folder(
    folder: Path,
    settings: FolderSettings,
    num: int,
    work: Work,
    *,
    source: str,
    shard_size: int | None,
    progress: bool,
    report: Callable[[str], None],
) -> Outcome:
    """Makes what is missing of the first `num` records, on all processes.

    Args:
        folder: a new folder, or that of the same run; the same for all processes.
        settings: everything that the records depend on.
        num: number of records.
        work: how they are made.
        source: what the manifest notes as the model.
        shard_size: number of records in a file; None for that of the folder, or of the settings.
        progress: whether to show a progress bar on stderr.
        report: called with the names of files that are moved out of the way.

    Raises:
        ValueError: if the folder is of a run with other settings, or records cannot be made.
        OSError: if something cannot be written. Shards written before remain.
    """
    with exclusive(folder):
        # Open the folder, and divide the missing shards among the processes.
        shards, markers = open_on_all(folder, settings, source, shard_size, num)
        found, damaged = run_on_all_processes(
            lambda: _find_shards(shards, num, work, report)
        )
        missing = missing_shards(shards.ranges(num), found)
        num_resumed = num - sum(map(len, missing))
        mine = local_shards(missing)

        # From here on, a signal to any process stops all, after the batches in progress.
        shown = Progress(
            shards,
            num=num,
            num_resumed=num_resumed,
            mine=mine,
            shown=progress,
            doing=work.doing,
            unit=work.unit,
        )
        together = stopping_together(markers.stop, shown.stopping)
        with shown as run, together as stopping:
            devices = [device.device_kind for device in jax.local_devices()]
            run.log("start", num=num, resumed=num_resumed, damaged=damaged, devices=devices)

            # Make the shards of this process. A process without any compiles nothing.
            if mine:
                maker = work.make()
                run.compiled()
                _make_shards(shards, mine, maker, stopping, run.written)
            seconds = run.seconds

            # Wait for the shards of the other processes, then finish with them.
            num_done = _wait_for_all(run, num, stopping)
            paths = None
            if num_done == num:
                paths = _finish(shards, work, markers, stopping)
            stopped = paths is None
            run.log("stopped" if stopped else "done", done=num_done, seconds=seconds)
    return Outcome(
        paths=paths or [],
        num_done=num_done,
        num_resumed=num_resumed,
        num_made=run.num_made,
        seconds=seconds,
        stopped=stopped,
        signal=stopping.signal,
    )


def _wait_for_all(run: Progress, num: int, stopping: Callable[[], bool]) -> int:
    """Waits for the records of all processes; returns how many there are, `num` unless stopped."""
    wait_until(lambda: run.refresh() == num, stopping)
    num_done = run.refresh()
    run.finishing()
    return num_done


def _find_shards(
    shards: Shards, num: int, work: Work, report: Callable[[str], None]
) -> tuple[list[range], list[str]]:
    """On process 0, returns the intact shards of a folder and moves the others out of the way.

    Returns:
        The indices of each intact shard, and the names of the moved files. Other processes return
        nothing: they must not read a file that process 0 is moving.

    Raises:
        ValueError: if something that cmjax did not write stands where results will go.
    """
    if jax.process_index() > 0:
        return [], []
    work.check(shards)

    # Not removed: the shards of another run, put here by mistake, may be all that there is of it.
    intact, damaged = shards.find()
    for path in damaged:
        target = set_aside(path)
        report(
            f"{path} is damaged or of another run; it was moved to {target}, and its "
            f"{shards.settings.KIND} are made again"
        )

    # Intact shards beyond `num`, of an earlier run for more records, stay but are not counted.
    found = [shard for shard in shards.ranges(num) if shard in intact]
    return found, [path.name for path in damaged]


def _make_shards(
    shards: Shards,
    mine: Sequence[range],
    maker: Maker,
    stopping: Callable[[], bool],
    written: Callable[[range], None],
) -> None:
    """Makes and writes the shards `mine`; a thread writes one while the next is computed."""
    # Batches have the size of the devices, shards that of the files. The numbers of all records
    # are cut into batches, and the rows of the batches into shards.
    numbers = (np.asarray(shard, np.uint32) for shard in mine)
    indices = regroup(numbers, itertools.repeat(maker.size))
    batches = maker.batches(itertools.takewhile(lambda _: not stopping(), indices))
    waiting = deque()

    def settle(most_waiting):
        # Reports the oldest shards as written, waiting for them, until few enough are left.
        while len(waiting) > most_waiting:
            shard, writing = waiting.popleft()
            writing.result()  # raises what the thread raised
            written(shard)

    # One writer and a short queue bound the memory: a slow disk slows down the making.
    with ThreadPoolExecutor(1) as writer:
        for shard, rows in zip(mine, regroup(batches, map(len, mine)), strict=False):
            # After a stop the last shard may be incomplete: it is dropped, and the next run makes
            # it.
            if len(rows) == len(shard):
                waiting.append((shard, writer.submit(shards.write, shard, rows)))
                settle(QUEUE)
        settle(0)


def _finish(
    shards: Shards, work: Work, markers: Markers, stopping: Callable[[], bool]
) -> list[Path] | None:
    """On process 0, finishes with the shards, while the other processes wait.

    Returns:
        The paths on process 0, an empty list on others; None if the run was stopped meanwhile.
    """
    # If a signal arrives as process 0 finishes, the run counts as finished, not as stopped.
    if jax.process_index() > 0:
        wait_until(markers.finished.exists, stopping)
        return [] if markers.finished.exists() else None

    # All shards exist, so no process is writing: temporary files are those of killed processes.
    clear_unfinished(shards.folder)
    clear_unfinished(shards.folder / "shards")
    try:
        paths = work.finish(shards, stopping)
    except KeyboardInterrupt:
        return None

    # The marker is for the other processes; a single process leaves none behind.
    if jax.process_count() > 1:
        markers.finished.touch()
    return paths

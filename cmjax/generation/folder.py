"""Resumable generation of many samples into a folder, on all devices of all processes."""

import itertools
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from cmjax.files import clear_unfinished, set_aside
from cmjax.generation.batches import BatchSampler, regroup
from cmjax.generation.exports import check_formats, check_places, export
from cmjax.generation.manifest import check_folder
from cmjax.generation.processes import (
    Markers,
    local_shards,
    missing_shards,
    open_on_all,
    stopping_together,
    wait_until,
)
from cmjax.generation.progress import Progress
from cmjax.generation.request import MAX_NUM, Request, as_integer
from cmjax.generation.settings import RunSettings
from cmjax.generation.shards import Shards
from cmjax.interrupts import delivering
from cmjax.model import Model
from cmjax.processes import exclusive, run_on_all_processes

QUEUE = 2  # maximum number of shards that wait to be written while others are computed


class Outcome(NamedTuple):
    """What `generate_folder` returns.

    Attributes:
        paths: the exported files or folders, one for each format. Empty if the run was stopped,
            and on all processes but process 0.
        num_done: number of samples in the folder.
        num_resumed: number of samples that were in the folder before.
        num_made: number of samples that this process made.
        seconds: time that this process spent sampling, from its first batch to its last shard.
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


def generate_until_stopped(
    folder: str | Path,
    model: Model,
    request: Request,
    num: int,
    *,
    batch_size: int = 64,
    shard_size: int | None = None,
    shard_params: bool = False,
    formats: Sequence[str] = ("npz",),
    source: str = "",
    progress: bool = False,
    report: Callable[[str], None] = warnings.warn,
) -> Outcome:
    """Generates samples into a folder, on all devices of all processes.

    Called again after an interruption of any kind, it resumes: samples in the folder are checked,
    and only those missing or damaged are made. Files that it did not write are neither removed nor
    replaced.

    After Ctrl-C or SIGTERM the batches in progress are finished and written. `generate_folder` then
    delivers the signal to the program, as KeyboardInterrupt for Ctrl-C; `generate_until_stopped`,
    for programs that decide themselves, returns.

    Args:
        folder: a new folder, or that of the same run; the same for all processes.
        model: from `cmjax.load`.
        request: which samples to make.
        num: number of samples. A larger number than before adds samples to the folder.
        batch_size: number of samples that each device makes at a time.
        shard_size: number of samples in a file; None for that of the folder, or 100 in a new one.
            A killed process loses at most three files' worth of samples, and the batches that it
            was computing.
        shard_params: whether to divide the parameters among the devices of each process; see
            `BatchSampler`.
        formats: what to export the samples to once all are made; keys of `exports.FORMATS`.
        source: what the model was loaded from, which the manifest notes without absolute paths;
            `cmjax generate --verify` loads it again if it is a file or folder that is still there.
        progress: whether to show a progress bar on stderr.
        report: called with what the user has to know, which is the names of files that are damaged
            or of another run and were moved to a folder `.removed`; by default a warning.

    Returns:
        What was made, and where it is.

    Raises:
        ValueError: for arguments out of range, if the folder is of a run with other settings, or
            if samples are not finite.
        OSError: if something cannot be written. Samples written before remain.
    """
    folder = Path(folder)

    def prepare():
        as_integer("num", num, 1, MAX_NUM)
        as_integer("batch_size", batch_size, 1, MAX_NUM)
        if shard_size is not None:
            as_integer("shard_size", shard_size, 1, MAX_NUM)
        request.check_model(model)
        check_formats(formats, model.picture_shape)
        if jax.process_index() == 0:
            check_folder(folder)
        return RunSettings.of(model, request)

    # All arguments are checked before the folder is touched.
    settings = run_on_all_processes(prepare)
    with exclusive(folder):
        # Open the folder, and divide the missing shards among the processes.
        shards, markers = open_on_all(folder, settings, source, shard_size, num)
        found, damaged = run_on_all_processes(
            lambda: _find_shards(shards, num, formats, report)
        )
        missing = missing_shards(shards.ranges(num), found)
        num_resumed = num - sum(map(len, missing))
        mine = local_shards(missing)

        # From here on, a signal to any process stops all, after the batches in progress.
        progress_bar = Progress(shards, num, num_resumed, mine, progress)
        together = stopping_together(markers.stop, progress_bar.stopping)
        with progress_bar as run, together as stopping:
            devices = [device.device_kind for device in jax.local_devices()]
            run.log("start", num=num, resumed=num_resumed, damaged=damaged, devices=devices)

            # Make the shards of this process. A process without any compiles nothing.
            if mine:
                sampler = BatchSampler(
                    model, request, batch_size=batch_size, shard_params=shard_params
                )
                run.compiled()
                _make_shards(shards, mine, sampler, stopping, run.written)
            seconds = run.seconds

            # Wait for the shards of the other processes, then export them.
            wait_until(lambda: run.refresh() == num, stopping)
            num_done = run.refresh()
            run.sampled()
            paths = None
            if num_done == num:
                paths = _finish(shards, num, formats, markers, stopping, report)
            stopped = paths is None
            run.log("stopped" if stopped else "done", done=num_done, seconds=seconds)
    made = run.num_made
    number = stopping.signal
    return Outcome(paths or [], num_done, num_resumed, made, seconds, stopped, number)


generate_folder = delivering(generate_until_stopped)


def _find_shards(
    shards: Shards, num: int, formats: Sequence[str], report: Callable[[str], None]
) -> tuple[list[range], list[str]]:
    """On process 0, returns the intact shards of a folder and moves the others out of the way.

    Returns:
        The indices of each intact shard, and the names of the moved files. Other processes return
        nothing: they must not read a file that process 0 is moving.

    Raises:
        ValueError: if something that cmjax did not write stands where an export will go.
    """
    if jax.process_index() > 0:
        return [], []

    # Before anything is written, and days before the export.
    check_places(shards.folder, num, shards.settings.shape, formats)

    # Not removed: the shards of another run, put here by mistake, may be all that there is of it.
    intact, damaged = shards.find()
    for path in damaged:
        target = set_aside(path)
        report(
            f"{path} is damaged or of another run; it was moved to {target}, and its samples are "
            "made again"
        )

    # Intact shards beyond `num`, of an earlier run for more samples, stay but are not counted.
    found = [shard for shard in shards.ranges(num) if shard in intact]
    return found, [path.name for path in damaged]


def _make_shards(
    shards: Shards,
    mine: Sequence[range],
    sampler: BatchSampler,
    stopping: Callable[[], bool],
    written: Callable[[range], None],
) -> None:
    """Makes and writes the shards `mine`; a thread writes one while the next is computed."""
    # Batches have the size of the devices, shards that of the files. The numbers of all samples
    # are cut into batches, and the images of the batches into shards.
    numbers = (np.asarray(shard, np.uint32) for shard in mine)
    indices = regroup(numbers, itertools.repeat(sampler.size))
    batches = sampler.batches(itertools.takewhile(lambda _: not stopping(), indices))
    waiting = deque()

    def settle(most_waiting):
        # Reports the oldest shards as written, waiting for them, until few enough are left.
        while len(waiting) > most_waiting:
            shard, writing = waiting.popleft()
            writing.result()  # raises what the thread raised
            written(shard)

    # One writer and a short queue bound the memory: a slow disk slows down the sampling.
    with ThreadPoolExecutor(1) as writer:
        for shard, images in zip(mine, regroup(batches, map(len, mine)), strict=False):
            # After a stop the last shard may be incomplete: it is dropped, and the next run makes
            # it.
            if len(images) == len(shard):
                waiting.append((shard, writer.submit(shards.write, shard, images)))
                settle(QUEUE)
        settle(0)


def _finish(
    shards: Shards,
    num: int,
    formats: Sequence[str],
    markers: Markers,
    stopping: Callable[[], bool],
    report: Callable[[str], None],
) -> list[Path] | None:
    """On process 0, exports the shards to all formats, while the other processes wait.

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
        paths = [export(shards, num, name, stopping, report) for name in formats]
    except KeyboardInterrupt:
        return None

    # The marker is for the other processes; a single process leaves none behind.
    if jax.process_count() > 1:
        markers.finished.touch()
    return paths

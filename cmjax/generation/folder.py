"""Resumable generation of many samples into a folder, on all devices of all processes."""

import itertools
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from cmjax.files import clear_unfinished
from cmjax.generation.batches import BatchSampler, regroup
from cmjax.generation.exports import check_formats, export
from cmjax.generation.manifest import RunSettings
from cmjax.generation.processes import (
    Markers,
    exclusive,
    local_shards,
    missing_shards,
    open_on_all,
    run_on_all_processes,
    stopping_together,
    wait_until,
)
from cmjax.generation.progress import Progress
from cmjax.generation.request import MAX_NUM, Request, as_integer
from cmjax.generation.shards import Shards
from cmjax.model import Model

QUEUE = 2  # shards that may wait to be written while others are computed


class Outcome(NamedTuple):
    """What `generate_folder` returns.

    Attributes:
        paths: what the samples were made into, a path for each format. Empty if the run was
            stopped, and on other processes than 0.
        num_done: samples in the folder.
        num_resumed: samples that were there before.
        num_made: samples that this process made.
        seconds: from the first batch to the last shard of this process.
        stopped: whether a signal to one of the processes stopped the run.
    """

    paths: list[Path]
    num_done: int
    num_resumed: int
    num_made: int
    seconds: float
    stopped: bool


def generate_folder(
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
    report: Callable[[str], None] = lambda text: None,
) -> Outcome:
    """Makes samples into a folder on all devices of all processes.

    Called again after any end, it resumes: what is there is checked, what is missing is made.

    Args:
        folder: to be made, or of the same run; the same for all processes.
        model: from `cmjax.load`.
        request: which samples.
        num: number of samples; a larger one than before adds to the folder.
        batch_size: samples made at a time by each device.
        shard_size: samples in a file; None for that of the folder, 100 in a new one. A kill loses
            at most three files' worth, and the batches under way.
        shard_params: divide the parameters among the devices of each process; see `BatchSampler`.
        formats: what to make of the samples in the end, of `exports.FORMATS`.
        source: what the model was loaded from; `cmjax generate --verify` loads it again.
        progress: show a bar on stderr.
        report: is called with each message for the user.

    Raises:
        ValueError: for arguments out of range, if the folder is of a run with other settings, or
            if samples are not finite.
        OSError: if something cannot be written; what was made before remains.
    """
    folder = Path(folder)

    def prepare():
        as_integer("num", num, 1, MAX_NUM)
        as_integer("batch_size", batch_size, 1, MAX_NUM)
        if shard_size is not None:
            as_integer("shard_size", shard_size, 1, MAX_NUM)
        request.check_model(model)
        check_formats(formats, model.sample_shape)
        return RunSettings.of(model, request)

    # Everything that can be refused is, before the folder is touched.
    settings = run_on_all_processes(prepare)
    with exclusive(folder):
        # Open the folder and divide what is missing among the processes.
        shards, markers = open_on_all(folder, settings, source, shard_size, num)
        found, damaged = run_on_all_processes(lambda: _find_shards(shards, num, report))
        missing = missing_shards(shards.ranges(num), found)
        num_resumed = num - sum(map(len, missing))
        mine = local_shards(missing)

        progress_bar = Progress(shards, num, num_resumed, mine, progress)
        with progress_bar as run, stopping_together(markers.stop) as stopping:
            devices = [device.device_kind for device in jax.local_devices()]
            run.log("start", num=num, resumed=num_resumed, damaged=damaged, devices=devices)

            # Make this process's shards.
            if mine:
                sampler = BatchSampler(
                    model, request, batch_size=batch_size, shard_params=shard_params
                )
                run.compiled()
                _make_shards(shards, mine, sampler, stopping, run.written)
            seconds = run.seconds

            # Once those of all processes are there, make them into what is asked for.
            wait_until(lambda: run.refresh() == num, stopping)
            num_done = run.refresh()
            run.sampled()
            paths = None
            if num_done == num:
                paths = _finish(shards, num, formats, markers, stopping)
            stopped = paths is None
            run.log("stopped" if stopped else "done", done=num_done, seconds=seconds)
    return Outcome(paths or [], num_done, num_resumed, run.num_made, seconds, stopped)


def _find_shards(
    shards: Shards, num: int, report: Callable[[str], None]
) -> tuple[list[range], list[str]]:
    """On process 0, returns the whole shards of a folder, and removes the damaged ones.

    Other processes return nothing: they may not read what is being removed.
    """
    if jax.process_index() > 0:
        return [], []
    whole, damaged = shards.find()
    for path in damaged:
        report(f"{path} is damaged and removed; its samples are made again")
        path.unlink(missing_ok=True)
    found = [shard for shard in shards.ranges(num) if shard in whole]
    if found:
        report(f"{sum(map(len, found)):,} of {num:,} samples were there already.")
    return found, [path.name for path in damaged]


def _make_shards(
    shards: Shards,
    mine: Sequence[range],
    sampler: BatchSampler,
    stopping: Callable[[], bool],
    written: Callable[[range], None],
) -> None:
    """Makes shards; a thread writes one while the next is computed."""
    # Batches are as large as the devices take, shards as large as asked for: samples are cut into
    # batches, and the results into shards.
    numbers = (np.asarray(shard, np.uint32) for shard in mine)
    indices = regroup(numbers, itertools.repeat(sampler.size))
    batches = sampler.batches(itertools.takewhile(lambda _: not stopping(), indices))
    waiting = deque()

    def settle(most_waiting):
        while len(waiting) > most_waiting:
            shard, writing = waiting.popleft()
            writing.result()  # raises what the thread raised
            written(shard)

    with ThreadPoolExecutor(1) as writer:
        for shard, images in zip(mine, regroup(batches, map(len, mine)), strict=False):
            if len(images) == len(shard):  # fewer: the run was stopped within it
                waiting.append((shard, writer.submit(shards.write, shard, images)))
                settle(QUEUE)
        settle(0)


def _finish(
    shards: Shards,
    num: int,
    formats: Sequence[str],
    markers: Markers,
    stopping: Callable[[], bool],
) -> list[Path] | None:
    """On process 0, makes the shards into what is asked for, while the others wait.

    Returns:
        The paths; on other processes none. None if the run was stopped meanwhile.
    """
    if jax.process_index() > 0:
        wait_until(markers.finished.exists, stopping)
        return [] if markers.finished.exists() else None

    # All shards are there, so that nobody writes any more: what is unfinished was killed.
    clear_unfinished(shards.folder)
    clear_unfinished(shards.folder / "shards")
    try:
        paths = [export(shards, num, name, stopping) for name in formats]
    except KeyboardInterrupt:
        return None
    if jax.process_count() > 1:
        markers.finished.touch()
    return paths

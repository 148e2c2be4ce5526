"""A run of many samples into a folder, on all devices of all processes, which goes on after any end."""

import itertools
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from cmjax.files import clear_unfinished
from cmjax.generation import processes
from cmjax.generation.exports import check_formats, export
from cmjax.generation.manifest import run_settings
from cmjax.generation.progress import Progress
from cmjax.generation.sampler import Sampler, regroup
from cmjax.generation.shards import Shards
from cmjax.model import Model

QUEUE = 2  # shards that may wait to be written while others are computed


class Outcome(NamedTuple):
    """What `generate_folder` returns."""

    paths: list[
        Path
    ]  # of what was made, by format; empty if the run was stopped, and on other processes than 0
    done: int  # samples in the folder
    resumed: int  # samples that were there before
    made: int  # samples that this process made
    seconds: float  # from the first batch to this process's last shard
    stopped: bool  # by a signal to one of the processes


def generate_folder(
    folder: Path,
    model: Model,
    num: int,
    *,
    num_inference_steps: int | None = None,
    timesteps: Sequence[float] | None = None,
    sigmas: Sequence[float] | None = None,
    labels: Sequence[int] | None = None,
    seed: int = 0,
    batch_size: int = 64,
    dtype: str = "float32",
    shard_size: int | None = None,
    shard_params: bool = False,
    formats: Sequence[str] = ("npz",),
    source: str = "",
    progress: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Outcome:
    """Makes samples into a folder on all devices of all processes; called again after any end, it goes on.

    Args:
        folder: to be made, or of the same run; the same for all processes.
        model: from `cmjax.load`.
        num: number of samples; a larger one than before adds to the folder.
        num_inference_steps: number of steps. At most one of this and the next two; none means one step.
        timesteps: the levels as training indices.
        sigmas: the levels as noise levels.
        labels: classes to ask for, repeated in turn; None for an unconditional model.
        seed: of the samples.
        batch_size: samples made at a time by each device.
        dtype: of the samples.
        shard_size: samples in a file; None for that of the folder, 100 in a new one. A kill loses at most three files'
            worth, and the batches under way.
        shard_params: divide the parameters among the devices of each process; see `Sampler`.
        formats: what to make of the samples in the end, of `exports.FORMATS`.
        source: of the model, for `verify`.
        progress: show a bar on stderr.
        say: what is worth telling a user is handed to.

    Raises:
        ValueError: for arguments out of range, if the folder is of a run with other settings, or if samples are not
            finite.
        OSError: if something cannot be written; what was made before remains.
    """
    schedule = {
        "num_inference_steps": num_inference_steps,
        "timesteps": timesteps,
        "sigmas": sigmas,
    }
    schedule = {name: value for name, value in schedule.items() if value is not None} or {
        "num_inference_steps": 1
    }

    def prepare():
        _check(model, num, labels, seed, batch_size, shard_size)
        check_formats(formats, model.sample_shape)
        state = model.scheduler.set_timesteps(**schedule)
        return state, run_settings(model, schedule, state, labels, seed, dtype)

    state, settings = processes.all_together(prepare)
    with processes.alone_in(folder):
        shards, signs = processes.open_together(folder, settings, source, shard_size, num)
        found, damaged = processes.all_together(lambda: _found(shards, num, say))
        missing = processes.missing_shards(shards.ranges(num), found)
        mine, resumed = processes.my_share(missing), num - sum(map(len, missing))

        with (
            Progress(shards, num, resumed, mine, progress) as run,
            processes.stopping_together(signs.stop) as stopping,
        ):
            devices = [device.device_kind for device in jax.local_devices()]
            run.log("start", num=num, resumed=resumed, damaged=damaged, devices=devices)
            if mine:
                options = {"batch_size": batch_size, "dtype": dtype, "shard_params": shard_params}
                sampler = Sampler(model, state, labels=labels, seed=seed, **options)
                run.compiled()
                _make(shards, mine, sampler, stopping, run.written)
            seconds = run.seconds
            processes.wait_until(lambda: run.refresh() == num, stopping)
            done = run.refresh()
            run.sampled()
            paths = _finish(shards, num, formats, signs.finished, stopping) if done == num else None
            run.log("stopped" if paths is None else "done", done=done, seconds=seconds)
    return Outcome(paths or [], done, resumed, run.made, seconds, stopped=paths is None)


def _check(model, num, labels, seed, batch_size, shard_size):
    numbers = {
        "num": (num, 1, 2**32),
        "seed": (seed, 0, 2**32 - 1),
        "batch_size": (batch_size, 1, 2**32),
    }
    if shard_size is not None:
        numbers["shard_size"] = (shard_size, 1, 2**32)
    for name, (value, least, most) in numbers.items():
        if not least <= value <= most:
            raise ValueError(f"{name} must be from {least} to {most}, got {value}")
    classes = model.num_classes
    if (labels is None) != (classes is None):
        raise ValueError(
            f"labels must be None for a model without classes, and only then; this one has {classes}"
        )
    if labels is not None and (
        len(labels) == 0 or not all(0 <= label < classes for label in labels)
    ):
        raise ValueError(
            f"labels must be one or more of the classes 0..{classes - 1}, got {labels}"
        )


def _found(shards, num, say):
    """Which shards process 0 finds whole, and the names of what it clears away; others may not read meanwhile."""
    if jax.process_index() > 0:
        return [], []
    whole, damaged = shards.find()
    for path in damaged:
        say(f"{path} is damaged and removed; what is missing is made anew")
        path.unlink(missing_ok=True)
    found = [shard for shard in shards.ranges(num) if shard in whole]
    if found:
        say(f"{sum(map(len, found)):,} of {num:,} samples were there already.")
    return found, [path.name for path in damaged]


def _finish(shards, num, formats, finished, stopping):
    """Process 0 makes the shards into what is asked for, the others wait; None if they were stopped."""
    if jax.process_index() > 0:
        processes.wait_until(finished.exists, stopping)
        return [] if finished.exists() else None
    for folder in (
        shards.folder,
        shards.folder / "shards",
    ):  # all shards are there, so nobody writes any more
        clear_unfinished(folder)
    try:
        paths = [export(shards, num, kind, stopping) for kind in formats]
    except KeyboardInterrupt:
        return None
    if jax.process_count() > 1:
        finished.touch()
    return paths


def _make(
    shards: Shards,
    mine: Sequence[range],
    sampler: Sampler,
    stopping: Callable[[], bool],
    written: Callable[[range], None],
) -> None:
    """Makes shards; a thread writes one while the next is computed."""
    indices = regroup(
        (np.asarray(shard, np.uint32) for shard in mine), itertools.repeat(sampler.size)
    )
    batches = sampler.batches(itertools.takewhile(lambda _: not stopping(), indices))
    waiting = deque()

    def settle(left):
        while len(waiting) > left:
            shard, writing = waiting.popleft()
            writing.result()
            written(shard)

    with ThreadPoolExecutor(1) as writer:
        for shard, images in zip(mine, regroup(batches, map(len, mine)), strict=False):
            if len(images) == len(shard):  # or else the run was stopped within it
                waiting.append((shard, writer.submit(shards.write, shard, images)))
                settle(QUEUE)
        settle(0)

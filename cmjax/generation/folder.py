"""A run of many samples into a folder, on all devices of all processes, which goes on after any end."""

import itertools
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from cmjax.checkpoints import Model
from cmjax.files import clear_unfinished
from cmjax.generation.exports import check_formats, export
from cmjax.generation.manifest import run_settings
from cmjax.generation.processes import open_together, share, stopping_together, wait_for_all
from cmjax.generation.progress import Progress
from cmjax.generation.sampler import Sampler, regroup
from cmjax.generation.shards import Shards

QUEUE = 2  # shards that may wait to be written while others are computed


class Outcome(NamedTuple):
    """What `generate_folder` returns."""

    paths: list[Path]  # of what was made, by format; empty if the run was stopped, and on other processes than 0
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
        shard_size: samples in a file; None for that of the folder, 100 in a new one. Less than this may be lost.
        shard_params: divide the parameters among the devices of each process; see `Sampler`.
        formats: what to make of the samples in the end, of `exports.FORMATS`.
        source: of the model, for `verify`.
        progress: show a bar on stderr.
        say: what is worth telling a user is handed to.

    Raises:
        ValueError: if the folder is of a run with other settings, or samples are not finite.
        OSError: if something cannot be written; what was made before remains.
    """
    check_formats(formats, model.sample_shape)
    schedule = {"num_inference_steps": num_inference_steps, "timesteps": timesteps, "sigmas": sigmas}
    schedule = {name: value for name, value in schedule.items() if value is not None} or {"num_inference_steps": 1}
    state = model.scheduler.set_timesteps(**schedule)
    settings = run_settings(model, schedule, state, labels, seed, dtype)
    shards = open_together(folder, settings, source, shard_size)
    found, damaged = _found(shards, num, say)
    mine = share(shards.ranges(num), found)

    resumed = sum(map(len, found))
    with Progress(shards, num, resumed, sum(map(len, mine)), progress) as run, stopping_together(folder) as stopping:
        devices = [device.device_kind for device in jax.local_devices()]
        run.log("start", num=num, resumed=resumed, damaged=damaged, devices=devices)
        if mine:
            options = {"batch_size": batch_size, "dtype": dtype, "shard_params": shard_params}
            sampler = Sampler(model, state, labels=labels, seed=seed, **options)
            run.compiled()
            _make(shards, mine, sampler, stopping, run.written)
        seconds = run.seconds
        wait_for_all(shards, num, stopping, run.refresh)
        run.refresh()
    done = shards.count(num)
    run.log("done" if done == num else "stopped", done=done, seconds=seconds)
    paths = _export(shards, num, formats) if done == num and jax.process_index() == 0 else []
    return Outcome(paths, done, resumed, run.made, seconds, stopped=done < num)


def _found(shards, num, say):
    """What process 0 finds whole, for `share`, and the names of what it clears away; others may not read meanwhile."""
    if jax.process_index() > 0:
        return [], []
    whole, damaged = shards.find()
    found = [shard for shard in shards.ranges(num) if shard in whole]
    for path in damaged:
        say(f"{path} is damaged; it is made anew")
        path.unlink(missing_ok=True)
    if found:
        say(f"{sum(map(len, found)):,} of {num:,} samples were there already.")
    return found, [path.name for path in damaged]


def _export(shards, num, formats):
    for folder in (shards.folder, shards.folder / "shards"):  # all shards are there, so nobody writes any more
        clear_unfinished(folder)
    return [export(shards, num, kind) for kind in formats]


def _make(
    shards: Shards,
    mine: Sequence[range],
    sampler: Sampler,
    stopping: Callable[[], bool],
    written: Callable[[range], None],
) -> None:
    """Makes shards; a thread writes one while the next is computed."""
    indices = regroup((np.asarray(shard, np.uint32) for shard in mine), itertools.repeat(sampler.size))
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

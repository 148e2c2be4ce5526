"""Many samples: sample i depends on the seed and i, not on batches, devices, processes or interruptions."""

import contextlib
import datetime
import hashlib
import importlib.metadata
import importlib.util
import itertools
import json
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

import cmjax
from cmjax.checkpoints import Model
from cmjax.checkpoints.model import flat
from cmjax.images import to_uint8
from cmjax.interrupts import interruptible
from cmjax.schedulers import SchedulerState
from cmjax.shards import FORMATS, STOP, Shards, damaged_exports, export, open_shards, read_manifest

AXIS = "batch"  # of the mesh, over which samples are divided
QUEUE = 2  # shards that may wait to be written


class Sampler:
    """One compiled program that makes any samples of a run, a batch at a time, on several devices of this process.

    The devices do not communicate, unless parameters are divided among them.

    Args:
        model: from `cmjax.load`.
        state: the levels, from `model.scheduler.set_timesteps`.
        labels: classes to ask for, repeated in turn; None for an unconditional model.
        seed: of the samples.
        batch_size: samples made at a time by each device.
        dtype: of the samples.
        devices: to use; None for all of this process.
        shard_params: divide each parameter among the devices, along its largest axis that they divide, for models
            larger than a device; they then communicate in every step.

    Raises:
        ValueError: if a device has not enough memory.
    """

    def __init__(  # noqa: D107
        self,
        model: Model,
        state: SchedulerState,
        *,
        labels: Sequence[int] | None = None,
        seed: int = 0,
        batch_size: int = 64,
        dtype: str = "float32",
        devices: Sequence[Any] | None = None,
        shard_params: bool = False,
    ):
        mesh = Mesh(np.array(devices or jax.local_devices()), (AXIS,))
        self.size = batch_size * mesh.size
        self._divided, everywhere = NamedSharding(mesh, PartitionSpec(AXIS)), NamedSharding(mesh, PartitionSpec())
        self._labels = None if labels is None else np.asarray(labels, np.int32)

        def draw(key, params, state, indices, labels):
            keys = jax.vmap(jax.random.fold_in, (None, 0))(key, indices)
            cond = {} if labels is None else {"class_labels": labels}
            shape = (self.size, *model.sample_shape)
            x = cmjax.sample(keys, model.apply_fn, params, model.scheduler, shape, state=state, cond=cond, dtype=dtype)
            return to_uint8(x), jnp.isfinite(x).all(axis=range(1, x.ndim))

        # The generator is named: under another default a seed would mean other samples.
        key = jax.random.key(seed, impl="threefry2x32")
        shardings = jax.tree.map(lambda leaf: _divided(leaf, mesh) if shard_params else everywhere, model.params)
        with _out_of_memory():
            self._fixed = (
                jax.device_put(key, everywhere),
                jax.device_put(model.params, shardings),
                jax.device_put(state, everywhere),
            )
            jitted = jax.jit(draw, out_shardings=self._divided)
            self.compiled = jitted.lower(*self._fixed, *self._of(np.zeros(1, np.uint32))).compile()

    def batches(self, indices: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yields the images of each batch, u8[n, H, W, C]; the next one is computed meanwhile.

        Args:
            indices: u32[n] of each batch, n being at most `size`; a smaller batch is filled up, not compiled for.

        Raises:
            ValueError: if a sample is not finite, or a device has not enough memory.
        """
        with _out_of_memory():
            computing = deque()
            for batch in indices:
                computing.append((batch, self.compiled(*self._fixed, *self._of(batch))))
                if len(computing) > 1:
                    yield _fetched(*computing.popleft())
            for one in computing:
                yield _fetched(*one)

    def _of(self, indices):
        full = np.resize(indices, self.size)
        labels = None if self._labels is None else self._labels[full % len(self._labels)]
        return jax.device_put((full, labels), self._divided)


def regroup(arrays: Iterable[np.ndarray], lengths: Iterable[int]) -> Iterator[np.ndarray]:
    """Yields the rows of arrays, in their order, as arrays of other lengths; the last may be shorter."""
    arrays, held = iter(arrays), []
    for length in lengths:
        while sum(map(len, held)) < length and (array := next(arrays, None)) is not None:
            held.append(array)
        if not held:
            return
        rows = held[0] if len(held) == 1 else np.concatenate(held)
        yield rows[:length]
        held = [rows[length:]] if len(rows) > length else []


class Generated(NamedTuple):
    """What `generate` returns: u8[N, H, W, C], i32[N] or None, and seconds."""

    images: np.ndarray
    labels: np.ndarray | None
    compile_seconds: float
    run_seconds: float


def generate(
    model: Model,
    state: SchedulerState,
    num: int,
    *,
    labels: Sequence[int] | None = None,
    seed: int = 0,
    batch_size: int = 64,
    dtype: str = "float32",
    progress: bool = False,
) -> Generated:
    """Makes samples on one device, in memory.

    Args:
        model: from `cmjax.load`.
        state: the levels, from `model.scheduler.set_timesteps`.
        num: number of samples.
        labels: classes to ask for, repeated in turn; None for an unconditional model.
        seed: of the samples.
        batch_size: samples made at a time.
        dtype: of the samples.
        progress: show a bar on stderr.

    Raises:
        ValueError: if the device runs out of memory, or samples are not finite.
    """
    size = min(num, batch_size)
    images, total = np.empty((num, *model.sample_shape), np.uint8), -(-num // size)
    # A single batch has no progress to log, but tells somebody who waits at a terminal what goes on.
    hidden = not progress or (total == 1 and not sys.stderr.isatty())
    with tqdm(total=total, desc="compiling", unit="batch", leave=False, disable=hidden) as bar:
        begin = time.perf_counter()
        one = jax.local_devices()[:1]
        sampler = Sampler(model, state, labels=labels, seed=seed, batch_size=size, dtype=dtype, devices=one)
        ready = time.perf_counter()
        bar.reset()  # its rate is that of sampling
        bar.set_description("sampling")
        indices = [np.arange(first, min(first + size, num), dtype=np.uint32) for first in range(0, num, size)]
        for batch, made in zip(indices, sampler.batches(indices), strict=True):
            images[batch] = made
            bar.update()
        bar.leave = total > 1
    classes = None if labels is None else np.resize(np.asarray(labels, np.int32), num)
    return Generated(images, classes, ready - begin, time.perf_counter() - ready)


class Outcome(NamedTuple):
    """What `generate_folder` returns."""

    paths: list[Path]  # of what was made, by format; empty if the run was stopped
    done: int  # samples in the folder
    resumed: int  # samples that were there before
    seconds: float  # from the first batch to the last shard
    made: int  # samples that this process made meanwhile
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
        formats: what to make of the samples in the end, of `shards.FORMATS`.
        source: of the model, for `verify`.
        progress: show a bar on stderr.
        say: what is worth telling a user is handed to.

    Raises:
        ValueError: if the folder is of a run with other settings, or samples are not finite.
        OSError: if something cannot be written; what was made before remains.
    """
    _check_formats(formats, model.sample_shape)
    schedule = {"num_inference_steps": num_inference_steps, "timesteps": timesteps, "sigmas": sigmas}
    schedule = {name: value for name, value in schedule.items() if value is not None} or {"num_inference_steps": 1}
    state = model.scheduler.set_timesteps(**schedule)
    settings = _settings(model, schedule, state, labels, seed, dtype)
    shards = _open_together(folder, settings, source, shard_size)
    log, first = Log(folder), jax.process_index() == 0

    found, damaged = shards.find(num) if first else ({}, [])  # the others hear of it, and may not read what goes
    for path in damaged:
        say(f"{path} is damaged; it is made anew")
        path.unlink(missing_ok=True)
    mine = _share(shards.ranges(num), found)
    resumed = sum(map(len, found))
    if first and resumed:
        say(f"{resumed:,} of {num:,} samples were there already.")
    devices = [device.device_kind for device in jax.local_devices()]
    log("start", num=num, resumed=resumed, damaged=[path.name for path in damaged], devices=devices)

    begin = time.perf_counter()
    hidden = not (progress and first) or resumed == num
    bar = tqdm(total=num, initial=resumed, desc="compiling", unit="sample", dynamic_ncols=True, disable=hidden)
    with bar, _stopping_together(shards) as interrupted:
        stopping = lambda: bool(interrupted) or _stopped(shards)  # noqa: E731
        if mine:
            sampler = Sampler(
                model, state, labels=labels, seed=seed, batch_size=batch_size, dtype=dtype, shard_params=shard_params
            )
            log("compiled", seconds=time.perf_counter() - begin)
            bar.set_description("sampling")
            bar.unpause()  # its rate is that of sampling
            begin = time.perf_counter()
            _make(shards, mine, sampler, stopping, log, bar, num)
        seconds = time.perf_counter() - begin
        _wait_for_others(shards, num, stopping, bar)
    listed = shards.listed()
    done = sum(len(shard) for shard in shards.ranges(num) if shard in listed)
    log("done" if done == num else "stopped", done=done, seconds=seconds)
    paths = [export(shards, num, kind) for kind in formats] if done == num and first else []
    return Outcome(paths, done, resumed, seconds, sum(len(shard) for shard in mine if shard in listed), done < num)


def verify(folder: Path, model: Model, *, count: int = 64, batch_size: int = 64) -> tuple[list[Path], int, int]:
    """Checks the digests of everything in a folder of `generate_folder`, and makes a random few samples again.

    Args:
        folder: of the run.
        model: that it was made with.
        count: number of samples to make again.
        batch_size: samples made at a time by each device.

    Returns:
        The damaged files, how many samples are there, and the largest difference of a pixel from what is there.

    Raises:
        ValueError: if the folder is of another model, or holds no sample.
    """
    manifest = read_manifest(folder)
    settings = manifest["settings"]
    if model_digest(model) != settings["model"]:
        raise ValueError(f"{folder} was made with another model than this; name the one with --model")
    shards = Shards(folder, settings)
    listed = shards.listed()
    found, damaged = shards.find(max((shard.stop for shard in listed), default=0))
    if not found:
        raise ValueError(f"{folder} holds no whole shard; run `cmjax generate` first")
    model = model.with_scheduler(cmjax.scheduler_from_config(settings["scheduler"]))
    sampler = Sampler(
        model,
        model.scheduler.set_timesteps(**settings["schedule"]),
        labels=settings["labels"],
        seed=settings["seed"],
        batch_size=batch_size,
        dtype=settings["dtype"],
    )
    there = np.concatenate([np.asarray(shard, np.uint32) for shard in found])
    chosen = np.sort(np.random.default_rng().choice(there, min(count, len(there)), replace=False))
    again = sampler.batches(chosen[i : i + sampler.size] for i in range(0, len(chosen), sampler.size))
    worst = 0
    for index, image in zip(chosen, itertools.chain.from_iterable(again), strict=True):
        ((shard, path),) = [(shard, path) for shard, path in found.items() if int(index) in shard]
        stored = shards.read(path)[int(index) - shard.start]
        worst = max(worst, int(np.abs(stored.astype(int) - image.astype(int)).max()))
    return [*damaged, *damaged_exports(folder)], len(there), worst


def model_digest(model: Model) -> str:
    """Returns a digest of the network and its parameters: two models with the same one give the same samples."""
    digest = hashlib.blake2b(repr(model.config).encode(), digest_size=16)
    for name, leaf in flat(model.params).items():
        values = np.ascontiguousarray(leaf)
        digest.update(f"{name} {values.dtype} {values.shape}".encode())
        digest.update(values.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


class Log:
    """Lines of JSON for machines: `log.jsonl`, of other processes than the first `log-1.jsonl` and so on."""

    def __init__(self, folder: Path):  # noqa: D107
        process = jax.process_index()
        self._path = folder / ("log.jsonl" if process == 0 else f"log-{process}.jsonl")

    def __call__(self, event: str, **values: Any) -> None:
        """Adds a line."""
        line = {"time": datetime.datetime.now(datetime.UTC).isoformat(), "event": event, **values}
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def _make(shards, mine, sampler, stopping, log, bar, num):
    """Makes shards, written by a thread while the next ones are computed."""
    pieces = (np.asarray(shard, np.uint32) for shard in mine)
    batches = itertools.takewhile(lambda _: not stopping(), regroup(pieces, itertools.repeat(sampler.size)))
    with ThreadPoolExecutor(1) as writer:
        waiting = deque()
        for shard, images in zip(mine, regroup(sampler.batches(batches), map(len, mine)), strict=False):
            if len(images) < len(shard):
                break  # stopped within it
            waiting.append((shard, writer.submit(shards.write, shard, images)))
            while waiting and (len(waiting) > QUEUE or shard == mine[-1]):
                written, future = waiting.popleft()
                future.result()
                log("shard", first=written.start, count=len(written))
                _advance(bar, shards, num)
        for _, future in waiting:
            future.result()


def _advance(bar, shards, num):
    """Moves the bar to the samples that all processes have written."""
    if jax.process_index() == 0 and not bar.disable:
        listed = shards.listed()
        bar.update(sum(len(shard) for shard in shards.ranges(num) if shard in listed) - bar.n)


def _wait_for_others(shards, num, stopping, bar):
    """Until every shard is there; the folder is all that processes tell each other by."""
    while jax.process_count() > 1 and not stopping():
        listed = shards.listed()
        if all(shard in listed for shard in shards.ranges(num)):
            return
        _advance(bar, shards, num)
        time.sleep(0.2)


@contextlib.contextmanager
def _stopping_together(shards):
    """A process that ends before its work does, by a signal or an error, stops the others by a file."""
    with interruptible() as interrupted:
        try:
            yield interrupted
        except BaseException:
            interrupted.append(0)
            raise
        finally:
            if interrupted and jax.process_count() > 1:
                (shards.folder / STOP).touch()


def _stopped(shards):
    return jax.process_count() > 1 and (shards.folder / STOP).exists()


def _open_together(folder, settings, source, shard_size) -> Shards:
    """Opens the folder on process 0 first; every process must find the same one, and ask for the same samples."""
    result: Any = None
    for turn in (True, False):
        if turn == (jax.process_index() == 0):
            try:
                result = open_shards(folder, settings, source, shard_size)
                (folder / STOP).unlink(missing_ok=True)
            except (OSError, ValueError) as error:
                result = error
        failed = np.array(isinstance(result, Exception))
        everywhere = np.atleast_1d(multihost_utils.process_allgather(failed) if jax.process_count() > 1 else failed)
        if failed:
            raise result
        if everywhere.any():
            raise ValueError(f"process {everywhere.argmax()} could not open {folder}; see its message")
    return result


def _share(ranges, found):
    """The shards that this process is to make: an equal, consecutive part of those that process 0 misses."""
    missing = np.array([shard not in found for shard in ranges])
    if jax.process_count() > 1:
        missing = multihost_utils.broadcast_one_to_all(missing)
    missing = [shard for shard, wanted in zip(ranges, missing, strict=True) if wanted]
    parts = np.array_split(np.arange(len(missing)), jax.process_count())
    return [missing[i] for i in parts[jax.process_index()]]


def _settings(model, schedule, state, labels, seed, dtype):
    """Everything that samples depend on, as JSON."""
    return {
        "model": model_digest(model),
        "scheduler": model.scheduler.to_config(),
        "schedule": schedule,
        "sigmas": np.asarray(state.sigmas).tolist(),
        "timesteps": np.asarray(state.timesteps).tolist(),
        "labels": None if labels is None else [int(label) for label in labels],
        "seed": seed,
        "dtype": dtype,
        "shape": list(model.sample_shape),
        "platform": jax.default_backend(),
        "versions": {
            "cmjax": cmjax.__version__,
            "jax": jax.__version__,
            "jaxlib": importlib.metadata.version("jaxlib"),
        },
    }


def _check_formats(formats, shape):
    for kind in formats:
        if kind not in FORMATS:
            raise ValueError(f"formats must be of {list(FORMATS)}, got {kind!r}")
    if "png" in formats and shape[-1] not in (1, 3):
        raise ValueError(f"pictures have 1 or 3 channels, but the samples have {shape[-1]}; use the format npz")
    if "array-record" in formats and importlib.util.find_spec("array_record") is None:
        raise ValueError("the format array-record needs the package array-record; pip install array-record")


def _divided(leaf, mesh):
    """The sharding of a parameter along its largest axis that the devices divide."""
    fitting = [axis for axis, size in enumerate(leaf.shape) if size and size % mesh.size == 0]
    largest = max(fitting, key=leaf.shape.__getitem__, default=None)
    return NamedSharding(mesh, PartitionSpec(*(AXIS if axis == largest else None for axis in range(leaf.ndim))))


def _fetched(indices, made):
    images, finite = (np.asarray(array)[: len(indices)] for array in made)
    if not finite.all():
        raise ValueError(f"sample number {indices[finite.argmin()]} is not finite; the model or its dtype is broken")
    return images


@contextlib.contextmanager
def _out_of_memory():
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"{error}".splitlines()[0] + "; a smaller --batch-size needs less memory") from None

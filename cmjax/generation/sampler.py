"""Batches of samples from one compiled program, on any devices of this process."""

import contextlib
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

import cmjax
from cmjax.images import to_uint8
from cmjax.model import Model
from cmjax.schedulers import SchedulerState

AXIS = "batch"  # of the mesh, over which samples are divided


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
        self._divided, everywhere = (
            NamedSharding(mesh, PartitionSpec(AXIS)),
            NamedSharding(mesh, PartitionSpec()),
        )
        self._labels = None if labels is None else np.asarray(labels, np.int32)

        def draw(key, params, state, indices, labels):
            keys = jax.vmap(jax.random.fold_in, (None, 0))(key, indices)
            cond = {} if labels is None else {"class_labels": labels}
            shape = (self.size, *model.sample_shape)
            x = cmjax.sample(
                keys,
                model.apply_fn,
                params,
                model.scheduler,
                shape,
                state=state,
                cond=cond,
                dtype=dtype,
            )
            return to_uint8(x), jnp.isfinite(x).all(axis=range(1, x.ndim))

        # The generator and how it draws are named: under other defaults a seed would mean other samples.
        key = jax.random.key(seed, impl="threefry2x32")
        shardings = jax.tree.map(
            lambda leaf: _divided(leaf, mesh) if shard_params else everywhere, model.params
        )
        with _out_of_memory(), jax.threefry_partitionable(True):
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
        sampler = Sampler(
            model, state, labels=labels, seed=seed, batch_size=size, dtype=dtype, devices=one
        )
        ready = time.perf_counter()
        bar.reset()  # its rate is that of sampling
        bar.set_description("sampling")
        indices = [
            np.arange(first, min(first + size, num), dtype=np.uint32)
            for first in range(0, num, size)
        ]
        for batch, made in zip(indices, sampler.batches(indices), strict=True):
            images[batch] = made
            bar.update()
        bar.leave = total > 1
    classes = None if labels is None else np.resize(np.asarray(labels, np.int32), num)
    return Generated(images, classes, ready - begin, time.perf_counter() - ready)


def _divided(leaf, mesh):
    """The sharding of a parameter along its largest axis that the devices divide."""
    fitting = [axis for axis, size in enumerate(leaf.shape) if size and size % mesh.size == 0]
    largest = max(fitting, key=leaf.shape.__getitem__, default=None)
    return NamedSharding(
        mesh, PartitionSpec(*(AXIS if axis == largest else None for axis in range(leaf.ndim)))
    )


def _fetched(indices, made):
    images, finite = (np.asarray(array)[: len(indices)] for array in made)
    if not finite.all():
        raise ValueError(
            f"sample number {indices[finite.argmin()]} is not finite; the model or its dtype is broken"
        )
    return images


@contextlib.contextmanager
def _out_of_memory():
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        hint = (
            "; a smaller --batch-size needs less memory"
            if "RESOURCE_EXHAUSTED" in str(error)
            else ""
        )
        raise ValueError(str(error).splitlines()[0] + hint) from None

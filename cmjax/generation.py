"""Many samples, batch by batch."""

import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from tqdm import tqdm

import cmjax
from cmjax.checkpoints import Model
from cmjax.images import to_uint8
from cmjax.schedulers import SchedulerState


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
    """Makes samples batch by batch with one compilation; sample i depends on `seed` and i, not on `batch_size`.

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
    # The generator is named: under another default a seed would mean other samples.
    key = jax.random.key(seed, impl="threefry2x32")

    @jax.jit
    def draw(key, params, state, first, labels):
        cond = {} if labels is None else {"class_labels": labels}
        shape = (size, *model.sample_shape)
        return cmjax.sample(
            key, model.apply_fn, params, model.scheduler, shape, state=state, cond=cond, first_index=first, dtype=dtype
        )

    def classes(first, count):
        if labels is None:
            return None
        return np.asarray(labels, np.int32)[np.arange(first, first + count) % len(labels)]

    images = np.empty((num, *model.sample_shape), np.uint8)
    starts = range(0, num, size)
    # A single batch has no progress to log, but tells somebody who waits at a terminal what goes on.
    hidden = not progress or (len(starts) == 1 and not sys.stderr.isatty())
    try:
        with tqdm(total=len(starts), desc="compiling", unit="batch", leave=False, disable=hidden) as bar:
            begin = time.perf_counter()
            compiled = draw.lower(key, model.params, state, np.uint32(0), classes(0, size)).compile()
            ready = time.perf_counter()
            bar.reset()  # its rate is that of sampling
            bar.set_description("sampling")
            for first in starts:
                # The last batch may reach beyond num: its surplus is cut rather than compiled for.
                batch = compiled(key, model.params, state, np.uint32(first), classes(first, size))
                batch = np.asarray(batch, np.float32)[: num - first]
                if not np.isfinite(batch).all():
                    raise ValueError(f"samples from number {first} on are not finite; the model or its dtype is broken")
                images[first : first + size] = to_uint8(batch)
                bar.update()
            bar.leave = len(starts) > 1
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"{error}".splitlines()[0] + "; a smaller --batch-size needs less memory") from None
    return Generated(images, classes(0, num), ready - begin, time.perf_counter() - ready)

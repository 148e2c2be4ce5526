"""Samples in memory, on one device."""

import sys
import time
from typing import NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from cmjax.generation.batches import BatchSampler
from cmjax.generation.request import MAX_NUM, Request, as_integer
from cmjax.model import Model


class Generated(NamedTuple):
    """What `generate` returns.

    Attributes:
        images: u8[N, H, W, C].
        labels: the classes, i32[N], or None for a model without.
        compile_seconds: that the program took to compile.
        run_seconds: that it ran.
    """

    images: np.ndarray
    labels: np.ndarray | None
    compile_seconds: float
    run_seconds: float


def generate(
    model: Model, request: Request, num: int, *, batch_size: int = 64, progress: bool = False
) -> Generated:
    """Makes samples on one device, in memory.

    Args:
        model: from `cmjax.load`.
        request: which samples.
        num: number of samples.
        batch_size: samples made at a time.
        progress: show a bar on stderr.

    Raises:
        ValueError: for arguments out of range, labels that the model does not have, if the device
            has too little memory, or if samples are not finite.
    """
    num = as_integer("num", num, 1, MAX_NUM)
    batch_size = as_integer("batch_size", batch_size, 1, MAX_NUM)
    images = np.empty((num, *model.sample_shape), np.uint8)
    size = min(num, batch_size)
    starts = range(0, num, size)
    batches = [np.arange(i, min(i + size, num), dtype=np.uint32) for i in starts]

    # A single batch has no progress to log, but somebody who waits at a terminal sees a bar.
    several = len(batches) > 1
    hidden = not progress or not (several or sys.stderr.isatty())
    bar = tqdm(total=len(batches), desc="compiling", unit="batch", leave=False, disable=hidden)
    with bar:
        begin = time.perf_counter()
        device = jax.local_devices()[:1]
        sampler = BatchSampler(model, request, batch_size=size, devices=device)
        compiled = time.perf_counter()

        bar.reset()  # its rate is that of sampling
        bar.set_description("sampling")
        for batch, made in zip(batches, sampler.batches(batches), strict=True):
            images[batch] = made
            bar.update()
        bar.leave = several
    labels = request.labels_of(range(num))
    return Generated(images, labels, compiled - begin, time.perf_counter() - compiled)

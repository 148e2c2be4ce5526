"""Samples in memory, on one device."""

import time
from typing import NamedTuple

import jax
import numpy as np

from cmjax.generation.batches import BatchSampler
from cmjax.generation.folder_settings import MAX_NUM
from cmjax.generation.request import Request, as_integer
from cmjax.model import Model
from cmjax.progress import Bar
from cmjax.system import at_terminal


class Generated(NamedTuple):
    """What `generate` returns.

    Attributes:
        images: the samples as pixels, u8[N, H, W, C].
        labels: their classes, i32[N], or None for a model without classes.
        compile_seconds: time to place the parameters on the device and to compile the program.
        run_seconds: time to make the samples.
    """

    images: np.ndarray
    labels: np.ndarray | None
    compile_seconds: float
    run_seconds: float


def generate(
    model: Model,
    request: Request,
    num: int,
    *,
    batch_size: int = 64,
    progress: bool = False,
) -> Generated:
    """Generates samples on one device and returns them in memory.

    Example:
        >>> import cmjax
        >>> from cmjax.generation import Request, generate
        >>> made = generate(cmjax.load(), Request(labels=[7]), 2)
        >>> made.images.shape, made.labels.tolist()
        ((2, 28, 28, 1), [7, 7])

    Args:
        model: from `cmjax.load`.
        request: which samples to make.
        num: number of samples.
        batch_size: number of samples made at a time.
        progress: whether to show a progress bar on stderr.

    Returns:
        The samples and their classes, with the time that they took.

    Raises:
        ValueError: for arguments out of range, labels that the model does not have, if the device
            has too little memory, or if samples are not finite.
    """
    num = as_integer("num", num, 1, MAX_NUM)
    batch_size = as_integer("batch_size", batch_size, 1, MAX_NUM)

    # Sample numbers 0 to num - 1 in batches, u32[size] each; the last one may be smaller. No batch
    # is larger than `num`, so that nothing is computed to be dropped.
    images = np.empty((num, *model.picture_shape), np.uint8)
    size = min(num, batch_size)
    starts = range(0, num, size)
    batches = [np.arange(i, min(i + size, num), dtype=np.uint32) for i in starts]

    # Few samples at a time are decoded, if they are latents: then pictures are counted.
    total = len(batches)
    unit = "batch"
    if model.autoencoder is not None:
        total = num
        unit = "picture"

    # What is done at once needs no bar in a log file; at a terminal it shows that something is
    # being done.
    several = total > 1
    shown = progress and (several or at_terminal())
    bar = Bar(total, unit=unit, doing="compiling", shown=shown, keep=several)

    def made(count):
        bar.advance_to(bar.done + (count if unit == "picture" else 1))

    with bar:
        # `BatchSampler` compiles when it is built: timed apart from sampling.
        begin = time.perf_counter()
        device = jax.local_devices()[:1]
        sampler = BatchSampler(model, request, batch_size=size, devices=device)
        compiled = time.perf_counter()

        # The clock starts over, so that the rate is that of sampling alone.
        bar.begin("sampling")
        for batch, pixels in zip(batches, sampler.batches(batches, made), strict=True):
            images[batch] = pixels

    labels = request.labels_of(range(num))
    return Generated(images, labels, compiled - begin, time.perf_counter() - compiled)

"""Features of images, computed batch by batch."""

from collections.abc import Callable
from typing import Any

import numpy as np

from cmjax.arrays import as_numpy
from cmjax.configs import positive_int, shown
from cmjax.evaluation.checks import as_features, as_float64

LARGEST_BATCH = 2**20


def features(
    feature_fn: Callable[[np.ndarray], Any], images: np.ndarray, batch_size: int = 64
) -> np.ndarray:
    """Applies a function to images batch by batch.

    All batches have the same size, so that a jitted function compiles once: the last batch is
    padded with copies, whose features are dropped.

    Args:
        feature_fn: maps `batch_size` images to features `[batch_size, D]`. The features of an
            image must not depend on the rest of the batch. A JAX function should be jitted.
        images: `[N, ...]` of any dtype; passed to `feature_fn` unchanged.
        batch_size: number of images at a time.

    Returns:
        The features, f64[N, D].

    Raises:
        ValueError: if there are no images, `feature_fn` is no function, or features have another
            shape or are not finite.
    """
    if not callable(feature_fn):
        raise ValueError(
            f"feature_fn must be a function of images, got {shown(feature_fn)}"
        )
    batch_size = positive_int("batch_size", batch_size, LARGEST_BATCH)
    images = as_numpy("images", images)
    if not images.ndim or not len(images):
        raise ValueError("images must be [N, ...] and not empty")

    parts = []
    for first in range(0, len(images), batch_size):
        batch = np.asarray(images[first : first + batch_size])

        # The last batch is filled up by copies of an image. Some functions return NaN for zeros.
        filling = batch[-1:].repeat(batch_size - len(batch), 0)
        made = feature_fn(np.concatenate([batch, filling]))
        values = as_float64("feature_fn's result", made)
        if values.ndim != 2 or len(values) != batch_size:
            raise ValueError(
                f"feature_fn must return [{batch_size}, D] for {batch_size} images, "
                f"got {values.shape}"
            )
        parts.append(values[: len(batch)])
    return as_features(np.concatenate(parts), "feature_fn's result")

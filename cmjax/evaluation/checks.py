"""Checks of features."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from cmjax.arrays import as_numpy

# float64 holds sums of its square.
LARGEST_FEATURE = 1e140


def as_float64(name: str, values: Any) -> np.ndarray:
    """Returns real numbers as f64; raises ValueError for anything else."""
    array = as_numpy(name, values)
    if np.issubdtype(array.dtype, np.complexfloating):
        raise ValueError(f"{name} must be real numbers, got {array.dtype}")
    return array.astype(np.float64)


def as_features(values: ArrayLike, name: str) -> np.ndarray:
    """Returns features as f64[N, D]; raises ValueError for other shapes and non-finite numbers."""
    values = as_float64(name, values)
    if values.ndim != 2 or not values.size:
        raise ValueError(
            f"{name} must be features [N, D] and not empty, got shape {values.shape}"
        )
    wrong = ~np.isfinite(values).all(1)
    if wrong.any():
        raise ValueError(
            f"{name} is not finite at row {wrong.argmax()}; "
            "remove that sample or repair the features"
        )
    largest = np.abs(values).max()
    if largest > LARGEST_FEATURE:
        raise ValueError(
            f"{name} has numbers up to {largest:g}, whose squares float64 does not hold; "
            "divide all features by the same number"
        )
    return values

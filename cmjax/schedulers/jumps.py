"""Jumps back up the levels of a run (Lugmayr et al. 2022)."""

from typing import Any

import numpy as np

from cmjax.schedulers.levels import MOST_STEPS


def jump_places(scheduler: Any, n: int) -> np.ndarray:
    """Returns the place of each call among the n levels of a run, 0 for the highest, i64[N].

    Args:
        scheduler: with the fields `jump_length` and `jump_n_sample`.
        n: number of levels.

    Raises:
        ValueError: for more than a million calls.
    """
    length = scheduler.jump_length
    repeats = scheduler.jump_n_sample
    if n * repeats > MOST_STEPS:
        raise ValueError(
            f"jump_n_sample={repeats} times {n} levels may be more than {MOST_STEPS} calls; "
            "set a lower jump_n_sample"
        )

    # Jumps start after the steps from every j-th level, r - 1 times each. Here levels are counted
    # from the lowest, as in the paper's figure 9.
    left = {height: repeats - 1 for height in range(0, n - length, length)}
    heights = []
    height = n - 1
    while height >= 0:
        heights.append(height)
        if left.get(height, 0):
            left[height] -= 1
            height += length
        height -= 1
    return n - 1 - np.array(heights)

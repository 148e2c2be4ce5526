"""Checks of what callers pass to schedulers and to the sampling loop."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from cmjax.arrays import concrete
from cmjax.configs import LARGEST, is_int, shown


def check_config(config: Any) -> None:
    """Raises ValueError unless a scheduler's configuration maps names to values."""
    named = isinstance(config, Mapping) and all(isinstance(name, str) for name in config)
    if not named:
        raise ValueError(
            f"config must map the names of options to values, got {shown(config)}"
        )


def check_sample_shape(shape: Any) -> tuple[int, ...]:
    """Returns a shape as a tuple; raises ValueError unless it is `(B, ...)`, sizes at least 1."""
    try:
        sizes = tuple(shape)
    except TypeError:
        sizes = ()
    if not sizes or not all(is_int(size, 1, LARGEST) for size in sizes):
        raise ValueError(
            f"shape must be (B, ...) with sizes of at least 1, got {shown(shape)}; "
            "a single sample is (1, ...)"
        )
    return tuple(int(size) for size in sizes)


def check_constraint(constrain: Any) -> None:
    """Raises ValueError unless `constrain` is a function or None."""
    if constrain is not None and not callable(constrain):
        raise ValueError(
            "constrain must be a function x0 -> x0, such as what inpaint(image, mask) returns, "
            f"got {shown(constrain)}"
        )


def check_not_finished(state: Any) -> None:
    """Raises ValueError if the run is known to have taken all its steps."""
    # Within a scan the index is traced. A vmapped state has an index for each run, hence `any`.
    index = concrete(state.step_index)
    if index is not None and np.any((index < 0) | (index >= state.num_steps)):
        raise ValueError(
            f"state.step_index is {index} but the run has {state.num_steps} steps; "
            "call set_timesteps again"
        )

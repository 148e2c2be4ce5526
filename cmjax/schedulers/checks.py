"""Checks of what callers pass to schedulers and to the sampling loop."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cmjax.arrays import as_floats, concrete, is_symbolic
from cmjax.configs import LARGEST, is_finite, is_int, shown


def check_config(config: Any) -> None:
    """Raises ValueError unless a scheduler's configuration maps names to values."""
    named = isinstance(config, Mapping) and all(isinstance(name, str) for name in config)
    if not named:
        raise ValueError(
            f"config must map the names of options to values, got {shown(config)}; give "
            "what json.load reads from a scheduler_config.json, or scheduler.to_config()"
        )


def check_sigma_order(sigma_min: float, sigma_max: float) -> None:
    """Raises ValueError unless `sigma_min < sigma_max`."""
    if sigma_min >= sigma_max:
        raise ValueError(f"sigma_min {sigma_min} must be less than sigma_max {sigma_max}")


def check_noise_levels(name: str, levels: Any) -> None:
    """Raises ValueError unless an option holds noise levels in [0, 1], 0 only as the last one."""
    valid = isinstance(levels, tuple) and len(levels) >= 2 and 0 not in levels[:-1]
    if not valid or not all(is_finite(level, 0, 1) for level in levels):
        raise ValueError(
            f"{name} must be a tuple of two or more noise levels between 0 and 1, of which only "
            f"the last may be 0, got {shown(levels)}"
        )


def check_sample_shape(shape: Any) -> tuple[int, ...]:
    """Returns a shape as a tuple; raises ValueError unless it is `(B, ...)`, sizes at least 1.

    Sizes may also be symbols of `jax.export`.
    """
    try:
        sizes = tuple(shape)
    except TypeError:
        sizes = ()
    if not sizes or not all(
        is_int(size, 1, LARGEST) or is_symbolic(size) for size in sizes
    ):
        raise ValueError(
            f"shape must be (B, ...) with sizes of at least 1, got {shown(shape)}; "
            "a single sample is (1, ...)"
        )
    return tuple(size if is_symbolic(size) else int(size) for size in sizes)


def check_constraint(constrain: Any) -> None:
    """Raises ValueError unless `constrain` is a function or None."""
    if constrain is not None and not callable(constrain):
        raise ValueError(
            "constrain must be a function x0 -> x0, such as what inpaint(image, mask) returns, "
            f"got {shown(constrain)}"
        )


def apply_constraint(
    constrain: Callable[[jax.Array], jax.Array], denoised: jax.Array
) -> jax.Array:
    """Returns the x0 estimate that a constraint allows, `[B, ...]`, in the dtype of the given one.

    Raises:
        ValueError: if the constraint returns anything but floats in the shape of the estimate.
    """
    constrained = as_floats("constrain's result", constrain(denoised))
    if constrained.shape != denoised.shape:
        raise ValueError(
            f"the constraint must return x0 in the shape that it gets, {denoised.shape}, "
            f"got {constrained.shape}"
        )
    return constrained.astype(denoised.dtype)


def check_not_finished(state: Any) -> None:
    """Raises ValueError if the run is known to have taken all its steps."""
    # Within a scan the index is traced. A vmapped state has an index for each run, hence `any`.
    index = concrete(state.step_index)
    if index is not None and np.any((index < 0) | (index >= state.num_steps)):
        raise ValueError(
            f"state.step_index is {index} but the run has {state.num_steps} steps; "
            "call set_timesteps again"
        )


def check_levels(state: Any, name: str, levels: Any) -> None:
    """Raises ValueError for levels or a step that cannot be those of a run.

    Args:
        state: whose `timesteps`, `[N]`, and `step_index` are checked.
        name: the field that has one level more, where the run ends.
        levels: its value, `[N+1]`.
    """
    # The shapes say how many steps there are: with others a run would end early, without an error.
    ends = _length(levels)
    times = _length(state.timesteps)
    if ends is None or times is None or ends != times + 1:
        raise ValueError(
            f"state.{name} and state.timesteps must be arrays [N+1] and [N], as set_timesteps "
            f"makes them, got {shown(levels)} and {shown(state.timesteps)}"
        )
    index = state.step_index
    is_scalar = isinstance(index, jax.Array | np.ndarray) and index.ndim == 0
    if not is_int(index) and not (is_scalar and jnp.issubdtype(index.dtype, jnp.integer)):
        raise ValueError(f"state.step_index must be one integer, got {shown(index)}")


def _length(array: Any) -> Any:
    """The length of an array of one axis; None for anything else."""
    is_array = isinstance(array, jax.Array | np.ndarray)
    return array.shape[0] if is_array and array.ndim == 1 else None


def check_maker(state: Any, scheduler: Any) -> None:
    """Raises ValueError unless a state was made by a scheduler of this class and these options."""
    if state.scheduler != scheduler:
        raise ValueError(
            f"state was made by {_difference(state.scheduler, scheduler)}; "
            "pass what its own set_timesteps returns"
        )


def _difference(maker: Any, other: Any) -> str:
    """Returns in words how the scheduler that made a state differs from another one."""
    kind = type(other).__name__
    if type(maker) is not type(other):
        return f"a {type(maker).__name__}, but this is a {kind}"

    # The first option that differs; a long one is cut.
    for field in dataclasses.fields(maker):
        theirs = getattr(maker, field.name)
        ours = getattr(other, field.name)
        if theirs != ours:
            return f"a {kind} with {field.name}={shown(theirs)}, but this one has {shown(ours)}"
    return f"another {kind}"

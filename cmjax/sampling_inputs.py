"""Checks of the arguments of `cmjax.sample`, and the noise levels that they ask for.

Editing, models and the command line make the same checks, before they have loaded or computed
anything.
"""

import warnings
from typing import Any

import jax
import numpy as np

from cmjax.arrays import ApplyFn, as_array, as_floats, concrete
from cmjax.configs import LARGEST, is_int, shown
from cmjax.networks import is_guided
from cmjax.schedulers.base import Scheduler, SchedulerState
from cmjax.schedulers.registry import SCHEDULERS


def check_scheduler(scheduler: Any) -> None:
    """Raises ValueError unless `scheduler` is one."""
    if hasattr(scheduler, "num_vec_classes"):
        raise ValueError(
            f"scheduler {type(scheduler).__name__} samples categories; call "
            "cmjax.categorical.sample"
        )
    if not isinstance(scheduler, Scheduler):
        named = scheduler if isinstance(scheduler, str) else ""
        example = named if named in SCHEDULERS else "CMStochasticIterativeScheduler"
        raise ValueError(
            f"scheduler must be a scheduler, such as cmjax.{example}(), got {shown(scheduler)}"
        )


def check_guided(
    apply_fn: ApplyFn,
    scheduler: Scheduler,
    num_steps: int | None,
    subject: str = "apply_fn is guided, but",
) -> str:
    """Checks that a guided network is not sampled as a consistency function.

    Guidance extrapolates a network's output. In one step of a consistency function that is the
    sample itself, which no later step corrects; see `cmjax.guidance`.

    Args:
        apply_fn: the network.
        scheduler: the sampler.
        num_steps: number of steps, or None if it is not known.
        subject: how the warning and the error begin.

    Returns:
        A warning if a guided network is sampled as a consistency function in several steps;
        otherwise "".

    Raises:
        ValueError: if it is sampled so in one step.
    """
    if scheduler.solves_ode or not is_guided(apply_fn):
        return ""
    reads = f"{subject} {type(scheduler).__name__} reads consistency functions"
    way_out = (
        "guide a denoiser under a solver such as EDMHeunScheduler, or the teacher that the "
        "network is distilled from"
    )
    if num_steps == 1:
        raise ValueError(
            f"{reads}: extrapolating one in a single call throws samples far from the data; "
            f"{way_out}"
        )
    return f"{reads}: extrapolating one is only an approximation of guidance; {way_out}"


def default_steps_warning(scheduler: Scheduler, argument: str) -> str:
    """Returns a warning if a solver is to take the one step that is the default; otherwise ""."""
    if not scheduler.solves_ode:
        return ""
    return (
        f"{type(scheduler).__name__} is a solver, and takes one step unless {argument} is given; "
        "a denoiser needs some 20, since its single calls are blurred means"
    )


def check_params(params: Any) -> None:
    """Raises ValueError for parameters that are no pytree of arrays."""
    for leaf in jax.tree.leaves(params):
        # Nearly all leaves are of these types, which JAX takes as they are.
        if isinstance(leaf, jax.Array | float) or is_int(leaf, -LARGEST, LARGEST):
            continue
        if not isinstance(leaf, np.ndarray | np.generic | bool | complex):
            raise ValueError(f"params must be a pytree of arrays, got a leaf {shown(leaf)}")

        # JAX would convert arrays of a dtype that it does not have, such as float64 without x64.
        if as_array("params", leaf).dtype != np.asarray(leaf).dtype:
            raise ValueError(f"params must be arrays of JAX's dtypes, got {shown(leaf)}")


def check_outputs(return_trajectory: Any, callback: Any) -> None:
    """Raises ValueError where what `sample` is to return or to call has a wrong type."""
    if not isinstance(return_trajectory, bool | np.bool_):
        raise ValueError(
            f"return_trajectory must be True or False, got {shown(return_trajectory)}"
        )
    if callback is not None and not callable(callback):
        raise ValueError(
            f"callback must be a function (step_index, StepOutput), got {shown(callback)}"
        )


def requested_levels(
    scheduler: Scheduler,
    *,
    num_inference_steps: Any,
    timesteps: Any,
    sigmas: Any,
    state: Any,
) -> tuple[SchedulerState | None, int | None]:
    """Returns the noise levels that were asked for, as a state or as a number of steps.

    Args:
        scheduler: the sampler.
        num_inference_steps: number of steps, or None.
        timesteps: levels as the scheduler's own timesteps, or None.
        sigmas: levels as sigmas, or None.
        state: a state at its first step, or None.

    Returns:
        The pair (state, number of steps), exactly one of which is None. Without any argument it is
        one step.

    Raises:
        ValueError: if more than one is given, or for invalid levels or an invalid state.
    """
    arguments = {
        "num_inference_steps": num_inference_steps,
        "timesteps": timesteps,
        "sigmas": sigmas,
        "state": state,
    }
    given = [name for name, value in arguments.items() if value is not None]
    if len(given) > 1:
        raise ValueError(
            f"give at most one of num_inference_steps, timesteps, sigmas and state, got {given}"
        )

    if timesteps is not None:
        return scheduler.set_timesteps(timesteps=timesteps), None
    if sigmas is not None:
        return scheduler.set_timesteps(sigmas=sigmas), None
    if state is not None:
        _check_first_step(scheduler, state)
        return state, None

    # A number of steps is static: the compiled program computes its levels as constants, which
    # `set_timesteps` checks there.
    if num_inference_steps is None:
        if warning := default_steps_warning(scheduler, "num_inference_steps"):
            warnings.warn(warning, stacklevel=3)
        return None, 1
    if isinstance(num_inference_steps, np.integer):
        return None, int(num_inference_steps)
    return None, num_inference_steps


def _check_first_step(scheduler, state):
    """Raises ValueError unless `state` is one of this scheduler, before its first step."""
    scheduler.check_state(state)

    # The loop takes all of a state's `num_steps` steps, so a state that has taken some of them
    # would run beyond the last level.
    index = concrete(state.step_index)
    if index is not None and index != 0:
        raise ValueError(
            f"state is at step {index}, but sample() takes all steps; "
            "pass a state from set_timesteps"
        )


def parse_init(init: Any, shape: tuple[int, ...], dtype: np.dtype) -> jax.Array | None:
    """Returns the given first samples, `dtype[shape]`, or None.

    Raises:
        ValueError: if they are no floats, or have another shape.
    """
    if init is None:
        return None
    x = as_floats("init", init).astype(dtype)
    if x.shape != shape:
        raise ValueError(f"init has shape {x.shape}, but shape={shape}")
    return x

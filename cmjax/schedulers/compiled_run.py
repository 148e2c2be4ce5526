"""The start of a run by one program, outside of the caller's own `jax.jit`.

An operation at a time, JAX would compile some fifty programs for each number of levels.
"""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from cmjax.arrays import as_array
from cmjax.configs import is_int
from cmjax.tracing import ByValue, as_input

# Number of explicit levels to keep in mind that have been checked.
_CHECKED = 256


def compiled_run(scheduler: Any, name: str, value: Any) -> Any:
    """Returns the state at the start of a run; see `TableScheduler.set_timesteps`.

    Args:
        scheduler: a `TableScheduler` that can be hashed.
        name: which argument of `set_timesteps` was given.
        value: its value, which is not traced.

    Raises:
        ValueError, TypeError: if there is no such run; `scheduler.run` says why.
    """
    if name == "num_inference_steps":
        # Checked here, since as keys of a cache 2.0 and True are the same as 2 and 1.
        if not is_int(value):
            raise ValueError
        state = _run_of_steps(scheduler, int(value))
    else:
        # The program gets the values as data, which it cannot check.
        known = np.asarray(as_array(name, value))
        _check_values(scheduler, name, ByValue(known))
        state = _run_at(scheduler, name, as_input(known))

    # The program returns the scheduler that it was compiled for, which is equal.
    return dataclasses.replace(state, scheduler=scheduler)


@functools.lru_cache(_CHECKED)
def _check_values(scheduler: Any, name: str, values: ByValue) -> None:
    """Raises ValueError for values that `levels` refuses."""
    # Traced, since nothing but its checks is wanted. They know the values also there.
    jax.eval_shape(lambda: scheduler.levels(name, values.tree))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _run_of_steps(scheduler: Any, num_steps: int) -> Any:
    return scheduler.run("num_inference_steps", num_steps)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _run_at(scheduler: Any, name: str, values: jax.Array) -> Any:
    return scheduler.run(name, values)

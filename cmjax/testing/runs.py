"""What the checks run: a network, the start of a run, and a step of it."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from cmjax.arrays import ApplyFn, scaled, weighted_sum
from cmjax.parametrization import VESDE
from cmjax.random import key_of_seed
from cmjax.schedulers.base import Scheduler, SchedulerState
from cmjax.schedulers.table import TableState

# Of the samples in these checks. The sizes differ, so that mixed-up axes fail.
SHAPE = (4, 3, 2)


def network(params: None, x: jax.Array, *times: jax.Array) -> jax.Array:
    """A network that depends on all of its inputs, each sample on its own."""
    del params

    # Bounded in x, so that long runs stay finite, and flat where x is large: not all networks see
    # scaled samples, and bfloat16 rounds 100 by up to 1/4. Times reach a thousand too.
    terms: list[tuple[Any, jax.Array]] = [(0.3, jnp.arctan(x))]
    for t in times:
        terms.append((1e-4 * t, jnp.ones_like(x)))
    return weighted_sum(*terms)


def score(params: None, x: jax.Array, sigma: jax.Array) -> jax.Array:
    """A score that points to where `network` does, as if data had the variance 1."""
    towards = weighted_sum((1.0, network(params, x, sigma)), (-1.0, x))
    return scaled(1 / (1 + jnp.square(sigma)), towards)


def network_for(scheduler: Scheduler) -> ApplyFn:
    """The network of these checks for a scheduler: `network`, or `score`.

    A score that did not point back from far away would leave samples of size 1000 where sigma is
    0.01, and what is added there to their rounding.
    """
    parametrization = getattr(scheduler, "parametrization", None)
    return score if isinstance(parametrization, VESDE) else network


def start(
    scheduler: Scheduler, num_steps: int, dtype: Any = jnp.float32
) -> tuple[SchedulerState, jax.Array]:
    """The state at the start of a run, and a first sample `dtype[SHAPE]`."""
    state = set_timesteps(scheduler, num_steps)
    return scheduler.init(key_of_seed(7), state, SHAPE, dtype)


@functools.partial(jax.jit, static_argnums=1)
def set_timesteps(scheduler: Scheduler, num_steps: int) -> SchedulerState:
    """The state of a run, made by one program that is compiled once for all checks."""
    # Eagerly, each operation would be compiled on its own, which takes longer.
    return scheduler.set_timesteps(num_steps)


def rounding(state: SchedulerState, x: jax.Array) -> float:
    """The error that float32 may have in a step from x: 1e-5 of the size of the step's terms."""
    # eps = (x - alpha x0) / sigma magnifies rounding errors at low levels. Steps down weigh it with
    # less than sigma, steps up with more.
    magnified = 1.0
    if isinstance(state, TableState):
        magnified = abs(float(state.weights.eps[state.step_index] / state.sigma))
    largest = float(jnp.max(jnp.abs(x)))
    return 1e-5 * max(1.0, largest * max(1.0, magnified))


def one_step(
    scheduler: Scheduler, key: jax.Array, state: SchedulerState, x: jax.Array
) -> Any:
    """The next state, and the output of the step, with the network for it."""
    apply_fn = network_for(scheduler)
    model_output = scheduler.predict(apply_fn, None, state, x)
    return scheduler.step(key, state, model_output, x)

"""Checks that a run can be differentiated, by the network and by its noise levels."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from cmjax.sampling import sample
from cmjax.schedulers.base import Scheduler
from cmjax.testing.comparisons import assert_close, assert_finite, check
from cmjax.testing.runs import SHAPE, network, set_timesteps

# Differences are taken over this share of a level, and agree with gradients to this tolerance.
_STEP = 2e-3
_RTOL = 0.05
_ATOL = 2e-3


def assert_differentiable(scheduler: Scheduler, num_steps: int = 3) -> None:
    """Checks gradients of a whole run, by the network and by the noise levels.

    All must be finite. Reverse and forward mode must agree on the gradient by the network. Where
    the scheduler takes `sigmas`, the gradient by these must agree with differences.
    """
    state = set_timesteps(scheduler, num_steps)
    levels = _levels_between(state.sigmas)
    takes_levels = _takes_levels(scheduler, levels)

    # Samplers that take whole training times alone are differentiated by the state's levels.
    def run(gain, levels):
        def scaled(gain, x, *times):
            return gain * network(None, x, *times)

        given = {"sigmas": levels}
        if not takes_levels:
            given = {"state": state.replace(sigmas=levels)}
        return sample(jax.random.key(0), scaled, gain, scheduler, SHAPE, **given)

    # Reverse mode by both, then forward mode by the network's parameter.
    gain = jnp.float32(0.7)
    levels = levels if takes_levels else state.sigmas
    reverse, by_levels = jax.grad(lambda *args: run(*args).sum(), argnums=(0, 1))(
        gain, levels
    )
    assert_finite({"gain": reverse, "levels": by_levels})
    _, forward = jax.jvp(
        lambda gain: run(gain, levels).sum(), (gain,), (jnp.ones_like(gain),)
    )
    assert_close(forward, reverse, rtol=1e-3, atol=1e-3)
    if takes_levels:
        _check_differences(jax.jit(lambda levels: run(gain, levels)), levels, by_levels)


def _levels_between(sigmas: jax.Array) -> jax.Array:
    """Returns levels between those of a run, descending, where all of them may be varied."""
    known = np.unique(np.asarray(sigmas))[::-1]
    known = known[known > 0]
    between = np.sqrt(known[1:] * known[:-1])
    return jnp.asarray(between if between.size else 0.9 * known, jnp.float32)


def _takes_levels(scheduler: Scheduler, levels: jax.Array) -> bool:
    # Traced, since eagerly each operation would be compiled on its own.
    try:
        jax.eval_shape(lambda sigmas: scheduler.set_timesteps(sigmas=sigmas), levels)
    except (TypeError, ValueError):
        return False
    return True


def _check_differences(
    run: Callable[[jax.Array], jax.Array], levels: jax.Array, gradient: jax.Array
) -> None:
    """Checks the gradient of the sum of a run's samples, one level after the other."""
    for i, level in enumerate(np.asarray(levels)):
        step = np.float32(_STEP * level)
        above = np.asarray(run(levels.at[i].add(step)), np.float64)
        below = np.asarray(run(levels.at[i].add(-step)), np.float64)
        slope = (above - below).sum() / (2 * np.float64(step))
        error = abs(float(gradient[i]) - slope)
        check(
            error <= _ATOL + _RTOL * abs(slope),
            f"the gradient by sigmas[{i}] = {level:g} is {gradient[i]:g}, by differences {slope:g}",
        )

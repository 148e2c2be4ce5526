"""Checks that a run can be differentiated, by the network and by its noise levels."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cmjax.random import key_of_seed
from cmjax.sampling import sample
from cmjax.schedulers.base import Scheduler
from cmjax.testing.comparisons import assert_close, assert_finite, check
from cmjax.testing.runs import SHAPE, network_for, set_timesteps

# Differences are taken over this share of a level, and agree with gradients to this tolerance.
_STEP = 1e-2
_RTOL = 0.05
_ATOL = 2e-3


def assert_differentiable(scheduler: Scheduler, num_steps: int = 3) -> None:
    """Checks gradients of a whole run, by the network and by the noise levels.

    All must be finite. Reverse and forward mode must agree on the gradient by the network. Where
    the scheduler takes `sigmas`, the gradient by these must agree with differences.
    """
    network = network_for(scheduler)
    state = set_timesteps(scheduler, num_steps)
    levels = _levels_between(state.sigmas)

    # Samplers that take whole training times alone have only the state's levels to differentiate
    # by. Those are shifted in any case, since a sampler may read them at every step.
    at_levels = _state_of_levels(scheduler, levels)
    shift = jnp.zeros_like(state.sigmas if at_levels is None else at_levels.sigmas)

    # A network with one parameter, and the samples of a run of it.
    def scaled(gain, x, *times):
        return gain * network(None, x, *times)

    def run(gain, levels, shift):
        begun = state
        if at_levels is not None:
            begun = scheduler.set_timesteps(sigmas=levels)
        shifted = begun.replace(sigmas=begun.sigmas + shift)
        return sample(key_of_seed(0), scaled, gain, scheduler, SHAPE, state=shifted)

    # The samples, the gradients of their sum by all arguments in reverse mode, and that by the
    # network's parameter in forward mode: one program, since compiling takes most of the time of
    # this check.
    def sum_of_samples(gain, levels, shift):
        samples = run(gain, levels, shift)
        return samples.sum(), samples

    @jax.jit
    def differentiate(gain, levels, shift):
        gradient = jax.grad(sum_of_samples, argnums=(0, 1, 2), has_aux=True)
        reverse, samples = gradient(gain, levels, shift)

        def by_gain_alone(gain):
            return run(gain, levels, shift).sum()

        _, forward = jax.jvp(by_gain_alone, (gain,), (jnp.ones_like(gain),))
        return samples, reverse, forward

    gain = jnp.float32(0.7)
    _, reverse, forward = differentiate(gain, levels, shift)
    by_gain, by_levels, by_shift = reverse
    assert_finite(
        {
            "gradient by the network": by_gain,
            "gradient by sigmas": by_levels,
            "gradient by state.sigmas": by_shift,
        }
    )
    assert_close(forward, by_gain, rtol=1e-3, atol=1e-3)
    if at_levels is None:
        return

    # The same program again, so that differences compile nothing.
    def samples_at(levels):
        samples, _, _ = differentiate(gain, levels, shift)
        return np.asarray(samples, np.float64)

    _check_differences(samples_at, levels, by_levels)


def _levels_between(sigmas: jax.Array) -> jax.Array:
    """Returns levels between those of a run, descending, where all of them may be varied."""
    known = np.unique(np.asarray(sigmas))[::-1]
    known = known[known > 0]
    between = np.sqrt(known[1:] * known[:-1])
    if not between.size:
        between = 0.9 * known
    return jnp.asarray(between, jnp.float32)


def _state_of_levels(scheduler: Scheduler, levels: jax.Array) -> Any:
    """Returns the shapes of a run at these levels; None if the scheduler takes no `sigmas`."""
    # Traced, since eagerly each operation would be compiled on its own.
    try:
        return jax.eval_shape(lambda sigmas: scheduler.set_timesteps(sigmas=sigmas), levels)
    except (TypeError, ValueError):
        return None


def _check_differences(
    samples_at: Callable[[jax.Array], np.ndarray], levels: jax.Array, gradient: jax.Array
) -> None:
    """Checks the gradient of the sum of samples, one level after the other.

    Args:
        samples_at: returns the samples of a run at these levels, in float64.
        levels: f32[n].
        gradient: of the sum of the samples by the levels, f32[n].
    """
    size = np.abs(samples_at(levels)).sum()
    for i, level in enumerate(np.asarray(levels)):
        # The central difference over a step up and a step down.
        step = np.float32(_STEP * level)
        above = samples_at(levels.at[i].add(step))
        below = samples_at(levels.at[i].add(-step))
        slope = (above - below).sum() / (2 * np.float64(step))
        error = abs(float(gradient[i]) - slope)

        # Samples in float32 are rounded, and a small step magnifies that.
        rounding = np.finfo(np.float32).eps * size / (2 * step)
        check(
            error <= _ATOL + _RTOL * abs(slope) + rounding,
            f"the gradient by sigmas[{i}] = {level:g} is {gradient[i]:g}, by differences {slope:g}",
        )

"""DPM-Solver++ of the SDE: the noise of its steps, and the order that it owes to this noise."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmjax.schedulers import DPMSolverSDEScheduler
from cmjax.schedulers.levels import karras_sigmas, ramp

MEAN, STD = 0.6, 0.3


@functools.partial(jax.jit, static_argnums=(0, 1))
def coefficients(scheduler, n):
    """Runs the solver on Gaussian data, where every sample is a sum of independent parts.

    A sample is an array of the weights of these parts: a constant, the first sample's noise and
    the noise of each call. The solver moves it as it moves any array. Returns the sample after n
    steps, and its level. Another step would go to 0, and cannot shrink with the others.
    """
    state = scheduler.set_timesteps(sigmas=karras_sigmas(ramp(n + 1), 0.1, 20.0, 7.0))
    num_calls = 2 * n

    def call(carry, index):
        state, x = carry

        # E[x0 | x] of N(MEAN, STD^2).
        share = STD**2 / (STD**2 + jnp.square(state.sigma))
        x0 = (share * x).at[0].add((1 - share) * MEAN)
        noise = jnp.zeros_like(x).at[2 + index].set(1)
        return scheduler.advance(state, x, x0, noise), None

    x = jnp.zeros(num_calls + 2).at[0].set(MEAN)
    x = x.at[1].set(jnp.sqrt(STD**2 + jnp.square(state.sigma)))
    state = scheduler.prepare(state, x)
    (state, x), _ = jax.lax.scan(call, (state, x), jnp.arange(num_calls))
    return x, state.sigma


def test_the_distribution_of_gaussian_data_converges_with_order_two():
    # With independent noises it would be of order one. In closed form: nothing is drawn.
    scheduler = DPMSolverSDEScheduler()
    numbers = (32, 64, 128)
    errors = []
    for n in numbers:
        x, end = coefficients(scheduler, n)
        assert x[0] == pytest.approx(MEAN, abs=1e-6)
        errors.append(abs(np.sum(np.square(x[1:])) / (STD**2 + end**2) - 1))
    slope = -np.polyfit(np.log(numbers), np.log(errors), 1)[0]
    assert min(errors) > 1e-4 and slope == pytest.approx(2, abs=0.2)


def test_both_noises_of_a_step_lie_on_one_brownian_path_over_sigma():
    scheduler = DPMSolverSDEScheduler(use_karras_sigmas=True, s_noise=0.7)
    state = jax.jit(lambda: scheduler.set_timesteps(4))()
    sigmas = np.float64(state.sigmas)
    noise = np.float64(state.weights.noise)
    last_noise = np.float64(state.weights.last_noise)
    for call in (0, 2, 4):
        start, middle = sigmas[call : call + 2]
        end = sigmas[call + 2]

        # The standard deviations of ancestral steps.
        to_middle = 0.7 * middle * math.sqrt(1 - (middle / start) ** 2)
        to_end = 0.7 * end * math.sqrt(1 - (end / start) ** 2)
        np.testing.assert_allclose(noise[call], to_middle, rtol=1e-5)
        total = math.hypot(noise[call + 1], last_noise[call + 1])
        np.testing.assert_allclose(total, to_end, rtol=1e-5)

        # The correlation of W(start) - W(middle) with W(start) - W(end).
        shared = math.sqrt((start - middle) / (start - end))
        np.testing.assert_allclose(last_noise[call + 1] / total, shared, rtol=1e-4)

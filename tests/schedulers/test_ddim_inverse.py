"""DDIM and its inverse: what goes down comes up again, as closely as theory says."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cmjax
from cmjax.schedulers import DDIMInverseScheduler, DDIMScheduler
from tests.support.draws import draws

KEY = jax.random.key(0)
SHAPE = (2, 3)


def network(params, x, t):
    """A predicted noise with the Lipschitz constant size * frequency in the sample."""
    size, frequency = params
    return size * jnp.sin(frequency * x + t.reshape(-1, 1) / 100)


@functools.partial(jax.jit, static_argnums=(0, 1))
def run(schedulers, n, params, start):
    """All samples on the way down from the start, and on the way up from its end, [n+1, ...]."""
    ways = []
    for scheduler in schedulers:
        end, steps = cmjax.sample(
            KEY,
            network,
            params,
            scheduler,
            SHAPE,
            num_inference_steps=n,
            init=start,
            return_trajectory=True,
        )
        ways.append(jnp.concatenate([start[None], steps.prev_sample]))
        start = end
    return ways


def there_and_back(start, n, size, frequency, **options):
    """The ways down and up, by schedulers of these options."""
    kinds = (DDIMScheduler, DDIMInverseScheduler)
    schedulers = tuple(kind(clip_sample=False, **options) for kind in kinds)
    params = (jnp.float32(size), jnp.float32(frequency))
    return [np.asarray(way) for way in run(schedulers, n, params, start)]


def bounds(down, n, lipschitz, **options):
    """The largest distance that the way up may have from the way down at each level, f64[n+1].

    A step up asks the network at the lower sample y instead of the upper one x, so that what it
    says is off by at most L |x - y|, and at a sample that is off already by L times that too:

        error' <= (alpha' / alpha) error + |w| L (error + |x - y|),

    where `w = sigma' - alpha' sigma / alpha` weighs the network's output.
    """
    state = DDIMScheduler(**options).set_timesteps(n)
    alphas = np.float64(state.alphas)[::-1]
    sigmas = np.float64(state.sigmas)[::-1]
    steps = np.abs(np.diff(np.float64(down), axis=0)).max(axis=(1, 2))[::-1]
    errors = [0.0]
    for i in range(n):
        growth = alphas[i + 1] / alphas[i]
        weight = abs(sigmas[i + 1] - growth * sigmas[i])
        error = errors[-1]
        errors.append(growth * error + weight * lipschitz * (error + steps[i]))
    return np.array(errors)


@settings(max_examples=draws(25))
@given(data=st.data())
def test_ddim_then_its_inverse_returns_the_sample_within_the_bound(data):
    size = data.draw(st.sampled_from([0.1, 0.5, 1.0]))
    frequency = data.draw(st.sampled_from([0.0, 0.2, 1.0]))
    n = data.draw(st.sampled_from([1, 8]))
    options = {
        "timestep_spacing": data.draw(st.sampled_from(["leading", "trailing", "linspace"])),
        "set_alpha_to_one": data.draw(st.booleans()),
        "beta_end": data.draw(st.sampled_from([0.005, 0.02])),
    }
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    start = jnp.asarray(random.standard_normal(SHAPE), jnp.float32)

    down, up = there_and_back(start, n, size, frequency, **options)
    limit = bounds(down, n, size * frequency, **options)
    errors = np.abs(np.float64(up) - down[::-1]).max(axis=(1, 2))
    rounding = 1e-4 * np.abs(down).max()
    assert np.all(errors <= limit + rounding)


def test_the_way_back_misses_by_less_the_more_steps_there_are():
    start = jax.random.normal(KEY, SHAPE)
    misses = []
    for n in (8, 32):
        options = {"timestep_spacing": "trailing", "beta_end": 0.005}
        down, up = there_and_back(start, n, 0.5, 1.0, **options)
        misses.append(np.abs(up[-1] - down[0]).max())
    assert misses[1] < misses[0] / 3.5, misses


def test_predicted_x0_is_refused_where_it_says_no_direction():
    with pytest.raises(
        ValueError, match="prediction_type='sample'.*set_alpha_to_one=False"
    ):
        DDIMInverseScheduler(prediction_type="sample")
    at_time_0 = DDIMInverseScheduler(prediction_type="sample", set_alpha_to_one=False)
    state = at_time_0.set_timesteps(timesteps=[900, 500])
    np.testing.assert_array_equal(state.timesteps, [500, 900])
    assert all(math.isfinite(weight) for weight in state.weights.x0)

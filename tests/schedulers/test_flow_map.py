"""Flow maps that start from noise of another scale than 1."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cmjax
from cmjax.guidance import embedded_scale

SCALED = cmjax.FlowMapEulerDiscreteScheduler(noise_scale=4.0)


def test_levels_are_those_of_the_scaled_noise():
    state = SCALED.set_timesteps(2)
    np.testing.assert_array_equal(state.sigmas, [4, 2, 0])
    np.testing.assert_array_equal(state.alphas, [0, 0.5, 1])
    np.testing.assert_array_equal(state.timesteps, [1000, 500])
    assert SCALED.init_noise_sigma == 4.0

    # The network is given times, which the scale does not change.
    assert [float(time) for time in SCALED.time_inputs(state)] == [1000, 500]
    given = SCALED.set_timesteps(sigmas=[1.0, 0.5])
    np.testing.assert_array_equal(given.sigmas, state.sigmas)


def test_steps_go_along_the_velocity():
    # x' = x - (t - r) u, and x0 = x - t u.
    rng = np.random.default_rng(0)
    x, u, noise = jnp.asarray(rng.normal(size=(3, 2, 5)), jnp.float32)
    state = SCALED.set_timesteps(sigmas=[0.75, 0.25])
    denoised = SCALED.denoise(state, u, x)
    np.testing.assert_allclose(denoised, x - 0.75 * u, atol=1e-6)
    state, after = SCALED.advance(state, x, denoised, noise)
    np.testing.assert_allclose(after, x - 0.5 * u, atol=1e-6)
    noised = SCALED.add_noise(state, x, noise)
    np.testing.assert_allclose(noised, 0.75 * x + 0.25 * 4 * noise, atol=1e-6)


def test_time_and_ratio_are_inverse_to_each_other():
    parametrization = SCALED.parametrization
    times = jnp.array([1.0, 250.0, 900.0])
    alpha, sigma = parametrization.path(times)
    np.testing.assert_allclose(sigma, 4 * times / 1000, rtol=1e-6)
    level = parametrization.level(sigma / alpha)
    np.testing.assert_allclose(level.time, times, rtol=1e-6)
    np.testing.assert_allclose(level.alpha, alpha, rtol=1e-6)
    np.testing.assert_allclose(level.sigma, sigma, rtol=1e-6)


# Data of a class, N(MEAN, STD^2), and of none, N(0, 2^2).
MEAN = 1.5
STD = 0.5


def velocity(x, t, mean, std):
    """The velocity of Gaussian data: of its mean, and towards it as its variance shrinks."""
    variance = (1 - t) ** 2 * std**2 + t**2
    return (t - (1 - t) * std**2) / variance * (x - (1 - t) * mean) - mean


def guided_mean_velocity(params, x, t, r, guidance_scale, guidance_interval):
    """u from t to r of the velocity v + (w - 1) (v - v0) within the interval, and v outside.

    The path is followed in steps that are short, and so many that they end at the interval's ends.
    """
    del params
    steps = 1000
    t = t / 1000
    length = (t - r / 1000) / steps

    def field(x, time):
        v = velocity(x, time, MEAN, STD)
        low, high = guidance_interval.T
        scale = jnp.where((time >= low) & (time <= high), guidance_scale, 1.0)
        return v + (scale - 1) * (v - velocity(x, time, 0.0, 2.0))

    def midpoint(i, end):
        time = t - i * length
        half = end - 0.5 * length * field(end, time)
        return end - length * field(half, time - 0.5 * length)

    end = jax.lax.fori_loop(0, steps, midpoint, x)
    return (x - end) / (steps * length)


def of_shortcut(network):
    """A network that takes what shortcut models are, 1 - t and log2 of the number of steps."""

    def given(params, x, t, r, **cond):
        s = 1 - t / 1000
        k = -jnp.log2((t - r) / 1000)

        # Here begins the network, which returns the velocity towards the data.
        def towards_data(s, k):
            start = 1 - s
            return -network(params, x, 1000 * start, 1000 * (start - 2**-k), **cond)

        return -towards_data(s, k)

    return given


def moments(network, calls, scale, interval):
    """Mean and standard deviation of what standard noise becomes."""

    # Every velocity is linear in x, so that the samples of two noises tell both.
    ends = cmjax.sample(
        jax.random.key(0),
        embedded_scale(network, scale, interval),
        None,
        cmjax.FlowMapEulerDiscreteScheduler(),
        (2,),
        num_inference_steps=calls,
        init=jnp.array([-1.0, 1.0]),
    )
    return float(ends.mean()), float(ends[1] - ends[0]) / 2


@pytest.mark.parametrize(
    "network", [guided_mean_velocity, of_shortcut(guided_mean_velocity)]
)
@pytest.mark.parametrize("calls", [1, 2, 4])
def test_moments_of_the_data_in_any_number_of_calls(network, calls):
    # A scale of 1, and an interval without length, are no guidance.
    for scale, interval in ((1.0, (0.0, 1.0)), (5.0, (0.3331, 0.3331))):
        found = moments(network, calls, scale, interval)
        np.testing.assert_allclose(found, (MEAN, STD), atol=2e-3)


@pytest.mark.parametrize("calls", [1, 2, 4])
def test_moments_of_guided_data_in_any_number_of_calls(calls):
    # Guidance at all times moves away from the mean of all data; at few times, less.
    whole = moments(guided_mean_velocity, calls, 3.0, (0.0, 1.0))
    part = moments(guided_mean_velocity, calls, 3.0, (0.2, 0.6))
    assert whole[0] > part[0] + 0.05 and part[0] > MEAN + 0.05
    np.testing.assert_allclose(
        part, moments(guided_mean_velocity, 1, 3.0, (0.2, 0.6)), atol=5e-3
    )

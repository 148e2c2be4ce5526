"""Flow maps that start from noise of another scale than 1."""

import jax.numpy as jnp
import numpy as np

import cmjax

SCALED = cmjax.FlowMapEulerDiscreteScheduler(noise_scale=4.0)


def test_levels_are_those_of_the_scaled_noise():
    state = SCALED.set_timesteps(2)
    np.testing.assert_array_equal(state.sigmas, [4, 2, 0])
    np.testing.assert_array_equal(state.alphas, [0, 0.5, 1])
    np.testing.assert_array_equal(state.timesteps, [1000, 500])
    assert SCALED.init_noise_sigma == 4.0

    # The network is told times, which the scale does not change.
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

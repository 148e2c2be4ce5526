"""Truth: the samplers of Song et al. 2021 on a Gaussian, in closed form, and at a score of 0."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cmjax
from cmjax import testing
from cmjax.schedulers import ScoreSdeVeScheduler, ScoreSdeVpScheduler

KEY = jax.random.key(0)
MEAN, STD = 0.6, 0.3


def x0_of_gaussian(params, x, sigma):
    """E[x0 | x0 + sigma z = x] of normal data."""
    return MEAN + STD**2 / (STD**2 + sigma**2) * (x - MEAN)


def assert_moments(x, mean, variance):
    # Of samples [B, d], each of which is one independent value. Five standard errors each: one
    # false alarm in 9e5 tests of a correct sampler, were seeds not fixed.
    means = np.float64(x).mean(axis=1)
    squares = ((np.float64(x) - mean) ** 2).mean(axis=1)
    for values, expected in ((means, mean), (squares, variance)):
        assert abs(values.mean() - expected) < 5 * values.std() / len(values) ** 0.5


def run(scheduler, n, shape):
    network = testing.network_of(scheduler.parametrization, x0_of_gaussian)
    sample = functools.partial(cmjax.sample, apply_fn=network, params=None)
    run = jax.jit(
        lambda key: sample(key, scheduler=scheduler, shape=shape, num_inference_steps=n)
    )
    return np.asarray(run(KEY))


def ve_moments(scheduler, n, mean, variance):
    """Mean and variance after the predictor's n steps, from those at sigma_max."""
    low, high = scheduler.sigma_min, scheduler.sigma_max
    given = low * (high / low) ** np.linspace(1, scheduler.sampling_eps, n)
    levels = np.append(np.geomspace(high, low, n), 0)
    for i in range(n):
        # x' = x + G^2 s + G z with s = -(x - MEAN) / (STD^2 + sigma^2).
        square = levels[i] ** 2 - levels[i + 1] ** 2
        kept = 1 - square / (STD**2 + given[i] ** 2)
        mean = MEAN + kept * (mean - MEAN)
        variance = kept**2 * variance + (square if i < n - 1 else 0)
    return mean, variance


def vp_moments(scheduler, n, mean, variance):
    """Mean and variance after n steps of Euler and Maruyama, from those at t = 1."""
    for i, t in enumerate(np.linspace(1, scheduler.sampling_eps, n)):
        growth = scheduler.beta_max - scheduler.beta_min
        h = (scheduler.beta_min + growth * t) / n
        alpha = np.exp(-(scheduler.beta_min * t + growth * t**2 / 2) / 2)
        spread = alpha**2 * STD**2 + 1 - alpha**2

        # x' = x + h (x / 2 + s) + sqrt(h) z with s = -(x - alpha MEAN) / spread.
        kept = 1 + h / 2 - h / spread
        mean = kept * mean + h * alpha * MEAN / spread
        variance = kept**2 * variance + (h if i < n - 1 else 0)
    return mean, variance


PREDICTOR = ScoreSdeVeScheduler(sigma_min=0.001, sigma_max=10.0, correct_steps=0)
VP = ScoreSdeVpScheduler()


@pytest.mark.parametrize("n", [1, 20])
def test_samples_have_the_mean_and_variance_of_the_steps_in_the_paper(n):
    shape = (20_000, 2)
    mean, variance = ve_moments(PREDICTOR, n, 0.0, PREDICTOR.sigma_max**2)
    if n > 1:  # one step ends at the mean, but for rounding
        assert_moments(run(PREDICTOR, n, shape), mean, variance)
    mean, variance = vp_moments(VP, n, 0.0, 1.0)
    assert_moments(run(VP, n, shape), mean, variance)


def test_moments_converge_to_those_of_the_data_with_order_one():
    # From the exact ones at the start. The VE steps keep the mean; the VP ones, of length 1/n where
    # their times are (1 - sampling_eps) / (n - 1) apart, come within sampling_eps of it.
    variances = []
    means = []
    for n in (400, 800):
        start = PREDICTOR.sigma_max**2 + STD**2
        _, variance = ve_moments(PREDICTOR, n, MEAN, start)
        variances.append(variance - STD**2)
        to_zero = ScoreSdeVpScheduler(sampling_eps=1e-6)
        alpha, sigma = map(float, VP.parametrization.path(jnp.float32(999)))
        start = alpha * MEAN, alpha**2 * STD**2 + sigma**2
        mean, variance = vp_moments(to_zero, n, *start)
        means.append(mean - MEAN)
    assert variances[0] / variances[1] == pytest.approx(2, abs=0.2)
    assert means[0] / means[1] == pytest.approx(2, abs=0.2)
    assert abs(variance / STD**2 - 1) < 1e-3


@pytest.mark.parametrize(("d", "snr"), [(6, 0.15), (64, 0.15), (64, 0.3)])
def test_a_langevin_step_has_the_variance_of_its_closed_form(d, snr):
    """A step whose size is a ratio of norms, from samples of the noised data themselves.

    With v = STD^2 + sigma^2 and r = |x - MEAN|, h / v is a = 2 snr^2 |z|^2 v / r^2, and
    E r'^2 = E (1 - a)^2 r^2 + E 2 h |z|^2. In d dimensions E |z|^4 = d (d + 2) and
    E 1 / r^2 = 1 / (v (d - 2)).
    """
    scheduler = ScoreSdeVeScheduler(sigma_max=2.0, snr=snr)
    state = scheduler.set_timesteps(3)
    v = STD**2 + 2.0**2
    z = np.random.default_rng(d).standard_normal((20_000, d), np.float32)
    x = MEAN + v**0.5 * z
    _, (moved, _) = scheduler.step(KEY, state, jnp.asarray((MEAN - x) / v), jnp.asarray(x))

    # The marginal is nearly the same; in many dimensions it grows by 4 snr^4.
    grown = 4 * snr**2 * ((1 + snr**2) * (d + 2) / (d - 2) - 1)
    assert_moments(np.asarray(moved), MEAN, v * (1 + grown))
    assert grown < 0.1


def test_the_corrector_removes_a_part_of_the_error_of_the_predictor():
    scheduler = ScoreSdeVeScheduler(sigma_max=10.0, correct_steps=2)
    x = np.float64(run(scheduler, 60, (500, 64)))
    _, variance = ve_moments(scheduler, 60, 0.0, scheduler.sigma_max**2)
    error = variance / STD**2 - 1
    assert error == pytest.approx(0.126, abs=0.001)

    # Five standard errors: 5 sqrt(2 / 32,000) = 0.04 of the variance, one false alarm in 2e6.
    # The mean is 0.001 off, since runs start without it.
    assert abs(x.mean() - MEAN) < 5 * x.std() / x.size**0.5 + 0.001
    assert abs(x.var() / STD**2 - 1 - 0.083) < 0.04 < error - 0.083


def test_a_sample_takes_its_own_step_whatever_its_neighbours():
    scheduler = ScoreSdeVeScheduler()
    state = scheduler.set_timesteps(2)
    x, score, z = jax.random.normal(KEY, (3, 4, 5))
    score = score * jnp.array([1, 10, 0.1, 3])[:, None]

    # Scores of other sizes have other steps, which would show in the neighbours'.
    _, together = scheduler.advance(state, x, scheduler.denoise(state, score, x), z)
    for i in range(4):
        own = slice(i, i + 1)
        denoised = scheduler.denoise(state, score[own], x[own])
        _, alone = scheduler.advance(state, x[own], denoised, z[own])
        np.testing.assert_allclose(together[own], alone, rtol=1e-6)


@pytest.mark.parametrize("zero", ["score", "noise"])
def test_a_score_or_noise_of_zero_leaves_the_sample_with_finite_gradients(zero):
    scheduler = ScoreSdeVeScheduler()
    state = scheduler.set_timesteps(2)
    x = jnp.arange(6.0).reshape(2, 3)
    other = jnp.ones((2, 3))

    def moved(score, noise):
        denoised = scheduler.denoise(state, score, x)
        return scheduler.advance(state, x, denoised, noise)[1]

    arguments = (0 * other, other) if zero == "score" else (other, 0 * other)
    np.testing.assert_allclose(moved(*arguments), x, atol=1e-5)
    gradients = jax.grad(lambda *args: moved(*args).sum(), argnums=(0, 1))(*arguments)
    assert all(np.all(np.isfinite(gradient)) for gradient in gradients)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_the_corrector_takes_no_steps_by_the_rounding_of_16_bits(dtype):
    # At low levels x and x0 differ by less than a digit. By the norm of that, steps once led to
    # samples of size 10,000.
    scheduler = ScoreSdeVeScheduler(sigma_max=50.0)
    network = testing.network_of(scheduler.parametrization, x0_of_gaussian)
    options = {"num_inference_steps": 100, "dtype": dtype}
    x = cmjax.sample(KEY, network, None, scheduler, (4, 8, 8, 3), **options)
    x = np.asarray(x, np.float32)
    assert abs(x.mean() - MEAN) < 0.1
    assert x.std() < 1.5 * STD


def test_the_network_is_told_sigma_at_each_call_of_corrector_and_predictor():
    scheduler = ScoreSdeVeScheduler(correct_steps=2, sampling_eps=0.1)
    state = scheduler.set_timesteps(3)
    given = 0.01 * 134800 ** np.array([1, 0.55, 0.1])
    np.testing.assert_allclose(state.timesteps, np.repeat(given, 3), rtol=1e-5)
    np.testing.assert_array_equal(state.sigmas[:-1], state.timesteps)

    # The same times written down are the same run; x0 = x + sigma^2 s.
    again = scheduler.set_timesteps(timesteps=[1.0, 0.55, 0.1])
    for one, other in zip(jax.tree.leaves(again), jax.tree.leaves(state), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=1e-5)
    x = jnp.ones((1, 2))
    denoised = scheduler.denoise(state, 3 * x, x)
    np.testing.assert_allclose(denoised, 1 + 3 * given[0] ** 2 * np.ones((1, 2)), rtol=1e-5)


def test_vp_times_and_levels_are_inverse_to_each_other():
    for betas in ((0.1, 20.0), (3.0, 3.0), (9.0, 0.5)):
        path = ScoreSdeVpScheduler(beta_min=betas[0], beta_max=betas[1]).parametrization
        times = jnp.array([0.999, 30.0, 500.0, 999.0])
        alphas, sigmas = path.path(times)
        np.testing.assert_allclose(alphas**2 + sigmas**2, 1, rtol=1e-6)
        level = path.level(sigmas / alphas)
        for ours, given in zip(level, (times, alphas, sigmas), strict=True):
            np.testing.assert_allclose(ours, given, rtol=1e-5)


def test_explicit_vp_times_go_from_each_to_the_next():
    state = VP.set_timesteps(timesteps=[1.0, 0.4, 0.1])
    beta = 0.1 + 19.9 * np.array([1, 0.4])
    np.testing.assert_allclose(
        state.weights.noise[:2], np.sqrt(beta * [0.6, 0.3]), rtol=1e-5
    )


def test_the_flax_class_is_read_as_the_class_of_the_same_name():
    config = {"_class_name": "FlaxScoreSdeVeScheduler", "snr": 0.2, "correct_steps": 3}
    assert cmjax.scheduler_from_config(config) == ScoreSdeVeScheduler(
        snr=0.2, correct_steps=3
    )

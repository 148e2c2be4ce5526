"""RePaint: its calls, its jumps, and what is known, in distribution and exactly."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cmjax
from cmjax import RePaintScheduler, testing
from cmjax.constraints import inpaint, super_resolve

KEY = jax.random.key(0)


@pytest.mark.parametrize(
    ("n", "length", "times", "expected"),
    [
        # After the step from a multiple of the length, up by the length.
        (5, 2, 2, [4, 3, 2, 3, 2, 1, 0, 1, 0]),
        (3, 1, 3, [2, 1, 1, 1, 0, 0, 0]),
        (5, 2, 1, [4, 3, 2, 1, 0]),
        (4, 4, 9, [3, 2, 1, 0]),
    ],
)
def test_the_calls_are_those_of_figure_9(n, length, times, expected):
    options = {"jump_length": length, "jump_n_sample": times}
    scheduler = RePaintScheduler(num_train_timesteps=n, **options)
    state = scheduler.set_timesteps(n)
    assert state.timesteps.tolist() == expected
    assert state.num_steps == len(expected)

    # The level of each call is that of its time, and the run ends at x0.
    levels = scheduler.parametrization.path(state.timesteps)
    np.testing.assert_allclose((state.alphas[:-1], state.sigmas[:-1]), levels, rtol=1e-6)
    assert (state.alphas[-1], state.sigmas[-1]) == (1, 0)

    # Levels that are written down are jumped over likewise.
    listed = scheduler.set_timesteps(timesteps=np.arange(n)[::-1])
    np.testing.assert_array_equal(listed.timesteps, expected)


def test_without_jumps_and_mask_it_is_ddim():
    for eta in (0.0, 0.7):
        state = RePaintScheduler(eta=eta, jump_n_sample=1).set_timesteps(7)
        expected = cmjax.DDIMScheduler(eta=eta).set_timesteps(7)
        jax.tree.map(np.testing.assert_array_equal, state.weights, expected.weights)


# In distribution: pixels of a normal distribution, of which the first of two is known. The network
# is the exact denoiser, which is linear, so that samples are normal too.
MEAN = np.array([0.5, -0.2])
COVARIANCE = np.array([[0.6, 0.5], [0.5, 0.7]])
KNOWN = np.array([0.9, 0.0])
MASK = np.array([1.0, 0.0])
OPTIONS = {"num_train_timesteps": 12, "beta_start": 0.05, "beta_end": 0.3}
OPTIONS |= {"jump_length": 2, "jump_n_sample": 2, "clip_sample": False}
TRAINED = 1 - np.linspace(0.05, 0.3, 12)


def posterior(alpha, sigma):
    """The matrix and offset of E[x0 | x] for x = alpha x0 + sigma z, at one level."""
    gain = alpha * COVARIANCE
    gain = gain @ np.linalg.inv(alpha**2 * COVARIANCE + sigma**2 * np.eye(2))
    return gain, MEAN - alpha * gain @ MEAN


def algorithm_1(eta) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of the result, by the paper's loop with every noise on its own."""
    # Of each time; the last is that of time -1.
    signal = np.append(np.cumprod(TRAINED), 1.0)
    mean = np.zeros(2)
    covariance = np.eye(2)
    stride = 3

    # Of 4 levels, with one jump of 2 after the step from the lowest.
    for move in [3, 2, 1, 0, "jump", 1, 0]:
        if move == "jump":
            # From x0 over one training time after the other to that of level 1.
            for time in range(stride + 1):
                kept = TRAINED[time]
                mean = np.sqrt(kept) * mean
                covariance = kept * covariance + (1 - kept) * np.eye(2)
            continue

        # DDIM's step of the unknown part.
        here = signal[move * stride]
        below = signal[(move - 1) * stride if move else -1]
        alpha = np.sqrt(here)
        sigma = np.sqrt(1 - here)
        gain, offset = posterior(alpha, sigma)
        up = eta**2 * (1 - below) / (1 - here) * (1 - here / below)
        down = np.sqrt(1 - below - up) / sigma
        step = np.sqrt(below) * gain + down * (np.eye(2) - alpha * gain)
        shift = np.sqrt(below) * offset - down * alpha * offset
        mean = step @ mean + shift
        covariance = step @ covariance @ step.T + up * np.eye(2)

        # The known part, with noise of its own.
        rest = np.diag(1 - MASK)
        mean = rest @ mean + MASK * np.sqrt(below) * KNOWN
        covariance = rest @ covariance @ rest + (1 - below) * np.diag(MASK)
    return mean, covariance


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_samples_have_the_distribution_of_the_papers_loop(eta):
    scheduler = RePaintScheduler(eta=eta, **OPTIONS)

    def network(params, x, t):
        del params
        places = jnp.round(t).astype(jnp.int32)
        signal = jnp.asarray(np.cumprod(TRAINED), jnp.float32)[places][:, None]
        gains, offsets = zip(
            *(posterior(np.sqrt(a), np.sqrt(1 - a)) for a in np.cumprod(TRAINED)),
            strict=True,
        )
        gain = jnp.asarray(np.stack(gains), jnp.float32)[places]
        offset = jnp.asarray(np.stack(offsets), jnp.float32)[places]
        x0 = jnp.einsum("bij,bj->bi", gain, x) + offset
        return (x - jnp.sqrt(signal) * x0) / jnp.sqrt(1 - signal)

    n = 40_000
    constrain = inpaint(KNOWN[None].astype(np.float32), MASK[None])
    x = cmjax.sample(
        *(KEY, network, None, scheduler, (n, 2)),
        num_inference_steps=4,
        constrain=constrain,
    )
    x = np.float64(x)
    np.testing.assert_array_equal(x[:, 0], np.float32(KNOWN[0]))
    mean, covariance = algorithm_1(eta)

    # Six standard errors: a false alarm in 5e8 comparisons, of which there are four.
    variance = covariance[1, 1]
    assert abs(x[:, 1].mean() - mean[1]) < 6 * (variance / n) ** 0.5
    assert abs(x[:, 1].var() / variance - 1) < 6 * (2 / n) ** 0.5


def network(params, x, t):
    del params
    return jnp.sin(3 * x) + 1e-4 * t.reshape(-1, *[1] * (x.ndim - 1))


JUMPING = RePaintScheduler(jump_length=1, jump_n_sample=2, eta=0.5)


def test_averages_that_are_known_are_kept_too():
    low = jnp.linspace(-0.5, 0.5, 4).reshape(1, 2, 2, 1)
    constrain = super_resolve(low, 2)
    x = cmjax.sample(
        *(KEY, network, None, JUMPING, (3, 4, 4, 1)),
        num_inference_steps=3,
        constrain=constrain,
    )
    averages = np.asarray(x).reshape(3, 2, 2, 2, 2, 1).mean((2, 4))
    np.testing.assert_allclose(averages, np.tile(low, (3, 1, 1, 1)), atol=1e-5)


def test_denoised_is_the_estimate_with_what_is_known():
    image = np.linspace(-0.9, 0.9, 6, dtype=np.float32).reshape(2, 3)
    mask = np.array([[1, 0, 1], [0, 0, 1]], bool)
    _, trajectory = cmjax.sample(
        *(KEY, network, None, JUMPING, (2, 3)),
        num_inference_steps=3,
        constrain=inpaint(image, mask),
        return_trajectory=True,
    )
    denoised = np.asarray(trajectory.denoised)
    assert np.all(denoised[:, mask] == image[mask])
    assert np.abs(denoised).max() <= 1

    # The sample is known where the image is only at the end; before, it is noised.
    assert np.all(trajectory.prev_sample[-1][mask] == image[mask])
    assert not np.any(trajectory.prev_sample[0][mask] == image[mask])


def test_jumps_keep_the_contract():
    testing.assert_jit_equals_eager(JUMPING, 2)
    testing.assert_clean_end(JUMPING, 2)
    testing.assert_dtype_kept(JUMPING, 2)


def test_more_calls_than_a_million_are_refused():
    scheduler = dataclasses.replace(JUMPING, jump_n_sample=10_000)
    with pytest.raises(ValueError, match="jump_n_sample=10000 times 101 levels.*lower"):
        scheduler.set_timesteps(101)

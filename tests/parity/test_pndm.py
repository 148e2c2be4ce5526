"""Where PNDM and iPNDM differ from those of diffusers on purpose."""

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from cmjax.schedulers import IPNDMScheduler, PNDMScheduler

# diffusers hands tensors to NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize(
    ("options", "arrives"),
    [
        ({}, True),
        # diffusers goes N // n down, and half of it to the middle of a step.
        ({"timestep_spacing": "linspace"}, False),
        ({"timestep_spacing": "trailing"}, False),
        # It takes means of v, of samples and levels that differ.
        ({"prediction_type": "v_prediction"}, False),
    ],
)
def test_pndm_of_a_network_that_knows_the_noise_stays_on_the_path_where_diffusers_leaves_it(
    options, arrives, skip
):
    options = options | {"skip_prk_steps": skip}
    x0, noise = np.random.default_rng(0).standard_normal((2, 1, 3), np.float32)
    is_velocity = "prediction_type" in options

    def output(alpha, sigma):
        return alpha * noise - sigma * x0 if is_velocity else noise

    ours = PNDMScheduler(**options)
    state = ours.set_timesteps(7)
    alphas = np.asarray(state.alphas)[:, None, None]
    sigmas = np.asarray(state.sigmas)[:, None, None]
    x = jnp.asarray(alphas[0] * x0 + sigmas[0] * noise)
    state = ours.prepare(state, x)
    advance = jax.jit(ours.advance)
    for alpha, sigma in zip(alphas[:-1], sigmas[:-1], strict=True):
        np.testing.assert_allclose(x, alpha * x0 + sigma * noise, atol=1e-4)
        denoised = ours.denoise(state, jnp.asarray(output(alpha, sigma)), x)
        state, x = advance(state, x, denoised, x)
    end = alphas[-1] * x0 + sigmas[-1] * noise
    np.testing.assert_allclose(x, end, atol=1e-4)

    theirs = diffusers.PNDMScheduler(**options)
    theirs.set_timesteps(7)
    sample = torch.from_numpy(alphas[0] * x0 + sigmas[0] * noise)
    for t in theirs.timesteps:
        variance = float(theirs.alphas_cumprod[t])
        given = torch.from_numpy(np.float32(output(variance**0.5, (1 - variance) ** 0.5)))
        sample = theirs.step(given, t, sample).prev_sample
    assert np.allclose(sample, end, atol=1e-3) == arrives


def test_pndm_rounds_the_middle_of_an_odd_step_once_where_diffusers_is_one_off():
    # Of a step from 888 to 777, the network is given 832; diffusers goes to 833.
    theirs = diffusers.PNDMScheduler()
    theirs.set_timesteps(9)
    state = PNDMScheduler().set_timesteps(9)
    np.testing.assert_array_equal(state.timesteps, theirs.timesteps)
    zeros = torch.zeros(1, 3)
    ones = torch.ones(1, 3)
    moved = theirs.step(zeros, theirs.timesteps[0], ones).prev_sample
    variances = theirs.alphas_cumprod[[888, 833]].numpy()
    np.testing.assert_allclose(moved, np.full((1, 3), (variances[1] / variances[0]) ** 0.5))


@pytest.mark.parametrize(("n", "calls"), [(1, 1), (2, 5), (3, 9)])
def test_pndm_begins_short_runs_with_fewer_runge_kutta_steps_where_diffusers_fails(
    n, calls
):
    with pytest.raises(ValueError, match="broadcast"):
        diffusers.PNDMScheduler().set_timesteps(n)
    assert PNDMScheduler().set_timesteps(n).num_steps == calls


def test_ipndm_takes_x0_from_the_network_at_pure_noise_where_diffusers_takes_0():
    theirs = diffusers.IPNDMScheduler()
    theirs.set_timesteps(3)
    ours = IPNDMScheduler()
    state = ours.set_timesteps(3)
    x, v = np.random.default_rng(0).standard_normal((2, 1, 3), np.float32)
    moved = theirs.step(torch.from_numpy(v), 1.0, torch.from_numpy(x)).prev_sample
    alpha = np.asarray(state.alphas[1])
    sigma = np.asarray(state.sigmas[1])
    np.testing.assert_allclose(moved, sigma * x, rtol=1e-6)

    # At pure noise v = alpha z - sigma x0 is -x0.
    state = ours.prepare(state, jnp.asarray(x))
    denoised = ours.denoise(state, jnp.asarray(v), jnp.asarray(x))
    _, moved = ours.advance(state, jnp.asarray(x), denoised, jnp.asarray(x))
    np.testing.assert_allclose(moved, alpha * -v + sigma * x, rtol=1e-6, atol=1e-6)


def test_ipndm_of_given_levels_takes_their_number_where_diffusers_takes_any():
    levels = (0.9, 0.5, 0.0)
    theirs = diffusers.IPNDMScheduler(trained_betas=levels)
    theirs.set_timesteps(5)
    state = IPNDMScheduler(trained_betas=levels).set_timesteps(2)
    np.testing.assert_allclose(state.timesteps, theirs.timesteps, rtol=1e-6)
    np.testing.assert_allclose(state.sigmas, levels, rtol=1e-6)

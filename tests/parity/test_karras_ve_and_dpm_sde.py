"""Two samplers with noise against diffusers: a class of its, its pipeline, its Brownian tree.

Their steps are compared in test_samplers.py, where the levels of the one are mended and the tree of
the other is replaced; see tests/support/reference_schedulers.py.
"""

import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.pipelines.deprecated.stochastic_karras_ve import (
    pipeline_stochastic_karras_ve,
)
from diffusers.schedulers import scheduling_dpmsolver_sde as dpm_sde
from diffusers.schedulers.deprecated import scheduling_karras_ve as karras_ve

import cmjax
from cmjax.schedulers import DPMSolverSDEScheduler, KarrasVeScheduler

# diffusers hands tensors to NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")


def test_karras_ve_has_the_levels_of_the_paper_where_diffusers_takes_their_squares():
    theirs = karras_ve.KarrasVeScheduler()
    theirs.set_timesteps(4)
    ours = KarrasVeScheduler()
    state = ours.set_timesteps(4)
    starts = [100.0, *state.sigmas[1:-1:2]]  # ends of steps, not raised
    np.testing.assert_allclose(np.square(starts), theirs.schedule.flip(0), rtol=1e-5)

    # It starts from noise of 100 at a level that it takes for 100^2.
    assert theirs.init_noise_sigma == ours.init_noise_sigma == 100

    # Of a single step the only level is the highest.
    theirs.set_timesteps(1)
    assert theirs.schedule.isnan().all()
    np.testing.assert_array_equal(ours.set_timesteps(1).sigmas, [100, 0])


def test_karras_ve_samples_as_the_pipeline_of_diffusers():
    # The roots of the ends, which diffusers squares.
    theirs = karras_ve.KarrasVeScheduler(sigma_min=0.1**0.5, sigma_max=5.0, s_churn=0.0)
    ours = KarrasVeScheduler(sigma_min=0.1, sigma_max=25.0, s_churn=0.0)

    def score(x, sigma):
        """Of images in [0, 1], about as of data with mean 1/2 and variance 0.1."""
        return (0.5 + 0.1 * x**2 - x) / (sigma**2 + 0.1)

    def unet(x, sigma):
        return SimpleNamespace(sample=score(x, sigma))

    unet.config = SimpleNamespace(sample_size=4)
    pipeline = SimpleNamespace(
        unet=unet, scheduler=theirs, device="cpu", progress_bar=lambda times: times
    )
    run = pipeline_stochastic_karras_ve.KarrasVePipeline.__call__
    generator = torch.Generator().manual_seed(0)
    (expected,) = run(pipeline, 2, 5, generator, output_type="np", return_dict=False)

    def apply_fn(params, x, t):
        t = t[:, None, None, None]
        return t * score((x + 1) / 2, t)

    noise = torch.randn((2, 3, 4, 4), generator=torch.Generator().manual_seed(0))
    init = jnp.asarray(theirs.init_noise_sigma * noise.permute(0, 2, 3, 1).numpy())
    x = cmjax.sample(
        jax.random.key(0),
        apply_fn,
        None,
        ours,
        init.shape,
        num_inference_steps=5,
        init=init,
    )
    assert 0.1 < np.std(expected) and np.mean((0 < expected) & (expected < 1)) > 0.9
    np.testing.assert_allclose(jnp.clip(x / 2 + 0.5, 0, 1), expected, atol=1e-5)


def test_the_noises_of_a_step_correlate_as_those_of_diffusers_brownian_tree():
    theirs = dpm_sde.BrownianTreeNoiseSampler(torch.zeros(10_000), 0.01, 30.0, seed=0)
    ours = DPMSolverSDEScheduler()
    state = ours.set_timesteps(3)
    for call in (0, 2):
        start, middle, end = (float(sigma) for sigma in state.sigmas[call : call + 3])
        first = np.asarray(theirs(start, middle))
        second = np.asarray(theirs(start, end))
        shared = float(state.weights.last_noise[call + 1])
        total = math.hypot(shared, float(state.weights.noise[call + 1]))

        # Five standard errors of a mean of 10,000 products, whose deviation is at most sqrt(2).
        assert np.mean(first * second) == pytest.approx(shared / total, abs=0.07)
        assert np.mean(second**2) == pytest.approx(1, abs=0.07)

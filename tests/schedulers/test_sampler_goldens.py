"""cmjax against stored runs of the samplers of diffusers.

tests/golden/make_sampler_goldens.py made them; tests/parity/test_samplers.py makes them live. Where cmjax differs on
purpose, this file says so and asserts what is right instead.
"""

import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmjax.schedulers import SCHEDULERS, Weights, scheduler_from_config
from cmjax.schedulers.discrete_sigmas import DiscreteSigmasScheduler
from cmjax.schedulers.edm import EDMScheduler
from tests.schedulers.test_consistency_goldens import FLOAT32, RTOL, assert_close


def assert_case_reproduced(case):
    """Asserts that cmjax computes what diffusers did in `case`, from `make_sampler_goldens.reference_case`."""
    scheduler = scheduler_from_config({**case["saved_config"], **case["ours"]})
    assert scheduler == SCHEDULERS[case["name"]].from_config({**case["config"], **case["ours"]})
    state = scheduler.set_timesteps(**case["levels"])
    assert_levels_reproduced(scheduler, state, case)
    state = scheduler.prepare(state, jnp.asarray(case["sample"][0]))
    for row in range(len(case["sample"])):
        state = assert_step_reproduced(scheduler, state, case, row)
    assert state.step_index == state.num_steps


def assert_levels_reproduced(scheduler, state, case):
    name, sigmas, alphas, times = (
        case.get(key) for key in ("name", "sigmas", "alphas", "timesteps")
    )
    if sigmas is not None:
        assert_close(state.sigmas[: len(sigmas)], sigmas, sigmas, "sigmas")
    if alphas is not None:
        assert_close(state.alphas[: len(alphas)], alphas, alphas, "alphas")

    scale = np.abs(times)
    if name == "FlowMatchLCMScheduler":
        # diffusers shifts the levels of explicit timesteps, and tells the network of the timesteps without the shift.
        times = scale = sigmas[:-1] * scheduler.num_train_timesteps
    elif name.startswith("EDM"):
        scale = scale + 0.25  # times are log(sigma) / 4, and sigma is compared to 1e-5 of itself
    elif getattr(scheduler, "use_karras_sigmas", False) or getattr(
        scheduler, "use_exponential_sigmas", False
    ):
        scale = scale + 1  # interpolated, between 0 and 1 too
    if name == "KDPM2DiscreteScheduler" and scheduler.use_karras_sigmas:
        # diffusers rounds what the network is told of the levels, but not of those between.
        assert np.all(np.abs(state.timesteps - times)[::2] <= 0.5 + RTOL * scale[::2])
        times = np.where(np.arange(len(times)) % 2, times, state.timesteps)
    assert_close(state.timesteps, times, scale, "timesteps")

    if "init_noise_sigma" in case:
        # Of explicit levels below sigma_max diffusers starts as if at sigma_max.
        explicit = name == "EDMEulerScheduler" and "sigmas" in case["levels"]
        first = np.float64(np.hypot(sigmas[0], 1) if explicit else case["init_noise_sigma"])
        assert_close(scheduler.init_sample(state, jnp.ones(1)), first[None], first, "init_sample")


def assert_step_reproduced(scheduler, state, case, row):
    """Takes one step, from the sample that diffusers had; returns the state of the next one."""
    names = ("sample", "scaled", "model_output", "noise", "prev_sample", "noisy", "denoised")
    x, scaled, output, noise, after, noisy, x0 = (
        case[name][row] if name in case else None for name in names
    )
    name, last = case["name"], row == len(case["sample"]) - 1
    sample = jnp.asarray(x)
    assert_close(scheduler.scale_input(state, sample), scaled, np.abs(scaled), "scale_input")
    if noisy is not None and not (name == "KDPM2DiscreteScheduler" and row % 2):
        # On the way to the level between, diffusers noises to the one after it.
        ours = scheduler.add_noise(state, jnp.asarray(output), jnp.asarray(noise))
        assert_close(ours, noisy, np.abs(output) + state.sigma * np.abs(noise), "add_noise")

    _, c_skip, c_out = (np.float64(column[row]) for column in state.scalings)
    x0_scale = np.abs(c_skip * x) + np.abs(c_out * output)
    if name == "LCMScheduler":
        x0_scale = x0_scale + np.abs(x)  # of which it adds a share
    denoised = scheduler.denoise(state, jnp.asarray(output), sample)
    if x0 is not None:
        assert_close(scheduler.bound_last(denoised), x0, x0_scale, "denoise")

    eps_scale = (np.abs(x) + np.float64(state.alpha) * x0_scale) / np.float64(state.sigma)
    fresh = None if state.weights.noise is None else np.abs(noise)
    sizes = Weights(x0_scale, eps_scale, fresh, *jax.tree.map(np.abs, state.memory))
    columns = [np.float64(column[row]) for column in jax.tree.leaves(state.weights)]
    terms = zip(columns, jax.tree.leaves(sizes), strict=True)
    scale = sum(np.abs(weight) * size for weight, size in terms)
    if isinstance(scheduler, (EDMScheduler, DiscreteSigmasScheduler)):
        # diffusers adds to it what is to be removed: it is rounded.
        scale = scale + 8 * FLOAT32 / RTOL * np.abs(x)
    state, ours = scheduler.advance(state, sample, denoised, jnp.asarray(noise))
    if (
        name == "EDMDPMSolverMultistepScheduler"
        and last
        and scheduler.final_sigmas_type == "sigma_min"
    ):
        after = x  # already there; diffusers divides one rounding error by another: NaN, maybe
    assert_close(ours, after, scale, "advance")
    return state


def load_goldens():
    with np.load(Path(__file__).parents[1] / "golden" / "samplers.npz", allow_pickle=False) as file:
        cases = json.loads(str(file["index"]))["cases"]
        arrays = {name: file[name] for name in file.files}
    start = dict.fromkeys(arrays, 0)
    for case in cases:
        for name, shape in case.pop("shapes").items():
            end = start[name] + math.prod(shape)
            case[name], start[name] = arrays[name][start[name] : end].reshape(shape), end
    return cases


@pytest.mark.parametrize("case", load_goldens(), ids=lambda case: case["name"])
def test_every_quantity_equals_the_stored_one(case):
    assert_case_reproduced(case)


def algorithm_2(denoiser, sigmas, x, noise, s_churn, s_tmin, s_tmax, s_noise, corrected):
    """Karras et al. 2022, Algorithm 2, in float64; without the correction if so asked. Also returns the first x hat."""
    n, first = len(sigmas) - 1, None
    for i, (t, t_next) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        gamma = min(s_churn / n, math.sqrt(2) - 1) if s_tmin <= t <= s_tmax else 0
        t_hat = t + gamma * t
        x_hat = x + math.sqrt(t_hat**2 - t**2) * s_noise * noise[i]
        first = x_hat if first is None else first
        d = (x_hat - denoiser(x_hat, t_hat)) / t_hat
        x = x_hat + (t_next - t_hat) * d
        if corrected and t_next > 0:
            x = x_hat + (t_next - t_hat) * (d + (x - denoiser(x, t_next)) / t_next) / 2
    return first, x


# diffusers raises the level after the network was called, so that the paper is what churn is compared with.
@pytest.mark.parametrize(("name", "calls"), [("EDMEulerScheduler", 1), ("EDMHeunScheduler", 2)])
@settings(max_examples=50)
@given(data=st.data())
def test_churn_is_that_of_the_paper(name, calls, data):
    # Far less churn than 0.1 a step is not a float32 apart from none.
    options = {"s_churn": (0.5, 10), "s_tmin": (0, 1), "s_tmax": (0.5, 100), "s_noise": (0, 1.5)}
    options = {key: data.draw(st.floats(*ends)) for key, ends in options.items()}
    n = data.draw(st.sampled_from([1, 2, 3, 5]))
    sigmas = np.float64(SCHEDULERS["EDMEulerScheduler"]().set_timesteps(n).sigmas)
    x, *noise = np.random.default_rng(data.draw(st.integers(0, 99))).standard_normal(
        (calls * n + 2, 2, 3), np.float32
    )
    first, expected = algorithm_2(
        denoiser, sigmas, x * sigmas[0], noise[::calls], **options, corrected=calls == 2
    )

    scheduler = SCHEDULERS[name](**options)
    state, x = scheduler.set_timesteps(n), jnp.asarray(first, jnp.float32)
    state = scheduler.prepare(state, x)
    for call in range(state.num_steps):
        x0 = jnp.asarray(denoiser(np.float64(x), np.float64(state.sigma)), jnp.float32)
        state, x = scheduler.advance(state, x, x0, jnp.asarray(noise[call + 1]))
    assert_close(x, expected, 1 + np.abs(expected), "the end of the run")


def denoiser(x, sigma):
    return x / (1 + sigma**2) + 0.3 * np.sin(x / np.sqrt(1 + sigma**2))

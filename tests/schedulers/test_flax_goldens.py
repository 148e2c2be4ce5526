"""The eight Flax schedulers that diffusers has removed, as stored by make_flax_goldens.py.

Where a Flax class does what its own formulas do not say, the test of that case says what, and
compares with what they do say.
"""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from cmjax.schedulers import SCHEDULERS
from tests.support.goldens import (
    FOLDER,
    assert_close,
    assert_sampler_case_reproduced,
    load_goldens,
)

CASES = load_goldens("flax_schedulers")
with np.load(FOLDER / "flax_schedulers.npz", allow_pickle=False) as file:
    FAILURES = json.loads(str(file["index"]))["failures"]


def cases_about(what):
    """The stored cases that differ in this way."""
    found = [case for case in CASES if case["about"] == what]
    assert found
    return found


def only_case(what):
    """A copy of the one case that differs in this way, whose arrays may be replaced."""
    (case,) = cases_about(what)
    return dict(case)


def scheduler_of(case):
    return SCHEDULERS[case["name"]].from_config(case["config"] | case.get("ours", {}))


def column(values, ndim):
    """One number a step, f64[n], beside arrays of as many samples."""
    return np.float64(values).reshape(-1, *[1] * ndim)


def levels_of(case):
    """alpha and sigma where each step starts and where it ends, f64[n, 1, ...] each."""
    scheduler = scheduler_of(case)
    state = scheduler.set_timesteps(**case["levels"])

    # In float64: the squares of two levels may be almost the same.
    known = scheduler.parametrization.signal_variances()
    variances = known[case["timesteps"].astype(int)]
    end = 1.0 if state.sigmas[-1] == 0 else known[0]
    variances = column(np.append(variances, end), case["sample"].ndim - 1)
    alphas = variances**0.5
    sigmas = (1 - variances) ** 0.5
    return alphas[:-1], sigmas[:-1], alphas[1:], sigmas[1:]


def x0_by_noise(case, alpha, sigma):
    """x0 of a network that returns the noise."""
    return (case["sample"] - sigma * np.float64(case["model_output"])) / alpha


@pytest.mark.parametrize("case", cases_about("the same"), ids=lambda case: case["name"])
def test_every_quantity_equals_that_of_the_flax_class(case):
    assert_sampler_case_reproduced(case)


# Where they differ.


def test_ddim_adds_the_noise_of_eta_that_flax_leaves_out():
    case = only_case("eta")
    alpha, sigma, next_alpha, next_sigma = levels_of(case)

    # Equation 16; the last step has no noise.
    variance = (next_sigma / sigma) ** 2 * (1 - (alpha / next_alpha) ** 2)
    case["prev_sample"] = case["prev_sample"] + 0.7 * np.sqrt(variance) * case["noise"]
    assert_sampler_case_reproduced(case)


def posterior(case, x0, alpha, sigma, next_alpha, next_sigma):
    """The mean of Ho et al. 2020, equation 7, plus noise of the small variance."""
    share = alpha / next_alpha
    beta = 1 - share**2
    mean = next_alpha * beta * x0 + share * next_sigma**2 * case["sample"]
    return mean / sigma**2 + next_sigma / sigma * np.sqrt(beta) * case["noise"]


def test_ddpm_goes_to_the_next_time_of_the_run_where_flax_goes_one_training_time_down():
    case = only_case("one time down")
    levels = levels_of(case)
    x0 = np.clip(x0_by_noise(case, *levels[:2]), -1, 1)

    # Flax: from t to t - 1. Its last step is from time 0.
    variances = np.append(scheduler_of(case).parametrization.signal_variances(), 1.0)
    times = case["timesteps"].astype(int)
    here = column(variances[times], 3)
    below = column(variances[times - 1], 3)
    one_down = posterior(
        case, x0, here**0.5, (1 - here) ** 0.5, below**0.5, (1 - below) ** 0.5
    )
    assert_close(case["prev_sample"], one_down, 2 + np.abs(case["sample"]), "Flax")

    case["prev_sample"] = posterior(case, x0, *levels)
    assert_sampler_case_reproduced(case)


def test_ddpm_has_the_small_variance_where_flax_takes_the_root_of_its_logarithm():
    case = only_case("root of a logarithm")
    assert np.all(np.isnan(case["prev_sample"][:-1]))
    levels = levels_of(case)
    x0 = np.clip(x0_by_noise(case, *levels[:2]), -1, 1)
    case["prev_sample"] = posterior(case, x0, *levels)
    assert_sampler_case_reproduced(case)


def test_ddpm_takes_the_mean_of_logarithms_of_variances_where_flax_takes_that_of_variances():
    case = only_case("mean of variances")
    alpha, sigma, next_alpha, next_sigma = levels_of(case)
    large = 1 - (alpha / next_alpha) ** 2
    small = (next_sigma / sigma) ** 2 * large
    share = (case["model_output"][..., 2:] + 1) / 2

    # Nichol and Dhariwal 2021, equation 15. The last step has no noise.
    right = np.exp(share * np.log(large) + (1 - share) * np.log(np.maximum(small, 1e-20)))
    theirs = share * large + (1 - share) * small
    change = (np.sqrt(right) - np.sqrt(theirs)) * case["noise"]
    change[-1] = 0
    case["prev_sample"] = case["prev_sample"] + change
    assert_sampler_case_reproduced(case)


def test_dpm_solver_has_the_whole_second_derivative_where_flax_has_half_of_it():
    case = only_case("half of the second derivative")
    alpha, sigma, next_alpha, next_sigma = levels_of(case)
    lambdas = np.log(alpha / sigma)
    h = np.log(next_alpha / next_sigma) - lambdas

    # Of third order are the steps that have two before them and two after them.
    x0 = np.float64(case["denoised"])
    slopes = np.diff(x0, axis=0) / np.diff(lambdas, axis=0)
    second = 2 * np.diff(slopes, axis=0) / (lambdas[2:] - lambdas[:-2])
    missing = next_alpha * ((1 - np.exp(-h) - h) / h**2 + 0.5) / 2 * h**2
    prev_sample = np.float64(case["prev_sample"])
    prev_sample[2:-2] += missing[2:-2] * second[:-2]
    case["prev_sample"] = prev_sample
    assert_sampler_case_reproduced(case)


def test_dpm_solver_takes_the_quantile_where_flax_takes_a_hundredth_of_its_share():
    case = only_case("percent")
    alpha, sigma, next_alpha, next_sigma = levels_of(case)
    unbounded = x0_by_noise(case, alpha, sigma)
    quantile = np.quantile(np.abs(unbounded), 0.995, axis=(1, 2, 3), keepdims=True)
    scale = np.clip(quantile, 1, 4)
    x0 = np.clip(unbounded, -scale, scale) / scale

    # Flax takes a number below almost all others, and so the largest value that is allowed.
    assert_close(
        case["denoised"], np.clip(unbounded, -4, 4) / 4, 1 + np.abs(unbounded), "Flax"
    )
    change = (next_alpha - next_sigma * alpha / sigma) * (x0 - case["denoised"])
    case["prev_sample"] = case["prev_sample"] + change
    case["denoised"] = x0
    assert_sampler_case_reproduced(case)


def test_lms_tells_the_network_the_times_of_its_levels_which_flax_cuts_off():
    case = only_case("times cut off")
    times = np.linspace(999, 0, 8)
    np.testing.assert_array_equal(case["timesteps"], np.trunc(times))
    case["timesteps"] = times
    assert_sampler_case_reproduced(case)


def test_lms_moves_each_number_by_its_own_slope_where_flax_moves_all_by_that_of_the_last():
    case = only_case("together")
    moves = case["prev_sample"][0] - case["sample"][0]
    state = scheduler_of(case).set_timesteps(**case["levels"])
    length = np.float64(state.sigmas[1] - state.sigmas[0])
    slopes = np.float64(case["model_output"][0])
    scale = np.abs(case["sample"][0])
    assert_close(moves, length * np.broadcast_to(slopes[-1], moves.shape), scale, "Flax")

    ours = first_step(case)
    assert_close(ours - case["sample"][0], length * slopes, scale, "advance")


def first_step(case):
    """Where cmjax's first step ends, from the stored sample."""
    scheduler = scheduler_of(case)
    sample, output, noise = (
        jnp.asarray(case[key][0]) for key in ("sample", "model_output", "noise")
    )
    state = scheduler.prepare(scheduler.set_timesteps(**case["levels"]), sample)
    denoised = scheduler.denoise(state, output, sample)
    _, end = scheduler.advance(state, sample, denoised, noise)
    return np.float64(end)


def test_pndm_goes_to_the_time_that_it_tells_where_flax_goes_one_above_in_odd_strides():
    case = only_case("odd strides")
    path = scheduler_of(case).parametrization.path
    begin, middle = case["timesteps"][:2]
    x = case["sample"][0]
    eps = np.float64(case["model_output"][0])

    def transfer(end):
        alpha, sigma = (np.float64(values) for values in path(jnp.array([begin, end])))
        x0 = (x - sigma[0] * eps) / alpha[0]
        return alpha[1] * x0 + sigma[1] * eps, (np.abs(x) + np.abs(eps)) / alpha[0]

    assert_close(case["prev_sample"][0], *transfer(middle + 1), "Flax")
    assert_close(first_step(case), *transfer(middle), "advance")


def test_pndm_takes_means_of_the_noise_where_flax_takes_means_of_v():
    case = only_case("means of v")
    scheduler = SCHEDULERS["PNDMScheduler"].from_config(case["config"])
    state = scheduler.set_timesteps(**case["levels"])
    x0, noise = (jnp.asarray(case[key]) for key in ("x0", "noise"))
    x = state.alphas[0] * x0 + state.sigmas[0] * noise
    state = scheduler.prepare(state, x)
    for _ in range(state.num_steps):
        v = state.alpha * noise - state.sigma * x0
        denoised = scheduler.denoise(state, v, x)
        state, x = scheduler.advance(state, x, denoised, noise)

    # A network that knows the noise leads along the path.
    end = np.float64(state.alphas[-1] * x0 + state.sigmas[-1] * noise)
    assert_close(x, end, np.abs(end), "the end of the run", atol=1e-4)
    assert np.max(np.abs(case["prev_sample"] - end)) > 0.1


def test_score_sde_ve_has_norms_of_each_sample_where_flax_has_those_of_the_batch():
    case = only_case("norms of the batch")
    x, score, noise = (
        np.float64(case[key][0]) for key in ("sample", "model_output", "noise")
    )

    def corrected(axis):
        squares = [np.sum(array**2, axis=axis, keepdims=True) for array in (noise, score)]
        h = 2 * 0.15**2 * squares[0] / squares[1]
        return x + h * score + np.sqrt(2 * h) * noise

    scale = np.abs(x)
    assert_close(case["prev_sample"][0], corrected(None), scale, "Flax")
    assert_close(first_step(case), corrected((1, 2)), scale, "advance")


@pytest.mark.parametrize("case", cases_about("training"), ids=lambda case: case["name"])
def test_noise_and_velocity_at_training_times_equal_those_of_flax(case):
    parametrization = scheduler_of(case).parametrization
    original, noise = (jnp.asarray(case[key]) for key in ("original", "noise"))
    times = case["times"].astype(int)
    if case["name"] == "EulerDiscreteScheduler":
        # The levels of the state that FlaxEulerDiscrete creates are those of N - 1 - t.
        times = 999 - times
    ours = parametrization.add_noise(jnp.asarray(times), original, noise)
    scale = np.abs(original) + np.abs(noise)
    assert_close(ours, case["noisy"], scale + np.abs(case["noisy"]), "add_noise")
    if "velocity" in case:
        ours = parametrization.velocity(jnp.asarray(times), original, noise)
        assert_close(ours, case["velocity"], scale, "velocity")


@pytest.mark.parametrize(
    "failure", FAILURES, ids=lambda failure: f"{failure['name']}.{failure['method']}"
)
def test_what_ended_in_an_error_runs(failure):
    scheduler = scheduler_of(failure)
    x = jnp.ones((2, 2, 2))
    state = scheduler.prepare(scheduler.set_timesteps(failure["n"]), x)
    denoised = scheduler.denoise(state, x, x)
    _, end = scheduler.advance(state, x, denoised, x)
    assert np.all(np.isfinite(end))

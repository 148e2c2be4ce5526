"""What is compared with diffusers, and to what tolerance.

`tests/schedulers` compares with stored results, `tests/parity` with live ones, both by what is
here. The cases are those of tests/golden/make_goldens.py (the consistency scheduler) and of
tests/golden/make_sampler_goldens.py (the other samplers). Where cmjax differs on purpose, this file
says so and asserts what is right instead.
"""

import dataclasses
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cmjax
from cmjax.constraints import inpaint
from cmjax.parametrization import EDM
from cmjax.schedulers import SCHEDULERS, Weights, scheduler_from_config
from cmjax.schedulers.discrete_sigmas import DiscreteSigmasScheduler
from cmjax.schedulers.edm import EDMScheduler
from cmjax.schedulers.flow_match import FlowMatchScheduler
from cmjax.schedulers.grids import GRID_OPTIONS, grid_option
from cmjax.schedulers.karras_ve import KarrasVeScheduler
from cmjax.schedulers.log_snr import LogSNRScheduler
from cmjax.schedulers.weights import remember

FOLDER = Path(__file__).parents[1] / "golden"
RTOL = 1e-5
FLOAT32 = 2.0**-24  # largest relative error of rounding to float32

# With these begin the names of the samplers that are called between two levels.
BETWEEN = ("KDPM2", "DPMSolverSDE")


def load_goldens(name, kind=None):
    """Returns the cases of `tests/golden/<name>.npz`, each with its arrays.

    Args:
        name: of the file. It holds one flat array per quantity, all cases one after the other, and
            in `index` (JSON) the rest of each case and the shapes of its arrays.
        kind: key of the cases in `index`, where arrays are named `<kind>.<quantity>`.
    """
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as file:
        cases = json.loads(str(file["index"]))[kind or "cases"]
        prefix = f"{kind}." if kind else ""
        names = [key for key in file.files if key.startswith(prefix)]
        arrays = {key.removeprefix(prefix): file[key] for key in names}
    position = dict.fromkeys(arrays, 0)
    for case in cases:
        for quantity, shape in case.pop("shapes").items():
            begin = position[quantity]
            end = begin + math.prod(shape)
            case[quantity] = arrays[quantity][begin:end].reshape(shape)
            position[quantity] = end
    return cases


def assert_close(ours, theirs, scale, what, *, rtol=RTOL, atol=0.0):
    """Asserts |ours - theirs| <= rtol scale + atol.

    A sum is as accurate as its terms are large, not as it is itself: `scale` is the size of them.
    """
    ours = np.asarray(ours, np.float64)
    assert ours.shape == theirs.shape, (
        f"{what}: shape {ours.shape}, expected {theirs.shape}"
    )
    scale = np.broadcast_to(scale, theirs.shape)
    excess = np.abs(ours - theirs) - (rtol * scale + atol)
    worst = np.argmax(excess)
    assert np.all(excess <= 0), (
        f"{what}: {ours.flat[worst]} but diffusers has {theirs.flat[worst]}, "
        f"terms of {scale.flat[worst]}"
    )


# The consistency scheduler.


def assert_consistency_case_reproduced(case):
    """Asserts that cmjax computes what diffusers did, from `make_goldens.reference_case`."""
    scheduler = cmjax.CMStochasticIterativeScheduler(
        **case["config"], timestep_spacing=case["spacing"]
    )
    start = scheduler.set_timesteps(**case["levels"])
    as_saved = dataclasses.replace(scheduler, timestep_spacing="leading")
    assert cmjax.scheduler_from_config(case["saved_config"]) == as_saved
    assert scheduler.init_noise_sigma == case["init_noise_sigma"]
    assert_close(start.sigmas, case["sigmas"], case["sigmas"], "sigmas")
    _assert_times_close(start.timesteps, case["timesteps"], "timesteps")
    _assert_scalings_reproduced(scheduler, case)
    start = jax.tree.map(np.asarray, start)
    for row, step in enumerate(case["steps"]):
        state = start.replace(step_index=np.int32(step))
        _assert_consistency_step_reproduced(scheduler, state, case, row)


def _assert_times_close(ours, theirs, what):
    # A time is 250 log(sigma): rounding sigma to float32 moves it by 250 * 2^-24, however close to
    # 0 it is.
    assert_close(ours, theirs, np.abs(theirs), what, atol=250 * FLOAT32)


def _assert_scalings_reproduced(scheduler, case):
    sigma = jnp.asarray(case["probes"])
    _assert_times_close(scheduler.sigma_to_t(sigma), case["probe_timesteps"], "sigma_to_t")
    methods = {
        "scalings": scheduler.get_scalings,
        "boundary_scalings": scheduler.get_scalings_for_boundary_condition,
    }

    # sigma - sigma_min is a difference of the same two float32 numbers on both sides: there is no
    # allowance for cancellation.
    for name, method in methods.items():
        for ours, theirs, part in zip(
            method(sigma), case[name], ("c_skip", "c_out"), strict=True
        ):
            assert_close(ours, theirs, np.abs(theirs), f"{part} of {name}")


def _assert_consistency_step_reproduced(scheduler, state, case, row):
    sample = jnp.asarray(case["sample"][row])
    output = jnp.asarray(case["model_output"][row])
    noise = jnp.asarray(case["noise"][row])
    sigma = np.float64(state.sigma)
    sigma_next = np.float64(state.next_sigma)

    # What the network sees, and a noised image.
    scaled = case["scaled"][row]
    assert_close(
        scheduler.scale_input(state, sample), scaled, np.abs(scaled), "scale_input"
    )
    noisy_scale = np.abs(sample) + sigma * np.abs(noise)
    noisy = scheduler.add_noise(state, sample, noise)
    assert_close(noisy, case["noisy"][row], noisy_scale, "add_noise")

    # The x0 estimate.
    c_skip, c_out = map(
        np.float64, scheduler.get_scalings_for_boundary_condition(state.sigma)
    )
    x0_scale = np.abs(c_skip * sample) + np.abs(c_out * output)
    denoised = scheduler.denoise(state, output, sample)
    assert_close(denoised, case["denoised"][row], x0_scale, "denoise")

    # The next sample.
    next_state, ours = scheduler.advance(state, sample, denoised, noise)
    theirs = case["prev_sample"][row]
    assert next_state.step_index == state.step_index + 1
    assert np.all(np.isfinite(ours))
    if sigma_next == np.float32(scheduler.sigma_min):
        # Here diffusers adds noise times the root of a rounding error, NaN if that is negative.
        np.testing.assert_array_equal(ours, denoised)
    elif np.all(np.isfinite(theirs)):
        # Four float32 roundings meet in sigma'^2 - sigma_min^2; where its terms are close, the root
        # magnifies them.
        rounding = 4 * FLOAT32 * sigma_next**2
        std = math.sqrt(max(sigma_next**2 - scheduler.sigma_min**2, 0))
        magnified = rounding / max(std, math.sqrt(rounding))
        fresh = scheduler.s_noise * np.abs(noise)
        assert_close(
            ours, theirs, x0_scale + std * fresh, "advance", atol=magnified * fresh
        )


def assert_loop_reproduced(loop):
    """Asserts that cmjax ends where diffusers' loop did, at the published sums.

    `loop` is from `make_goldens.reference_loop`.
    """
    scheduler = cmjax.CMStochasticIterativeScheduler(
        **loop["config"], timestep_spacing="leading"
    )
    state = scheduler.set_timesteps(**loop["levels"])
    state = state.replace(step_index=jnp.int32(loop["start"]))
    x = jnp.asarray(loop["original"])
    if loop["start"]:
        x = scheduler.add_noise(state, x, jnp.asarray(loop["added_noise"]))
    for noise in loop["noise"]:
        t = state.timesteps[state.step_index]
        model_output = scheduler.scale_input(state, x) * t / (t + 1)
        denoised = scheduler.denoise(state, model_output, x)
        state, x = scheduler.advance(state, x, denoised, jnp.asarray(noise))
    assert state.step_index == state.num_steps
    assert_close(x, loop["result"], 1.0, "the result of the loop")  # results lie in [-1, 1]
    # The tolerances are those of diffusers.
    assert float(jnp.sum(jnp.abs(x))) == pytest.approx(loop["sum"], abs=1e-2)
    assert float(jnp.mean(jnp.abs(x))) == pytest.approx(loop["mean"], abs=1e-3)


# The other samplers.


def assert_sampler_case_reproduced(case, rtol=RTOL):
    """Asserts that cmjax computes what diffusers did, from `make_sampler_goldens.reference_case`.

    Args:
        case: the run of diffusers.
        rtol: error allowed, as a share of the size of the terms of each number.
    """
    scheduler = scheduler_from_config({**case["saved_config"], **case["ours"]})
    assert scheduler == SCHEDULERS[case["name"]].from_config(
        {**case["config"], **case["ours"]}
    )
    state = scheduler.set_timesteps(**case["levels"])
    _assert_levels_reproduced(scheduler, state, case, rtol)
    state = scheduler.prepare(state, jnp.asarray(case["sample"][0]))

    # NumPy takes numbers out of a table at once, JAX by three programs each.
    state = jax.tree.map(np.asarray, state)

    # What is remembered is as accurate as its terms were large, too: their sizes are carried along.
    sizes = state.memory
    for row in range(len(case["sample"])):
        state, sizes = _assert_step_reproduced(scheduler, state, sizes, case, row, rtol)
    assert state.step_index == state.num_steps


def _assert_levels_reproduced(scheduler, state, case, rtol):
    """Asserts that levels, times and the scale of the first sample are those of diffusers."""
    name = case["name"]
    for quantity in ("sigmas", "alphas"):
        theirs = case.get(quantity)
        if theirs is not None:
            ours = getattr(state, quantity)[: len(theirs)]
            assert_close(ours, theirs, theirs, quantity, rtol=rtol)

    times, scale, rounding = _expected_times(scheduler, state, case)
    if name.startswith("KDPM2") and scheduler.use_karras_sigmas:
        # diffusers rounds the times of the levels, but not of those between.
        assert np.all(np.abs(state.timesteps - times)[::2] <= 0.5 + rtol * scale[::2])
        is_between = np.arange(len(times)) % 2
        times = np.where(is_between, times, state.timesteps)
    assert_close(state.timesteps, times, scale, "timesteps", rtol=rtol, atol=rounding)

    if "init_noise_sigma" in case:
        first = np.float64(case["init_noise_sigma"])
        if name == "EDMEulerScheduler" and "sigmas" in case["levels"]:
            # Of explicit levels below sigma_max diffusers starts as if at sigma_max.
            first = np.float64(np.hypot(case["sigmas"][0], 1))
        start = scheduler.init_sample(state, jnp.ones(1))
        assert_close(start, first[None], first, "init_sample", rtol=rtol)


def _expected_times(scheduler, state, case):
    """The network's times, the size of their terms, f64[N] each, and what rounding may add."""
    times = case["timesteps"]
    scale = np.abs(times)
    if _is_log_linear(scheduler, case):
        # diffusers tells the network the times of other levels.
        ratios = scheduler.training.training_ratios()
        times = np.interp(np.log(state.sigmas[:-1]), np.log(ratios), np.arange(len(ratios)))
        return times, times + 1, _rounding_of_times(ratios)
    if isinstance(scheduler, FlowMatchScheduler) and "sigmas" in case:
        # diffusers shifts the levels of explicit timesteps, but tells the network the timesteps
        # without the shift.
        times = case["sigmas"][:-1] * scheduler.num_train_timesteps
        return times, times, 0.0
    if isinstance(scheduler, FlowMatchScheduler):
        # N (1 - sigma), a difference of terms up to N.
        return times, scale + scheduler.num_train_timesteps, 0.0
    if isinstance(scheduler.parametrization, EDM):
        # Times are log(sigma) / 4, and sigma is compared to 1e-5 of itself.
        return times, scale + 0.25, 0.0
    if isinstance(scheduler, LogSNRScheduler):
        # Whole numbers, which a rounding error may move by one where it is close to the next.
        ratios = state.sigmas[:-1] / state.alphas[:-1]
        twice = 2 * np.float64(scheduler.parametrization.time(ratios))
        is_close = np.abs(twice - np.round(twice)) < 0.02
        moved = np.where(is_close, np.clip(state.timesteps - times, -1, 1), 0)
        return times + moved, scale, 0.0
    if _has_levels_of_its_own(scheduler) or case["name"].startswith(BETWEEN):
        # Interpolated, between 0 and 1 too.
        ratios = scheduler.parametrization.training_ratios()
        return times, scale + 1, _rounding_of_times(ratios)
    return times, scale, 0.0


def _rounding_of_times(ratios):
    """The error of a few roundings of log(sigma), where training times lie closest in it."""
    gaps = np.diff(np.log(ratios))
    # Where the last times have no signal, their ratios are the same, and any of them is right.
    ties = np.sum(gaps == 0)
    return ties + 8 * FLOAT32 / np.min(gaps[gaps > 0])


def _is_log_linear(scheduler, case):
    """Whether the run has levels in equal steps of log sigma, and times of training."""
    if getattr(scheduler, "interpolation_type", "") != "log_linear":
        return False
    is_spaced = "num_inference_steps" in case["levels"] and not grid_option(scheduler)
    return is_spaced and scheduler.parametrization == scheduler.training


def _has_levels_of_its_own(scheduler):
    return any(getattr(scheduler, option, False) for option in GRID_OPTIONS)


def _langevin_terms(snr, score, noise):
    """The size of what a Langevin step adds, whose weights are not those of the table."""
    axes = tuple(range(1, score.ndim))
    squares = [
        np.sum(np.float64(array) ** 2, axis=axes, keepdims=True) for array in (noise, score)
    ]
    h = 2 * snr**2 * squares[0] / squares[1]
    return h * np.abs(score) + np.sqrt(2 * h) * np.abs(noise)


def _is_there(state):
    """Whether the last step ends at the level at which it starts."""
    ratios = np.float64(state.sigmas[-2:]) / np.float64(state.alphas[-2:])
    return np.isclose(*ratios, rtol=1e-5, atol=0)


def _entry(column, row):
    """One number of a table, in float64; JAX would run three programs to take it out."""
    return np.float64(np.asarray(column)[row])


def _assert_step_reproduced(scheduler, state, remembered, case, row, rtol):
    """Takes one step, from the sample that diffusers had.

    Returns the state of the next one, and the sizes of the terms of what it remembers; `remembered`
    is this of the state given.
    """
    name = case["name"]
    x = case["sample"][row]
    sample = jnp.asarray(x)
    model_output = case["model_output"][row]
    output = model_output[..., : x.shape[-1]]  # without a learned variance
    denoised, x0_scale = _assert_estimate_reproduced(scheduler, state, case, row, rtol)

    # A row of the table times the size of what each column weighs.
    alpha = _entry(state.alphas, row)
    eps_scale = (np.abs(x) + alpha * x0_scale) / _entry(state.sigmas, row)
    drawn = jnp.asarray(case["noise"][row])
    noise = scheduler.step_noise(state, jnp.asarray(model_output), drawn)
    fresh = None if state.weights.noise is None else np.abs(noise)
    sizes = Weights(x0_scale, eps_scale, fresh, *remembered)
    columns = [_entry(column, row) for column in jax.tree.leaves(state.weights)]
    terms = zip(columns, jax.tree.leaves(sizes), strict=True)
    scale = sum(np.abs(weight) * size for weight, size in terms)
    if name == "ScoreSdeVeScheduler" and (row + 1) % (scheduler.correct_steps + 1):
        scale = scale + _langevin_terms(scheduler.snr, output, case["noise"][row])
    allowance = 0.0
    if isinstance(scheduler, (EDMScheduler, DiscreteSigmasScheduler, KarrasVeScheduler)):
        # diffusers adds to the sample what is to be removed: it is rounded.
        allowance = 8 * FLOAT32 * np.abs(x)

    # What is right where diffusers is not.
    theirs = case["prev_sample"][row]
    is_last = row == len(case["sample"]) - 1
    if "DPMSolverMultistep" in name and is_last and _is_there(state):
        # diffusers divides one rounding error by another, NaN at times.
        theirs = x
    if name == "IPNDMScheduler" and state.sigma == 1:
        # At pure noise diffusers takes 0 for x0, whatever the network says.
        theirs = theirs + np.float64(state.alphas[row + 1]) * denoised

    # The next sample.
    if "mask" in case:
        # What is known is blended in with noise of the level reached.
        known = inpaint(case["original"][row], case["mask"][row])
        state, step = scheduler.advance_constrained(known, state, sample, denoised, noise)
        ours = step.prev_sample
        scale = scale + np.abs(case["original"][row]) + 2 * state.sigma * np.abs(noise)
    else:
        state, ours = scheduler.advance(state, sample, denoised, noise)
    assert_close(ours, theirs, scale, "advance", rtol=rtol, atol=allowance)
    remembered = remember(remembered, np.abs(x), x0_scale, eps_scale, np.abs(noise))
    return state, remembered


def _assert_estimate_reproduced(scheduler, state, case, row, rtol):
    """Asserts what the network sees and what follows from its output.

    Returns the x0 estimate, `[B, ...]`, and the size of its terms, f64`[B, ...]`.
    """
    name = case["name"]
    x = case["sample"][row]
    sample = jnp.asarray(x)
    model_output = case["model_output"][row]
    output = model_output[..., : x.shape[-1]]  # without a learned variance
    noise = case["noise"][row]

    # What the network sees.
    scaled = case["scaled"][row]
    ours = scheduler.scale_input(state, sample)
    assert_close(ours, scaled, np.abs(scaled), "scale_input", rtol=rtol)

    # A noised image. On the way to the level between two others, diffusers noises to the one after.
    is_between = name.startswith(BETWEEN) and row % 2
    if "noisy" in case and not is_between:
        ours = scheduler.add_noise(state, jnp.asarray(output), jnp.asarray(noise))
        scale = np.abs(output) + _entry(state.sigmas, row) * np.abs(noise)
        assert_close(ours, case["noisy"][row], scale, "add_noise", rtol=rtol)

    # The x0 estimate.
    _, c_skip, c_out = (_entry(column, row) for column in state.scalings)
    x0_scale = np.abs(c_skip * x) + np.abs(c_out * output)
    if name == "LCMScheduler":
        x0_scale = x0_scale + np.abs(x)  # of which it adds a share
    denoised = scheduler.denoise(state, jnp.asarray(model_output), sample)
    if "denoised" in case:
        ours = scheduler.bound_last(denoised)
        assert_close(ours, case["denoised"][row], x0_scale, "denoise", rtol=rtol)
    return denoised, x0_scale

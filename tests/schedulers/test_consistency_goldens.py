"""cmjax against stored results of diffusers; tests/golden/make_goldens.py made them, tests/parity makes them live."""

import dataclasses
import json
import math
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import cmjax

RTOL = 1e-5
FLOAT32 = 2.0**-24  # largest relative error of rounding to float32


def assert_close(ours, theirs, scale, what):
    """Asserts |ours - theirs| <= 1e-5 scale: a sum is as accurate as its terms are large, not as it is itself."""
    ours = np.asarray(ours, np.float64)
    assert ours.shape == theirs.shape, f"{what}: shape {ours.shape}, expected {theirs.shape}"
    error, scale = np.abs(ours - theirs), np.broadcast_to(scale, theirs.shape)
    worst = np.argmax(error - RTOL * scale)
    assert np.all(error <= RTOL * scale), (
        f"{what}: {ours.flat[worst]} but diffusers has {theirs.flat[worst]}, terms of {scale.flat[worst]}"
    )


def assert_case_reproduced(case):
    """Asserts that cmjax computes what diffusers did in `case`, from `make_goldens.reference_case`."""
    scheduler = cmjax.CMStochasticIterativeScheduler(
        **case["config"], timestep_spacing=case["spacing"]
    )
    start = scheduler.set_timesteps(**case["levels"])
    as_saved = dataclasses.replace(scheduler, timestep_spacing="leading")
    assert cmjax.scheduler_from_config(case["saved_config"]) == as_saved
    assert scheduler.init_noise_sigma == case["init_noise_sigma"]
    assert_close(start.sigmas, case["sigmas"], case["sigmas"], "sigmas")
    assert_times_close(start.timesteps, case["timesteps"], "timesteps")
    assert_scalings_reproduced(scheduler, case)
    for row, step in enumerate(case["steps"]):
        assert_step_reproduced(scheduler, start.replace(step_index=jnp.int32(step)), case, row)


def assert_times_close(ours, theirs, what):
    # A time is 250 log(sigma): rounding sigma to float32 moves it by 250 * 2^-24, however close to 0 it is.
    assert_close(ours, theirs, np.abs(theirs) + 250 * FLOAT32 / RTOL, what)


def assert_scalings_reproduced(scheduler, case):
    sigma = jnp.asarray(case["probes"])
    assert_times_close(scheduler.sigma_to_t(sigma), case["probe_timesteps"], "sigma_to_t")
    # sigma - sigma_min is a difference of the same two float32 numbers on both sides: no allowance for cancellation.
    for name, method in (
        ("scalings", scheduler.get_scalings),
        ("boundary_scalings", scheduler.get_scalings_for_boundary_condition),
    ):
        for ours, theirs, part in zip(method(sigma), case[name], ("c_skip", "c_out"), strict=True):
            assert_close(ours, theirs, np.abs(theirs), f"{part} of {name}")


def assert_step_reproduced(scheduler, state, case, row):
    x, output, noise = (
        jnp.asarray(case[name][row]) for name in ("sample", "model_output", "noise")
    )
    sigma, sigma_next = np.float64(state.sigma), np.float64(state.next_sigma)
    scaled, noisy, x0, after = (
        case[name][row] for name in ("scaled", "noisy", "denoised", "prev_sample")
    )

    assert_close(scheduler.scale_input(state, x), scaled, np.abs(scaled), "scale_input")
    assert_close(
        scheduler.add_noise(state, x, noise), noisy, np.abs(x) + sigma * np.abs(noise), "add_noise"
    )

    c_skip, c_out = map(np.float64, scheduler.get_scalings_for_boundary_condition(state.sigma))
    x0_scale = np.abs(c_skip * x) + np.abs(c_out * output)
    denoised = scheduler.denoise(state, output, x)
    assert_close(denoised, x0, x0_scale, "denoise")

    next_state, ours = scheduler.advance(state, x, denoised, noise)
    assert next_state.step_index == state.step_index + 1
    assert np.all(np.isfinite(ours))
    if sigma_next == np.float32(scheduler.sigma_min):
        # Here diffusers adds noise times the root of a rounding error, NaN if that is negative.
        np.testing.assert_array_equal(ours, denoised)
    elif np.all(np.isfinite(after)):
        # Four float32 roundings meet in sigma'^2 - sigma_min^2; where its terms are close, the root magnifies them.
        rounding = 4 * FLOAT32 * sigma_next**2
        std = math.sqrt(max(sigma_next**2 - scheduler.sigma_min**2, 0))
        std_scale = std + rounding / max(std, math.sqrt(rounding)) / RTOL
        assert_close(
            ours, after, x0_scale + scheduler.s_noise * std_scale * np.abs(noise), "advance"
        )


def assert_loop_reproduced(loop):
    """Asserts that cmjax ends where diffusers' loop did (`make_goldens.reference_loop`), at the published sums."""
    scheduler = cmjax.CMStochasticIterativeScheduler(**loop["config"], timestep_spacing="leading")
    state = scheduler.set_timesteps(**loop["levels"])
    state = state.replace(step_index=jnp.int32(loop["start"]))
    x = jnp.asarray(loop["original"])
    if loop["start"]:
        x = scheduler.add_noise(state, x, jnp.asarray(loop["added_noise"]))
    for noise in loop["noise"]:
        t = state.timesteps[state.step_index]
        model_output = scheduler.scale_input(state, x) * t / (t + 1)
        state, x = scheduler.advance(
            state, x, scheduler.denoise(state, model_output, x), jnp.asarray(noise)
        )
    assert state.step_index == state.num_steps
    assert_close(x, loop["result"], 1.0, "the result of the loop")  # results lie in [-1, 1]
    # The tolerances are those of diffusers.
    assert float(jnp.sum(jnp.abs(x))) == pytest.approx(loop["sum"], abs=1e-2)
    assert float(jnp.mean(jnp.abs(x))) == pytest.approx(loop["mean"], abs=1e-3)


def load_goldens(kind):
    with np.load(
        Path(__file__).parents[1] / "golden" / "consistency_scheduler.npz", allow_pickle=False
    ) as file:
        entries = json.loads(str(file["index"]))[kind]
        arrays = {
            name.removeprefix(f"{kind}."): file[name]
            for name in file.files
            if name.startswith(f"{kind}.")
        }
    start = dict.fromkeys(arrays, 0)
    for entry in entries:
        for name, shape in entry.pop("shapes").items():
            end = start[name] + math.prod(shape)
            entry[name], start[name] = arrays[name][start[name] : end].reshape(shape), end
    return entries


@pytest.mark.parametrize(
    "case", load_goldens("case"), ids=lambda case: f"{case['spacing']}-{case['levels']}"
)
def test_every_quantity_equals_the_stored_one(case):
    assert_case_reproduced(case)


@pytest.mark.parametrize("loop", load_goldens("loop"), ids=lambda loop: loop["name"])
def test_full_loops_end_at_the_published_sums(loop):
    assert_loop_reproduced(loop)

"""The other samplers against those of diffusers of the same names, on drawn configurations.

What is compared, and to what tolerance, is said once, in tests/support/goldens.py; how
configurations are drawn, in tests/support/sampler_cases.py. The rest of this file is what is left
out there, because cmjax differs on purpose.
"""

import dataclasses
import json
import math
import sys
from unittest import mock

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import cmjax
from cmjax.schedulers import SCHEDULERS, scheduler_from_config
from tests.golden.make_sampler_goldens import reference_case
from tests.support.draws import draws
from tests.support.goldens import assert_sampler_case_reproduced
from tests.support.reference_schedulers import reference_class
from tests.support.sampler_cases import FINE, FRESH, SAMPLERS, Draw, draw_case

# diffusers hands tensors to NumPy 2, and means to drop "dpmsolver".
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`algorithm_type:FutureWarning"),
]
EDM = [name for name in FINE if name.startswith("EDM")]
FLOW_MATCH = ["FlowMatchEulerDiscreteScheduler", "FlowMatchLCMScheduler"]
STABLE_DIFFUSION = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}


def drawn_case(name, data, fine=False):
    draw = Draw(
        pick=lambda options: data.draw(st.sampled_from(options)),
        between=lambda low, high: (
            low + (high - low) * data.draw(st.integers(0, 10**6)) / 10**6
        ),
        fine=fine,
    )
    return draw_case(name, draw)


@pytest.mark.parametrize("name", SAMPLERS)
@settings(max_examples=draws(100))
@given(data=st.data())
def test_every_quantity_equals_that_of_diffusers(name, data):
    assert_sampler_case_reproduced(reference_case(**drawn_case(name, data), seed=0))


@pytest.mark.parametrize("name", FINE)
@settings(max_examples=draws(50))
@given(data=st.data())
def test_every_quantity_equals_that_of_diffusers_in_float64_where_float32_is_not_enough(
    name, data
):
    assert_sampler_case_reproduced(
        reference_case(**drawn_case(name, data, fine=True), seed=0)
    )


@pytest.mark.parametrize("name", SAMPLERS)
@settings(max_examples=draws(20))
@given(data=st.data())
def test_diffusers_reads_our_config_and_returns_it(name, data):
    case = drawn_case(name, data, fine=data.draw(st.booleans()))
    ours = SCHEDULERS[name].from_config({**case["config"], **case["ours"]})
    written = json.loads(json.dumps(ours.to_config()))
    # diffusers' RePaint cannot read the betas of its own files: they are lists.
    with mock.patch.object(torch, "from_numpy", torch.as_tensor):
        theirs = reference_class(name).from_config(written)
    assert (
        scheduler_from_config({**json.loads(theirs.to_json_string()), **case["ours"]})
        == ours
    )


@pytest.mark.parametrize("name", SAMPLERS)
def test_defaults_are_those_of_diffusers(name):
    saved = json.loads(reference_class(name)().to_json_string())
    assert scheduler_from_config(saved) == SCHEDULERS[name]()


@pytest.mark.parametrize(
    "betas",
    [{"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}, STABLE_DIFFUSION],
)
@pytest.mark.parametrize("name", sorted(set(FINE) - {*EDM, *FRESH}))
def test_released_betas_differ_by_the_rounding_of_diffusers(name, betas):
    # Its float32 tables as they are. The lowest sigma of the linear schedule is 8.3e-5 off; steps
    # are 1e-5 off.
    ours = {"eta": 0.3} if name in ("TCDScheduler", "DDIMScheduler") else {}
    config = dict(betas)
    if name == "DPMSolverSinglestepScheduler":
        config["lower_order_final"] = True  # diffusers sets it where the last sigma is 0
    if name == "PNDMScheduler":
        config["skip_prk_steps"] = True  # else 2 steps are an error in diffusers
    for n in (2, 5, 20):
        levels = {"num_inference_steps": n}
        case = reference_case(
            name, config, ours, levels, shape=(2, 3, 1), double=False, seed=n
        )
        assert_sampler_case_reproduced(case, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("EDMEulerScheduler", {"sigma_schedule": "exponential"}),
        ("EDMDPMSolverMultistepScheduler", {"sigma_schedule": "exponential"}),
        ("DDIMScheduler", {"timestep_spacing": "linspace"}),
        ("HeunDiscreteScheduler", {}),
        ("KDPM2DiscreteScheduler", {}),
        ("EulerAncestralDiscreteScheduler", {}),
        ("EulerDiscreteScheduler", {}),
        ("DDPMScheduler", {"timestep_spacing": "linspace"}),
        ("KDPM2AncestralDiscreteScheduler", {}),
        ("DPMSolverSDEScheduler", {}),
    ],
)
def test_a_single_step_starts_at_the_highest_level_where_diffusers_starts_at_the_lowest(
    name, config
):
    theirs, ours = pair(name, **config)
    theirs.set_timesteps(2)
    highest = float(theirs.timesteps[0])
    theirs.set_timesteps(1)
    assert theirs.timesteps[0] < highest
    np.testing.assert_allclose(ours.set_timesteps(1).timesteps, [highest], rtol=1e-6)


def test_trailing_times_are_as_many_as_asked_for_where_diffusers_has_one_more():
    options = {"timestep_spacing": "trailing", "num_train_timesteps": 1100}
    theirs, ours = pair("DDIMScheduler", **options)
    theirs.set_timesteps(15)
    assert theirs.timesteps[-1] == -1
    np.testing.assert_array_equal(ours.set_timesteps(15).timesteps, theirs.timesteps[:15])


def test_log_linear_levels_are_told_as_they_are_where_diffusers_tells_spaced_times():
    theirs, ours = pair("EulerDiscreteScheduler", interpolation_type="log_linear")
    theirs.set_timesteps(4)
    state = ours.set_timesteps(4)
    np.testing.assert_allclose(state.sigmas, theirs.sigmas[:5], rtol=1e-4)
    np.testing.assert_allclose(theirs.timesteps, [999, 666, 333, 0])
    expected = ours.parametrization.time(state.sigmas[:-1])
    np.testing.assert_allclose(state.timesteps, expected, rtol=1e-6)

    # Explicit times are those of levels in cmjax; diffusers keeps the levels.
    theirs.set_timesteps(timesteps=[500, 100])
    assert theirs.sigmas[0] > 100
    assert ours.set_timesteps(timesteps=[500, 100]).sigmas[0] < 10


def test_continuous_log_linear_levels_are_as_many_as_asked_for_where_diffusers_has_one_more():
    options = {"timestep_type": "continuous", "prediction_type": "v_prediction"}
    theirs, ours = pair(
        "EulerDiscreteScheduler", interpolation_type="log_linear", **options
    )
    theirs.set_timesteps(4)
    assert len(theirs.timesteps) == 5
    assert ours.set_timesteps(4).num_steps == 4


def test_a_single_step_ends_at_sigma_min_where_diffusers_ends_at_sigma_max():
    theirs, ours = pair("EDMEulerScheduler", final_sigmas_type="sigma_min")
    theirs.set_timesteps(1)
    np.testing.assert_allclose(theirs.sigmas, [80, 80])
    np.testing.assert_allclose(ours.set_timesteps(1).sigmas, [80, 0.002], rtol=1e-6)


def test_exponential_levels_begin_at_the_last_time_where_diffusers_cuts_a_rounding_error_off():
    config = {**STABLE_DIFFUSION, "use_exponential_sigmas": True}
    theirs, ours = pair("DPMSolverMultistepScheduler", **config)
    state = ours.set_timesteps(20)
    theirs.set_timesteps(20)
    right = np.array(state.timesteps, int)
    their_times = theirs.timesteps.numpy()
    assert right[0] == 999
    assert their_times[0] == 998  # of 998.99999
    np.testing.assert_array_equal(their_times[1:], right[1:])

    # With the right time the whole loop agrees, without it does not.
    first = np.random.default_rng(0).standard_normal((2, 3), np.float32)
    x0 = cmjax.sample(
        jax.random.key(0),
        lambda params, x, t: jnp.sin(x + t[:, None] / 100),
        None,
        ours,
        first.shape,
        state=state,
        init=first,
    )
    ends = []
    for times in (right, their_times):
        theirs.set_timesteps(20)
        x = torch.from_numpy(first)
        for call, time in zip(theirs.timesteps, times, strict=True):
            x = theirs.step(torch.sin(x + float(time) / 100), call, x).prev_sample
        ends.append(np.abs(x.numpy() - x0).max() / np.abs(x0).max())
    assert ends[0] < 3e-5
    assert ends[1] > 1e-4


@pytest.mark.parametrize("spacing", ["linspace", "trailing", "leading"])
def test_ddim_lands_at_the_time_it_says_next(spacing):
    """A network that says which noise was added takes the sample along its own path.

    It arrives at the next time and no other.
    """
    theirs, ours = pair("DDIMScheduler", timestep_spacing=spacing, clip_sample=False)
    theirs.set_timesteps(7)
    state = ours.set_timesteps(7)
    x0, noise = np.random.default_rng(0).standard_normal((2, 1, 3), np.float32)
    x = ours.add_noise(state, jnp.asarray(x0), jnp.asarray(noise))
    start = torch.from_numpy(np.array(x))
    result = theirs.step(torch.from_numpy(noise), theirs.timesteps[0], start).prev_sample
    denoised = ours.denoise(state, jnp.asarray(noise), x)
    state, x = ours.advance(state, x, denoised, jnp.zeros_like(x))
    expected = ours.add_noise(state, jnp.asarray(x0), jnp.asarray(noise))
    np.testing.assert_allclose(x, expected, rtol=1e-4)
    # diffusers goes N // n = 142 down; the next time is 166 down of linspace, and 143 of trailing.
    assert np.allclose(result, expected, rtol=1e-4) == (spacing == "leading")


def test_ddim_replaces_a_sample_of_no_signal_where_diffusers_may_be_nan():
    options = {
        "rescale_betas_zero_snr": True,
        "prediction_type": "v_prediction",
        "timestep_spacing": "trailing",
    }
    theirs, ours = pair("DDIMScheduler", **options)
    state = dataclasses.replace(ours, eta=1.0).set_timesteps(3)
    first = [
        column[0] for column in (state.weights.x0, state.weights.eps, state.weights.noise)
    ]
    np.testing.assert_allclose(first, [state.alphas[1], 0, state.sigmas[1]], rtol=1e-6)

    # diffusers takes the root of 1 - alpha^2 - sigma^2, which is 0 here: it is NaN on CPUs that
    # round it to a negative number.
    theirs.set_timesteps(3)
    ones = torch.ones(1, 3)
    result = theirs.step(ones, 999, ones, eta=1.0, variance_noise=ones).prev_sample
    expected = float(state.sigmas[1] - state.alphas[1])
    assert result.isnan().all() or np.allclose(result, expected, atol=1e-3)


def test_lcm_refuses_noise_of_no_signal_where_diffusers_divides_by_zero():
    theirs, ours = pair("LCMScheduler", rescale_betas_zero_snr=True)
    theirs.set_timesteps(4)
    assert not torch.isfinite(
        theirs.step(torch.ones(1, 3), 999, torch.zeros(1, 3)).denoised
    ).any()
    with pytest.raises(ValueError, match="rescale_betas_zero_snr"):
        ours.set_timesteps(4)


def test_tcd_obeys_its_bounds_where_diffusers_does_not():
    theirs, ours = pair("TCDScheduler", clip_sample=True)
    theirs.set_timesteps(1)
    assert (
        theirs.step(torch.full((1, 3), 9.0), 999, torch.ones(1, 3)).prev_sample.abs().max()
        > 2
    )
    state = ours.set_timesteps(1)
    denoised = ours.denoise(state, jnp.full((1, 3), 9.0), jnp.ones((1, 3)))
    np.testing.assert_array_equal(denoised, -jnp.ones((1, 3)))


def test_tcd_has_its_grid_as_an_option_where_diffusers_has_it_as_a_flag():
    theirs, ours = pair("TCDScheduler", original_inference_steps=10)
    assert ours.set_timesteps(4).timesteps.tolist() == [999, 799, 499, 299]
    of_every_time = dataclasses.replace(ours, original_inference_steps=1000)
    every_time = of_every_time.set_timesteps(4).timesteps.tolist()
    for steps in (10, 500):
        theirs.set_timesteps(4, original_inference_steps=steps)
        assert theirs.timesteps.tolist() == every_time


def test_scm_takes_any_number_of_steps_at_angles_up_to_a_right_one():
    theirs, ours = pair("SCMScheduler")
    theirs.set_timesteps(2)
    assert theirs.timesteps[0] > math.pi / 2
    for n in (1, 2, 3, 9):
        assert 1.5707 < ours.set_timesteps(n).timesteps[0] < math.pi / 2
        if n != 2:
            with pytest.raises(ValueError, match="Intermediate timesteps"):
                theirs.set_timesteps(n)


@pytest.mark.parametrize("name", FLOW_MATCH)
def test_levels_are_shifted_once_and_both_conventions_of_diffusers_are_at_hand(name):
    theirs, ours = pair(name, shift=3.0)

    # Sigmas are before the shift; given again to a scheduler without one they stay.
    theirs.set_timesteps(sigmas=[1.0, 0.5])
    state = ours.set_timesteps(sigmas=[1.0, 0.5])
    np.testing.assert_allclose(state.sigmas, theirs.sigmas, rtol=1e-6)
    unshifted = dataclasses.replace(ours, shift=1.0)
    again = unshifted.set_timesteps(sigmas=state.sigmas[:-1])
    np.testing.assert_array_equal(again.sigmas, state.sigmas)

    # Of timesteps diffusers shifts the levels, and tells the network what was given.
    theirs.set_timesteps(timesteps=[1000.0, 500.0])
    state = ours.set_timesteps(timesteps=[1000.0, 500.0])
    np.testing.assert_allclose(state.sigmas, theirs.sigmas, rtol=1e-6)
    np.testing.assert_allclose(state.timesteps, [1000, 750], rtol=1e-6)
    np.testing.assert_allclose(theirs.timesteps, [1000, 500])
    as_given = state.replace(timesteps=jnp.array([1000.0, 500.0]))
    times = ours.time_inputs(as_given.replace(step_index=jnp.int32(1)))
    np.testing.assert_array_equal(times, [500])


@pytest.mark.parametrize("name", FLOW_MATCH)
def test_inverted_levels_noise_as_the_others_where_diffusers_takes_them_for_noise(name):
    theirs, ours = pair(name, invert_sigmas=True)
    theirs.set_timesteps(4)
    state = ours.set_timesteps(4)
    np.testing.assert_allclose(1 - state.sigmas, theirs.sigmas, rtol=1e-6)
    if name == "FlowMatchEulerDiscreteScheduler":
        assert theirs.scale_noise(torch.ones(1), theirs.timesteps[:1], torch.zeros(1)) == 1
    assert ours.add_noise(state, jnp.ones(1), jnp.zeros(1)) == 0


@pytest.mark.parametrize("name", ["DDPMScheduler", "DDIMScheduler", "LCMScheduler"])
def test_training_data_are_noised_as_in_diffusers(name):
    theirs, ours = pair(name)
    x0, noise = np.random.default_rng(0).standard_normal((2, 4, 3, 2), np.float32)
    times = np.array([0, 7, 500, 999])
    arrays = (torch.from_numpy(x0), torch.from_numpy(noise), torch.from_numpy(times))
    parametrization = ours.parametrization
    noisy = parametrization.add_noise(times, jnp.asarray(x0), jnp.asarray(noise))
    np.testing.assert_allclose(noisy, theirs.add_noise(*arrays), atol=2e-5)
    velocity = parametrization.velocity(times, jnp.asarray(x0), jnp.asarray(noise))
    np.testing.assert_allclose(velocity, theirs.get_velocity(*arrays), atol=2e-5)


def test_ddpm_has_the_large_variance_in_the_logarithm_where_diffusers_is_nan():
    theirs, ours = pair("DDPMScheduler", variance_type="fixed_large_log")
    theirs.set_timesteps(2)
    ones = torch.ones(1, 3)
    assert theirs.step(ones, theirs.timesteps[0], ones).prev_sample.isnan().all()
    large = dataclasses.replace(ours, variance_type="fixed_large")
    expected = large.set_timesteps(2).weights.noise
    np.testing.assert_array_equal(ours.set_timesteps(2).weights.noise, expected)


def test_ddim_inverse_needs_a_level_with_noise_for_x0_where_diffusers_is_not_finite():
    theirs = diffusers.DDIMInverseScheduler(prediction_type="sample", clip_sample=False)
    theirs.set_timesteps(2)
    ones = torch.ones(1, 3)
    assert not theirs.step(0 * ones, theirs.timesteps[0], ones).prev_sample.isfinite().any()
    with pytest.raises(ValueError, match="set_alpha_to_one=False"):
        SCHEDULERS["DDIMInverseScheduler"](prediction_type="sample")


def test_repaint_jumps_to_the_level_of_the_next_call_where_diffusers_goes_above_it():
    options = {"jump_length": 1, "jump_n_sample": 2}
    theirs = diffusers.RePaintScheduler(num_train_timesteps=20)
    ours = SCHEDULERS["RePaintScheduler"](num_train_timesteps=20, **options)
    theirs.set_timesteps(4, **options)
    assert theirs.timesteps.tolist() == [15, 10, 15, 10, 5, 10, 5, 0, 5, 0]
    state = ours.set_timesteps(4)
    assert state.timesteps.tolist() == [15, 10, 10, 5, 5, 0, 0]

    # From time 5 to time 10: what is left of a sample, where no noise is drawn.
    ones = torch.ones(1, 3)
    with mock.patch(
        "diffusers.schedulers.scheduling_repaint.randn_tensor",
        lambda *args, **kwargs: 0 * ones,
    ):
        left = float(theirs.undo_step(ones, 10)[0, 0])
    signal = theirs.alphas_cumprod**0.5
    assert left == pytest.approx(float(signal[14] / signal[9]))  # those above
    assert left < float(signal[10] / signal[5])

    # Of x0 and its noise, the second call's step leaves a sample of time 10 again.
    row = [float(column[1]) for column in (state.weights.x0, state.weights.eps)]
    assert row[0] == pytest.approx(float(signal[10]), rel=1e-5)
    variance = row[1] ** 2 + float(state.weights.noise[1]) ** 2
    assert variance == pytest.approx(float(1 - signal[10] ** 2), rel=1e-5)


def test_repaint_refuses_more_steps_than_times_where_diffusers_takes_fewer():
    theirs, ours = pair("RePaintScheduler", num_train_timesteps=4)
    theirs.set_timesteps(9)
    assert theirs.timesteps.tolist() == [3, 2, 1, 0]
    with pytest.raises(ValueError, match="from 1 to num_train_timesteps=4, got 9"):
        ours.set_timesteps(9)


def test_flow_match_lcm_leaves_a_single_step_where_diffusers_divides_by_zero():
    theirs, ours = pair("FlowMatchLCMScheduler", shift_terminal=0.1)
    with pytest.warns(RuntimeWarning, match="invalid value"):
        theirs.set_timesteps(1)
    assert math.isnan(theirs.sigmas[0])
    np.testing.assert_array_equal(ours.set_timesteps(1).sigmas, [1, 0])


def test_kdpm2_noises_to_the_level_that_the_network_is_told():
    theirs, ours = pair("KDPM2DiscreteScheduler")
    theirs.set_timesteps(3)
    zeros = torch.zeros(1, 3)
    ones = torch.ones(1, 3)
    noisy = theirs.add_noise(zeros, ones, theirs.timesteps[1][None])[0, 0]
    assert noisy == theirs.sigmas[2] < theirs.sigmas_interpol[1]
    state = ours.set_timesteps(3)
    state = state.replace(step_index=state.step_index + 1)
    ours = ours.add_noise(state, jnp.zeros((1, 3)), jnp.ones((1, 3)))[0, 0]
    assert ours == pytest.approx(float(theirs.sigmas_interpol[1]), rel=1e-4)


@pytest.mark.parametrize(
    "name", ["DPMSolverMultistepScheduler", "EDMDPMSolverMultistepScheduler"]
)
def test_third_order_integrates_a_parabola_where_diffusers_takes_half_of_it(name):
    options = {"solver_order": 3, "final_sigmas_type": "sigma_min"}
    if name == "DPMSolverMultistepScheduler":
        options["prediction_type"] = "sample"
    theirs, ours = pair(name, **options)
    theirs.set_timesteps(16)  # with fewer than 15 the last steps have lower orders
    state = ours.set_timesteps(16)
    alphas = np.float64(state.alphas)
    sigmas = np.float64(state.sigmas)
    lambdas = np.log(alphas / sigmas)

    # x0 is the square of the distance in lambda from the sixth call, whatever the sample is.
    x0 = [jnp.full((1, 1), (place - lambdas[5]) ** 2, jnp.float32) for place in lambdas]
    sample = jnp.ones((1, 1))
    state = ours.prepare(state, sample)
    for row in range(6):
        before = np.float64(sample)
        state, sample = ours.advance(state, sample, x0[row], sample)
        theirs.model_outputs = [
            torch.from_numpy(np.array(x0[k])) for k in (row - 2, row - 1, row)
        ]

    grid = np.linspace(lambdas[5], lambdas[6], 10_001)
    integral = np.trapezoid(np.exp(grid) * (grid - lambdas[5]) ** 2, grid)
    exact = sigmas[6] * (before / sigmas[5] + integral)
    np.testing.assert_allclose(sample, exact, rtol=2e-5)

    theirs._step_index = 5
    start = torch.from_numpy(before)
    result = theirs.multistep_dpm_solver_third_order_update(
        theirs.model_outputs, sample=start
    )
    half = sigmas[6] * (before / sigmas[5] + integral / 2)
    np.testing.assert_allclose(result, half, rtol=2e-5)


def test_unipc_ends_at_x0_where_the_other_b_of_diffusers_is_nan():
    theirs, ours = pair(
        "UniPCMultistepScheduler", solver_type="bh1", prediction_type="sample"
    )
    theirs.set_timesteps(1)
    ones = torch.ones(1, 3)
    assert theirs.step(ones, theirs.timesteps[0], ones).prev_sample.isnan().all()
    state = ours.prepare(ours.set_timesteps(1), jnp.ones((1, 3)))
    _, end = ours.advance(state, jnp.zeros((1, 3)), jnp.ones((1, 3)), jnp.zeros((1, 3)))
    np.testing.assert_array_equal(end, np.ones((1, 3)))


def test_inverse_flow_levels_rise_where_those_of_diffusers_fall():
    options = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    theirs, ours = pair("DPMSolverMultistepInverseScheduler", **options)
    theirs.set_timesteps(4)
    assert np.all(np.diff(theirs.sigmas[:-1]) < 0)
    state = ours.set_timesteps(4)
    assert np.all(np.diff(state.sigmas[:-1]) > 0)
    np.testing.assert_allclose(state.sigmas[-2::-1], theirs.sigmas[:-1], rtol=1e-5)


def test_a_single_ve_step_goes_down_from_the_level_told_where_diffusers_goes_from_the_lowest():
    theirs, ours = pair("ScoreSdeVeScheduler", sigma_max=10.0, correct_steps=0)
    theirs.set_timesteps(1)
    theirs.set_sigmas(1)
    ones = torch.ones(1, 3)
    _, moved = theirs.step_pred(ones, theirs.timesteps[0], ones, return_dict=False)
    assert theirs.sigmas[0] == pytest.approx(10)
    np.testing.assert_allclose(moved, 1 + 0.01**2 * ones, rtol=1e-6)
    state = ours.set_timesteps(1)
    x = jnp.ones((1, 3))
    _, end = ours.advance(state, x, ours.denoise(state, x, x), x)
    np.testing.assert_allclose(end, 1 + 10**2 * np.ones((1, 3)), rtol=1e-6)


def test_ve_steps_end_at_zero_where_diffusers_repeats_a_level_with_a_large_sampling_eps():
    theirs, ours = pair("ScoreSdeVeScheduler", sampling_eps=0.5, correct_steps=0)
    theirs.set_timesteps(3)
    theirs.set_sigmas(3)
    ones = torch.ones(1, 1)
    squares = [
        float(theirs.step_pred(ones, t, 0 * ones, return_dict=False)[1])
        for t in theirs.timesteps
    ]
    high, middle, low = np.geomspace(1348, 0.01, 3) ** 2
    repeated = [high - middle, middle - low, middle - low]
    np.testing.assert_allclose(squares, repeated, rtol=1e-5)
    state = ours.set_timesteps(3)
    np.testing.assert_allclose(state.weights.noise[:2] ** 2, repeated[:2], rtol=1e-5)

    # x' = x + sigma^2 s, the last from the lowest level, whatever the network is given.
    level = np.float64(state.sigmas[2])
    np.testing.assert_allclose(level - state.weights.eps[2], low / level, atol=1e-5 * level)


def test_a_langevin_step_is_of_each_sample_where_diffusers_takes_the_mean_of_the_batch():
    theirs, ours = pair("ScoreSdeVeScheduler")
    theirs.set_timesteps(2)
    theirs.set_sigmas(2)
    x, score, noise = np.random.default_rng(0).standard_normal((3, 2, 5), np.float32)
    score[1] *= 10
    module = sys.modules[type(theirs).__module__]

    def corrected(batch):
        given = [torch.from_numpy(array[batch]) for array in (score, x)]
        fresh = torch.from_numpy(noise[batch])
        with mock.patch.object(module, "randn_tensor", lambda *args, **kwargs: fresh):
            return theirs.step_correct(*given).prev_sample

    alone = torch.cat([corrected(slice(i, i + 1)) for i in range(2)])
    assert abs(corrected(slice(0, 2)) - alone).max() > 0.1

    # At a low level, since our sum is rounded by its size.
    state = ours.set_timesteps(sigmas=[1.0])
    sample = jnp.asarray(x)
    denoised = ours.denoise(state, jnp.asarray(score), sample)
    _, moved = ours.advance(state, sample, denoised, jnp.asarray(noise))
    np.testing.assert_allclose(moved, alone, rtol=1e-5, atol=1e-5)


def test_a_score_of_zero_leaves_the_sample_where_diffusers_is_nan():
    theirs, ours = pair("ScoreSdeVeScheduler")
    theirs.set_timesteps(2)
    ones = torch.ones(1, 3)
    assert theirs.step_correct(0 * ones, ones).prev_sample.isnan().all()
    x = jnp.ones((1, 3))
    state = ours.set_timesteps(2)
    _, moved = ours.advance(state, x, ours.denoise(state, 0 * x, x), x)
    np.testing.assert_array_equal(moved, x)


@pytest.mark.parametrize(
    "option",
    [
        {"solver_type": "bh2"},
        {"algorithm_type": "deis", "final_sigmas_type": "sigma_min"},
    ],
)
def test_solvers_of_other_classes_are_read_as_diffusers_reads_them(option):
    theirs = diffusers.EDMDPMSolverMultistepScheduler(**option)
    ours = SCHEDULERS["EDMDPMSolverMultistepScheduler"].from_config(option)
    for name in option:
        assert getattr(ours, name) == theirs.config[name]


def test_options_of_diffusers_that_are_missing_are_errors():
    with pytest.raises(ValueError, match="scale_factors"):
        SCHEDULERS["FlowMatchLCMScheduler"].from_config({"scale_factors": [0.5]})


def pair(name, **options):
    return reference_class(name)(**options), SCHEDULERS[name](**options)

"""The consistency scheduler: levels, config, and one clear line for every misuse."""

import dataclasses
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cmjax
from cmjax.schedulers.consistency import CMStochasticIterativeScheduler
from tests.support.draws import draws

SCHEDULER = CMStochasticIterativeScheduler()


def test_grid_is_karras_equation_5():
    grid = SCHEDULER.training_sigmas()
    assert grid[0] == pytest.approx(80)
    assert grid[-1] == pytest.approx(0.002)
    i = 22
    expected = (80 ** (1 / 7) + i / 39 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    assert grid[i] == pytest.approx(expected, rel=1e-12)


def test_state_of_the_papers_two_step_schedule():
    # ts=0,22,39 of openai/consistency_models; [22, 0] in diffusers.
    state = SCHEDULER.set_timesteps(timesteps=[22, 0])
    expected = [80, SCHEDULER.training_sigmas()[22], 0.002]
    np.testing.assert_allclose(state.sigmas, expected, rtol=1e-6)
    np.testing.assert_allclose(state.timesteps, 250 * np.log(state.sigmas[:2]), rtol=1e-6)
    chex.assert_type([state.sigmas, state.timesteps], jnp.float32)
    chex.assert_type(state.step_index, jnp.int32)
    assert state.step_index == 0
    assert state.num_steps == 2


@settings(max_examples=draws(30))  # each compiles a program of its own
@given(total=st.integers(1, 300), data=st.data())
def test_linspace_covers_the_grid_without_repeats(total, data):
    n = data.draw(st.integers(1, total))
    scheduler = CMStochasticIterativeScheduler(num_train_timesteps=total)
    # Eagerly every operation would be compiled for each new n.
    sigmas = np.asarray(jax.jit(lambda: scheduler.set_timesteps(n).sigmas)()[:-1])
    indices = np.round(np.arange(n) * total / n).astype(int)
    np.testing.assert_allclose(sigmas, scheduler.training_sigmas()[indices], rtol=1e-6)
    assert np.all(np.diff(sigmas) < 0) and sigmas[0] == pytest.approx(80)


def test_leading_is_the_integer_stride_that_truncates():
    leading = dataclasses.replace(SCHEDULER, timestep_spacing="leading")
    lowest = leading.set_timesteps(21).sigmas[-2]
    assert lowest == pytest.approx(SCHEDULER.training_sigmas()[20], rel=1e-6)
    assert SCHEDULER.set_timesteps(21).sigmas[-2] < 0.004  # linspace reaches the low levels


DRAWN_ENDS = np.random.default_rng(0).uniform(5e-4, 0.1, 50).tolist()


@pytest.mark.parametrize("sigma_min", [*DRAWN_ENDS, 0.002, 0.0021])
def test_the_last_step_adds_exactly_nothing_under_jit(sigma_min):
    # diffusers takes sqrt(sigma_min^2 - sigma_min^2) in float32: NaN for a quarter of these.
    scheduler = CMStochasticIterativeScheduler(sigma_min=sigma_min)
    advance = jax.jit(lambda state, x, z: scheduler.advance(state, x, x, z)[1])
    x = jnp.ones((2, 3))
    assert np.array_equal(advance(scheduler.set_timesteps(1), x, 1e6 * x), x)
    last = scheduler.set_timesteps(3).replace(step_index=jnp.int32(2))
    assert np.array_equal(advance(last, x, 1e6 * x), x)


def test_levels_may_be_differentiated_at_the_end():
    # The second step arrives at sigma_min, where the root of the noise's variance is 0.
    def f(sigmas):
        state = SCHEDULER.set_timesteps(sigmas=sigmas).replace(step_index=jnp.int32(1))
        ones = jnp.ones((1,))
        return SCHEDULER.advance(state, ones, ones, ones)[1].sum()

    gradient = jax.grad(f)(jnp.array([80.0, SCHEDULER.sigma_min]))
    assert np.all(np.isfinite(gradient))


def test_sigma_to_t_at_zero_is_the_logarithm_of_1e_44():
    assert SCHEDULER.sigma_to_t(jnp.float32(0)) == pytest.approx(
        250 * math.log(1e-44), rel=1e-6
    )


def test_scalings_take_any_shape():
    sigma = jnp.array([[0.002, 1.0], [80.0, 0.5]])
    for method in (SCHEDULER.get_scalings, SCHEDULER.get_scalings_for_boundary_condition):
        c_skip, c_out = method(sigma)
        chex.assert_equal_shape([c_skip, c_out, sigma])


def test_config_round_trip_and_diffusers_default():
    config = CMStochasticIterativeScheduler(
        sigma_data=0.3, num_train_timesteps=201
    ).to_config()
    assert config["_class_name"] == "CMStochasticIterativeScheduler"
    assert cmjax.scheduler_from_config(config).to_config() == config
    # What diffusers 0.42 writes.
    written = {
        "_class_name": "CMStochasticIterativeScheduler",
        "_diffusers_version": "0.42.1",
        "clip_denoised": True,
        "num_train_timesteps": 40,
        "rho": 7.0,
        "s_noise": 1.0,
        "sigma_data": 0.5,
        "sigma_max": 80.0,
        "sigma_min": 0.002,
    }
    leading = dataclasses.replace(SCHEDULER, timestep_spacing="leading")
    assert cmjax.scheduler_from_config(written) == leading


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "config has no '_class_name'.*from_config"),
        (
            {"_class_name": "CMStochasticIterativeSchedule"},
            "'CMStochasticIterativeScheduler'",
        ),
        (
            {"_class_name": "CMStochasticIterativeScheduler", "sigma_mim": 1.0},
            "'sigma_min'",
        ),
        (
            {"_class_name": "CMStochasticIterativeScheduler", "sigma_min": -1.0},
            "sigma_min.*-1.0",
        ),
    ],
)
def test_bad_configs(config, message):
    with pytest.raises(ValueError, match=message):
        cmjax.scheduler_from_config(config)


# The words are those of `check_options`, and asserted in tests/test_configs.py.
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_train_timesteps": 0}, "num_train_timesteps.*0"),
        ({"num_train_timesteps": 40.0}, "num_train_timesteps.*40.0"),
        ({"num_train_timesteps": 2**31 - 1}, "num_train_timesteps.* 1 to 1e\\+06"),
        ({"sigma_min": 80.0}, "sigma_min 80.0 must be less than sigma_max 80.0"),
        ({"sigma_min": 0.0}, "sigma_min.* 1e-18 to 1e\\+18, got 0.0"),
        ({"sigma_max": math.inf}, "sigma_max.* 1e-18 to 1e\\+18, got inf"),
        ({"sigma_data": -0.5}, "sigma_data.*-0.5"),
        ({"sigma_data": 1e308}, "sigma_data.* 1e-18 to 1e\\+18"),
        ({"rho": math.nan}, "rho.*nan"),
        ({"rho": 1e-5}, "rho.* 0.1 to 1000, got 1e-05"),
        ({"s_noise": -1.0}, "s_noise.*-1.0"),
        ({"s_noise": 1e308}, "s_noise.* 0 to 1e\\+18"),
        ({"timestep_spacing": "trailing"}, "timestep_spacing.*linspace.*leading.*trailing"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        CMStochasticIterativeScheduler(**options)


# Here the words of the errors of levels.py are asserted, each once; else arguments and values.
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one.*none"),
        (
            {"num_inference_steps": 2, "timesteps": [22, 0]},
            "num_inference_steps and timesteps",
        ),
        ({"timesteps": [22, 0], "sigmas": [80.0]}, "timesteps and sigmas"),
        ({"num_inference_steps": 0}, "num_inference_steps.*40, got 0"),
        (
            {"num_inference_steps": 41},
            "num_inference_steps must be an integer from 1 to num_train_timesteps=40, "
            "got 41.*sigmas",
        ),
        ({"num_inference_steps": 2.0}, "num_inference_steps.*2.0"),
        ({"num_inference_steps": True}, "num_inference_steps.*True"),
        ({"num_inference_steps": -1}, "num_inference_steps.*-1"),
        ({"timesteps": [0, 22]}, r"strictly descending.*\[0, 22\]"),
        ({"timesteps": [22, 22, 0]}, r"timesteps.*\[22, 22, 0\]"),
        ({"timesteps": [40, 0]}, r"timesteps must lie in \[0, 39\], got \[40, 0\]"),
        ({"timesteps": [22, -1]}, r"timesteps.*\[0, 39\]"),
        ({"timesteps": []}, "timesteps"),
        (
            {"timesteps": [22.0, 0.0]},
            r"integers.*by np.rint\(timesteps\).astype\(int\); sigmas",
        ),
        ({"timesteps": 22}, "timesteps.*list of integers"),
        ({"timesteps": [[22, 0]]}, "timesteps"),
        ({"sigmas": [1.0, 80.0]}, r"sigmas.*\[1.0, 80.0\]"),
        ({"sigmas": [80.0, 80.0]}, r"sigmas.*\[80.0, 80.0\]"),
        ({"sigmas": [80.0, math.nan]}, "sigmas.*nan"),
        ({"sigmas": [-1.0]}, r"sigmas.*\[0.002, 80\]"),
        ({"sigmas": [81.0]}, r"sigmas.*\[0.002, 80\]"),
        ({"sigmas": [80.0, 0.001]}, r"sigmas.*\[0.002, 80\]"),
        ({"sigmas": []}, "sigmas must hold at least one number"),
        ({"timesteps": []}, "timesteps must hold at least one number"),
        ({"sigmas": 80.0}, "sigmas.*list of numbers"),
    ],
)
def test_bad_levels(arguments, message):
    with pytest.raises(ValueError, match=message):
        SCHEDULER.set_timesteps(**arguments)


def test_misuse_of_steps():
    key = jax.random.key(0)
    x = jnp.ones((2, 3))
    state, output = SCHEDULER.step(key, SCHEDULER.set_timesteps(1), x, x)
    with pytest.raises(ValueError, match="step_index is 1 but the run has 1 steps"):
        SCHEDULER.step(key, state, x, output.prev_sample)
    state = SCHEDULER.set_timesteps(1)
    with pytest.raises(ValueError, match=r"model_output \(2, 6\), sample \(2, 3\)"):
        SCHEDULER.denoise(state, jnp.ones((2, 6)), x)
    with pytest.raises(ValueError, match=r"noise \(2, 1\)"):
        SCHEDULER.advance(state, x, x, jnp.ones((2, 1)))
    with pytest.raises(ValueError, match=r"noise \(3,\)"):
        SCHEDULER.add_noise(state, x, jnp.ones(3))
    with pytest.raises(ValueError, match="key"):
        SCHEDULER.step(0, state, x, x)


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"timesteps": jnp.ones(2)},
            r"state.sigmas and state.timesteps .* \[N\+1\] and \[N\]",
        ),
        ({"timesteps": [900, 500, 10]}, r"arrays .*, got .* and \[900, 500, 10\]"),
        ({"sigmas": None}, "arrays .* got None"),
        ({"step_index": jnp.zeros(2, jnp.int32)}, "state.step_index must be one integer"),
        ({"step_index": 0.0}, "state.step_index must be one integer, got 0.0"),
        ({"step_index": jax.random.key(0)}, "state.step_index must be one integer"),
    ],
)
def test_states_whose_fields_were_replaced_by_what_is_none(changes, message):
    state = SCHEDULER.set_timesteps(3).replace(**changes)
    with pytest.raises(ValueError, match=message):
        SCHEDULER.init(jax.random.key(0), state, (2, 3))


def test_a_network_gets_its_times_in_float32_whatever_they_were_replaced_by():
    state = SCHEDULER.set_timesteps(3).replace(timesteps=np.array([900, 500, 10]))

    def apply_fn(params, x, t):
        assert t.dtype == jnp.float32 and t.shape == (2,)
        return x

    SCHEDULER.predict(apply_fn, None, state, jnp.ones((2, 3)))


def test_scheduler_and_state_are_immutable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SCHEDULER.sigma_min = 1.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        SCHEDULER.set_timesteps(1).step_index = 3

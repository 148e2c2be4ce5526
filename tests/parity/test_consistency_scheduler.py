"""The consistency scheduler against diffusers' of the same name, on drawn configurations.

What is compared, and to what tolerance, is said once, in tests/support/goldens.py.
"""

import dataclasses
import inspect
import json
import math

import diffusers
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import cmjax
from tests.golden.make_goldens import LOOPS, reference_case, reference_loop
from tests.support.draws import draws
from tests.support.goldens import assert_consistency_case_reproduced, assert_loop_reproduced

configs = st.fixed_dictionaries(
    {
        # diffusers divides by num_train_timesteps - 1.
        "num_train_timesteps": st.integers(2, 60) | st.sampled_from([18, 40, 151, 201]),
        # At 0.0021, as at a quarter of all values, diffusers' last step is NaN.
        "sigma_min": st.sampled_from([0.002, 0.0021, 0.1, 1 / 3]) | st.floats(5e-4, 0.1),
        "sigma_max": st.sampled_from([80.0, 1.0]) | st.floats(0.5, 500),
        "sigma_data": st.floats(0.05, 2),
        "s_noise": st.floats(0, 1.5),
        "rho": st.floats(1, 12),
        "clip_denoised": st.booleans(),
    }
)
SHARED = list(inspect.signature(diffusers.CMStochasticIterativeScheduler).parameters)


def levels_of(way, total):
    """The arguments of set_timesteps that both libraries give the same meaning."""
    if way == "explicit":
        chosen = st.sets(st.integers(0, total - 1), min_size=1, max_size=8)
        return chosen.map(lambda indices: {"timesteps": sorted(indices, reverse=True)})
    counts = [n for n in range(1, total + 1) if way == "leading" or total % n == 0]
    return st.sampled_from(counts).map(lambda n: {"num_inference_steps": n})


@st.composite
def cases(draw, way):
    config = draw(configs)
    levels = draw(levels_of(way, config["num_train_timesteps"]))
    n = levels.get("num_inference_steps") or len(levels["timesteps"])
    steps = sorted({0, n // 2, max(n - 2, 0), n - 1})
    shape = draw(st.sampled_from([(2,), (2, 3), (1, 2, 2, 1)]))
    spacing = draw(st.sampled_from(["linspace", "leading"])) if way == "explicit" else way
    seed = draw(st.integers(0, 2**32 - 1))
    return reference_case(config, levels, spacing, steps, shape, seed)


@pytest.mark.parametrize("way", ["leading", "linspace", "explicit"])
@settings(max_examples=draws(200))
@given(data=st.data())
def test_every_quantity_equals_that_of_diffusers(way, data):
    assert_consistency_case_reproduced(data.draw(cases(way)))


@pytest.mark.parametrize("name", LOOPS)
def test_full_loops_end_at_the_published_sums(name):
    assert_loop_reproduced(reference_loop(**LOOPS[name]))


def test_last_step_is_clean_where_diffusers_is_nan():
    config = {"sigma_min": 0.0021, "sigma_max": 80.0, "clip_denoised": False}
    case = reference_case(config, {"timesteps": [22, 0]}, "leading", [1], (2, 3), seed=0)
    assert np.all(np.isnan(case["prev_sample"])) and np.all(np.isfinite(case["denoised"]))
    scheduler = cmjax.CMStochasticIterativeScheduler(**config)
    state = scheduler.set_timesteps(timesteps=[22, 0]).replace(step_index=jnp.int32(1))
    sample = jnp.asarray(case["sample"][0])
    denoised = scheduler.denoise(state, jnp.asarray(case["model_output"][0]), sample)
    _, ours = scheduler.advance(state, sample, denoised, jnp.asarray(case["noise"][0]))
    np.testing.assert_allclose(ours, case["denoised"][0], rtol=1e-5)


def test_one_training_level_divides_by_zero_in_diffusers_only():
    theirs = diffusers.CMStochasticIterativeScheduler(num_train_timesteps=1)
    with pytest.warns(RuntimeWarning, match="invalid value"):
        theirs.set_timesteps(1)
    assert math.isnan(theirs.sigmas[0])
    state = cmjax.CMStochasticIterativeScheduler(num_train_timesteps=1).set_timesteps(1)
    np.testing.assert_allclose(state.sigmas, [80, 0.002], rtol=1e-6)


@settings(max_examples=draws(30))
@given(config=configs)
@example(config={})  # the defaults
def test_reads_the_config_that_diffusers_saves(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("config")
    theirs = diffusers.CMStochasticIterativeScheduler(**config)
    theirs.save_config(folder)
    ours = cmjax.scheduler_from_config(
        json.loads((folder / "scheduler_config.json").read_text())
    )
    assert ours == cmjax.CMStochasticIterativeScheduler(
        **config, timestep_spacing="leading"
    )
    not_a_divisor = max(1, 2 * ours.num_train_timesteps // 3)
    assert_same_levels(ours, theirs, not_a_divisor)


@settings(max_examples=draws(30))
@given(config=configs, spacing=st.sampled_from(["linspace", "leading"]))
@example(config={}, spacing="linspace")
def test_diffusers_reads_our_config_and_returns_it(config, spacing):
    ours = cmjax.CMStochasticIterativeScheduler(**config, timestep_spacing=spacing)
    theirs = diffusers.CMStochasticIterativeScheduler.from_config(
        json.loads(json.dumps(ours.to_config()))
    )
    for name in SHARED:
        assert theirs.config[name] == getattr(ours, name), name

    # Its file keeps the option that its class does not have, and samples without it.
    returned = cmjax.scheduler_from_config(json.loads(theirs.to_json_string()))
    assert returned == dataclasses.replace(ours, timestep_spacing="leading")
    assert_same_levels(
        ours, theirs, ours.num_train_timesteps
    )  # n for which the spacings agree


def assert_same_levels(ours, theirs, n):
    theirs.set_timesteps(n)
    assert ours.init_noise_sigma == theirs.init_noise_sigma
    np.testing.assert_allclose(ours.set_timesteps(n).sigmas, theirs.sigmas, rtol=1e-5)

"""Categories: posteriors by enumeration, samples of known distributions, and misuse."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import cmjax
from cmjax import VQDiffusionScheduler, categorical

KEY = jax.random.key(0)

# At the last time nothing says what x0 was: a fifth is replaced, the others are masked.
ENDS = {"alpha_cum_start": 0.9, "alpha_cum_end": 0.0}
ENDS |= {"gamma_cum_start": 0.04, "gamma_cum_end": 0.8}
SCHEDULER = VQDiffusionScheduler(4, num_train_timesteps=8, **ENDS)
DATA = np.array([0.6, 0.3, 0.1])


def cumulative(scheduler, time):
    """The matrix q(x_t | x_0) of all classes, [from, to]; time -1 is x0 itself."""
    last = scheduler.num_train_timesteps - 1
    alpha, gamma = 1.0, 0.0
    if time >= 0:
        alpha, gamma = (
            np.interp(time, [0, last], (start, end))
            for start, end in (
                (scheduler.alpha_cum_start, scheduler.alpha_cum_end),
                (scheduler.gamma_cum_start, scheduler.gamma_cum_end),
            )
        )
    classes = scheduler.mask_class
    matrix = np.zeros((classes + 1, classes + 1))
    matrix[:classes, :classes] = (1 - alpha - gamma) / classes
    matrix[:classes, :classes] += alpha * np.eye(classes)
    matrix[:classes, classes] = gamma
    matrix[classes, classes] = 1
    return matrix


@pytest.mark.parametrize("times", [[7, 6, 5, 4, 3, 2, 1, 0], [7, 4, 1], [6, 2]])
def test_the_posterior_is_that_of_bayes_for_every_class_also_where_times_are_left_out(
    times,
):
    state = SCHEDULER.set_timesteps(timesteps=times)
    sample = jnp.array([[0, 1, 2, 3]])  # each class, and the mask
    log_x0 = jnp.log(jnp.asarray(np.tile(DATA, (1, 4, 1)), jnp.float32))
    for i, (here, below) in enumerate(zip(times, [*times[1:], -1], strict=True)):
        state = state.replace(step_index=jnp.int32(i))
        result = np.exp(SCHEDULER.log_posterior(state, sample, log_x0)[0])

        # q(x_t | x_s) is what takes q(x_s | x_0) to q(x_t | x_0).
        to_here = cumulative(SCHEDULER, here)
        to_below = cumulative(SCHEDULER, below)
        step = np.linalg.solve(to_below, to_here)
        for x_t in range(4):
            joint = to_below[:3] * step[:, x_t] / to_here[:3, x_t][:, None]
            expected = DATA @ joint
            np.testing.assert_allclose(result[x_t], expected, rtol=2e-5, atol=1e-6)
            assert expected.sum() == pytest.approx(1)


def exact_network(params, x, t):
    """log p(x0 | x_t) of entries that are independent draws of DATA."""
    del params
    matrices = np.stack([cumulative(SCHEDULER, time)[:3] for time in range(8)])
    likelihood = jnp.asarray(matrices, jnp.float32)[t.astype(int)[:, None], :, x]
    prior = jnp.asarray(DATA, jnp.float32).reshape(1, 1, 3)
    return jnp.log(likelihood * prior + 1e-30)


@pytest.mark.parametrize("n", [1, 3, 8])
def test_samples_have_the_distribution_of_the_data_for_any_number_of_steps(n):
    # Counts of 40,000 independent entries, at x0 and at each time on the way. A false alarm in a
    # million comparisons; there are 12.
    start = np.random.default_rng(0).choice(4, (2000, 20), p=[0.2 / 3] * 3 + [0.8])
    x, trajectory = categorical.sample(
        KEY,
        exact_network,
        None,
        SCHEDULER,
        (2000, 20),
        num_inference_steps=n,
        init=start,
        return_trajectory=True,
    )
    times = [*SCHEDULER.set_timesteps(n).timesteps.astype(int)[1:].tolist(), -1]
    np.testing.assert_array_equal(trajectory.prev_sample[-1], x)
    for time, sample in zip(times, trajectory.prev_sample, strict=True):
        expected = DATA @ cumulative(SCHEDULER, time)[:3] * x.size
        counts = np.bincount(np.ravel(sample), minlength=4)
        assert np.all(counts[expected == 0] == 0)
        possible = expected > 0
        assert stats.chisquare(counts[possible], expected[possible]).pvalue > 1e-6


def test_the_chi_square_test_notices_a_wrong_posterior():
    # As if more had been replaced than has.
    wrong = VQDiffusionScheduler(
        4, num_train_timesteps=8, **{**ENDS, "alpha_cum_start": 0.6}
    )
    x = categorical.sample(
        KEY, exact_network, None, wrong, (2000, 20), num_inference_steps=8
    )
    counts = np.bincount(np.ravel(x), minlength=4)
    assert counts[3] == 0
    assert stats.chisquare(counts[:3], DATA * x.size).pvalue < 1e-6


def network(params, x, t, shift=0.0):
    logits = jnp.cos(
        params * (x[..., None] + jnp.arange(3).reshape(1, 1, 3)).astype(jnp.float32)
    )
    return logits + (0.01 * t + shift).reshape(-1, *[1] * x.ndim)


def draw(key=KEY, batch=5, **options):
    return categorical.sample(
        key, network, jnp.float32(2), SCHEDULER, (batch, 6), timesteps=[7, 3, 1], **options
    )


def test_a_sample_depends_on_its_key_and_index_alone():
    whole = draw()
    assert whole.dtype == jnp.int32 and whole.shape == (5, 6)
    np.testing.assert_array_equal(draw(batch=2, first_index=3), whole[3:])
    np.testing.assert_array_equal(draw(cmjax.random.sample_keys(KEY, 5)), whole)
    np.testing.assert_array_equal(jax.jit(draw)(), whole)
    shift = {"shift": jnp.zeros(5)}
    np.testing.assert_array_equal(draw(cond=shift), whole)
    assert not np.array_equal(draw(jax.random.key(1)), whole)


def test_the_loop_by_hand_is_the_same():
    keys = cmjax.random.sample_keys(KEY, 5)
    state = jax.jit(lambda times: SCHEDULER.set_timesteps(timesteps=times))(
        np.array([7, 3, 1])
    )
    x = SCHEDULER.init(state, (5, 6))
    for _ in range(state.num_steps):
        output = SCHEDULER.predict(network, jnp.float32(2), state, x)
        state, (x, _) = SCHEDULER.step(keys, state, output, x)
    np.testing.assert_array_equal(x, draw())


def test_probabilities_of_0_are_no_nans_on_the_way():
    scheduler = VQDiffusionScheduler(
        4, 8, alpha_cum_start=1.0, alpha_cum_end=0.0, gamma_cum_start=0.0, gamma_cum_end=1.0
    )
    with jax.debug_nans(True), jax.disable_jit():
        x = categorical.sample(
            KEY, network, jnp.float32(2), scheduler, (2, 6), num_inference_steps=3
        )
    assert np.all((x >= 0) & (x < 3))


def test_known_entries_can_be_given_as_the_start():
    init = np.full((5, 6), 3)
    np.testing.assert_array_equal(draw(init=init), draw())
    low = np.zeros((5, 6), int)
    kept = VQDiffusionScheduler(
        4, 8, alpha_cum_start=1.0, alpha_cum_end=0.5, gamma_cum_start=0.0, gamma_cum_end=0.5
    )
    x = categorical.sample(
        KEY, network, jnp.float32(2), kept, (5, 6), num_inference_steps=4, init=low
    )
    np.testing.assert_array_equal(x, low)  # nothing is ever replaced


def test_other_times_and_keys_compile_nothing():
    traces = []
    counts = []

    def counted(params, x, t):
        traces.append(1)
        return network(params, x, t)

    for seed in range(3):
        times = [7, 4 - seed]
        key = jax.random.key(seed)
        categorical.sample(key, counted, jnp.float32(2), SCHEDULER, (2, 3), timesteps=times)
        counts.append(len(traces))
    assert counts[0] == counts[-1]


def test_the_config_is_that_of_diffusers_and_has_a_door_of_its_own():
    config = json.loads(json.dumps(SCHEDULER.to_config()))
    assert VQDiffusionScheduler.from_config(config) == SCHEDULER
    assert config["_class_name"] == "VQDiffusionScheduler"
    with pytest.raises(ValueError, match="samples categories.*VQDiffusionScheduler.from_c"):
        cmjax.scheduler_from_config(config)
    with pytest.raises(ValueError, match="needs the option 'num_vec_classes'"):
        VQDiffusionScheduler.from_config({"num_train_timesteps": 100})
    with pytest.raises(ValueError, match="no option 'gamma_start'"):
        VQDiffusionScheduler.from_config({"num_vec_classes": 4, "gamma_start": 0.1})


BAD_OPTIONS = [
    ({"num_vec_classes": 1}, "num_vec_classes must be .* 2 .*got 1"),
    ({"num_train_timesteps": 1}, "num_train_timesteps must be"),
    ({"alpha_cum_start": 0.0}, "alpha_cum_start must be"),
    ({"gamma_cum_end": 1.5}, "gamma_cum_end must be"),
    ({"alpha_cum_start": 0.1, "alpha_cum_end": 0.2}, "alpha_cum_end 0.2 must be at most"),
    ({"gamma_cum_start": 0.3, "gamma_cum_end": 0.2}, "gamma_cum_start 0.3 must be at most"),
    ({"alpha_cum_end": 0.5}, "alpha_cum_end 0.5 and gamma_cum_end 0.99999 must add up to"),
    (
        {"alpha_cum_start": 0.5, "alpha_cum_end": 0.4, "gamma_cum_end": 0.5},
        "gamma_cum_end 0.5 leaves more entries unmasked.*lower alpha_cum_end 0.4",
    ),
]


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS)
def test_schedules_of_negative_probabilities_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        VQDiffusionScheduler(**{"num_vec_classes": 5, **options})


BAD_CALLS = [
    ({}, "exactly one of num_inference_steps and timesteps, got none"),
    ({"num_inference_steps": 9}, "from 1 to num_train_timesteps=8, got 9"),
    ({"timesteps": [1, 7]}, "timesteps must be strictly descending"),
    ({"timesteps": [8]}, r"timesteps must lie in \[0, 7\]"),
    ({"init": np.zeros((2, 3))}, "init must hold integers, the classes, got float64"),
    ({"init": np.full((2, 3), 4)}, "init must hold classes from 0 to 3, the mask, got 4"),
    ({"init": np.zeros((2, 4), int)}, r"init has shape \(2, 4\), but shape=\(2, 3\)"),
    ({"shape": (0, 3)}, "shape must be"),
    ({"scheduler": cmjax.DDIMScheduler()}, "scheduler must be a VQDiffusionScheduler"),
    ({"apply_fn": lambda p, x, t: x}, "model_output must hold floats, got int32"),
    (
        {"apply_fn": lambda p, x, t: x.astype(float)},
        r"model_output must have shape \(2, 3, 3\)",
    ),
    ({"apply_fn": None}, "apply_fn must be a function"),
    ({"cond": {"y": [1, 2, 3]}}, "must have the leading axis of the batch, 2"),
]


@pytest.mark.parametrize(("change", "message"), BAD_CALLS)
def test_misuse_is_named_in_one_line(change, message):
    options = {"apply_fn": network, "params": jnp.float32(2), "scheduler": SCHEDULER}
    options |= {"shape": (2, 3)}
    if not {"num_inference_steps", "timesteps"} & change.keys() and change:
        options["num_inference_steps"] = 2
    with pytest.raises(ValueError) as error:
        categorical.sample(KEY, **{**options, **change})
    assert "\n" not in str(error.value)
    assert re.search(message, str(error.value)), str(error.value)


BAD_STEPS = [
    ({"state": cmjax.DDIMScheduler().set_timesteps(2)}, "state must be what set_timesteps"),
    ({"sample": jnp.zeros((2, 3))}, "sample must hold integers, the classes, got float32"),
    ({"denoised": jnp.zeros((2, 3, 4))}, r"denoised must have shape \(2, 3, 3\)"),
    ({"noise": jnp.zeros((2, 3, 3))}, r"noise must have shape \(2, 3, 4\)"),
]


@pytest.mark.parametrize(("change", "message"), BAD_STEPS)
def test_a_step_with_a_wrong_array_names_it(change, message):
    arguments = {"state": SCHEDULER.set_timesteps(2), "sample": jnp.zeros((2, 3), int)}
    arguments |= {"denoised": jnp.zeros((2, 3, 3)), "noise": jnp.zeros((2, 3, 4))}
    with pytest.raises(ValueError, match=message):
        SCHEDULER.advance(**{**arguments, **change})


def test_the_loop_of_floats_names_the_loop_of_categories():
    with pytest.raises(ValueError, match=r"categories; call cmjax\.categorical\.sample"):
        cmjax.sample(KEY, network, jnp.float32(2), SCHEDULER, (2, 3))


def test_a_state_of_other_options_is_refused():
    scheduler = cmjax.VQDiffusionScheduler(num_vec_classes=5)
    other = cmjax.VQDiffusionScheduler(num_vec_classes=5, alpha_cum_start=0.9)
    state = other.set_timesteps(2)
    x = other.init(state, (1, 3))
    logits = jnp.zeros((1, 3, 4))
    for door in (
        lambda: scheduler.init(state, (1, 3)),
        lambda: scheduler.predict(lambda p, x, t: logits, None, state, x),
        lambda: scheduler.denoise(state, logits, x),
        lambda: scheduler.step(jax.random.key(0), state, logits, x),
    ):
        with pytest.raises(ValueError, match="a VQ.* with alpha_cum_start=0.9, but"):
            door()

"""Editing: constraints hold exactly, the loop is Algorithm 4, Gaussian data end as they must."""

import gc
import json
import pickle
import weakref
from functools import partial
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import cmjax
from cmjax import editing, sampling, testing
from cmjax.editing import (
    colorize,
    compose,
    edit,
    inpaint,
    observe,
    posterior,
    strokes,
    super_resolve,
)
from cmjax.random import level_noise, sample_keys
from cmjax.schedulers import base
from cmjax.schedulers.levels import karras_sigmas

SCHEDULER = cmjax.CMStochasticIterativeScheduler()
UNCLIPPED = cmjax.CMStochasticIterativeScheduler(clip_denoised=False)
KEY = jax.random.key(0)
SHAPE = (4, 6, 6, 3)
IMAGE = np.random.default_rng(0).uniform(-1, 1, SHAPE).astype(np.float32)
KNOWN = np.random.default_rng(1).uniform(size=(4, 6, 6, 1)) < 0.5
WEIGHTS = np.array(editing.REC601, np.float32)

few = settings(max_examples=12)  # every new shape is compiled
seeds = st.integers(0, 2**31)
sizes = st.integers(1, 5)


def network(params, x, t):
    """Mixes neighbours, channels and the time; the goldens' network in JAX."""
    del params
    mixed = jnp.sin(jnp.roll(x, 1, -2) + jnp.roll(x, 1, -3))
    time = 5e-4 * t.reshape(-1, 1, 1, 1).astype(x.dtype)
    return (
        2 * jnp.tanh(x) + mixed + 0.5 * jnp.roll(x, 1, -1) + time
    )  # wide enough to be clipped


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def blocks(x, factor):
    """The averages of the blocks of one image `[H, W, C]`, in float64 and by loops."""
    x = np.asarray(x, np.float64)
    height, width, channels = x.shape
    averages = np.empty((height // factor, width // factor, channels))
    for i in range(height // factor):
        for j in range(width // factor):
            rows = slice(i * factor, (i + 1) * factor)
            columns = slice(j * factor, (j + 1) * factor)
            averages[i, j] = x[rows, columns].mean((0, 1))
    return averages


def constraints(samples=slice(None)):
    """One of each kind, with the data of some samples of `IMAGE`."""
    image = IMAGE[samples]
    known = KNOWN[samples]
    gray = (image @ WEIGHTS)[..., None]
    return {
        "inpaint": inpaint(image, known),
        "colorize": colorize(gray),
        "super_resolve": super_resolve(np.stack([blocks(one, 2) for one in image]), 2),
        "observe": observe(top_row, to_top_row, image[:, 0]),
        "compose": compose(colorize(gray), inpaint(image, known)),
    }


def top_row(x0):
    return x0[:, 0]


def to_top_row(row):
    return jnp.zeros((row.shape[0], 6, *row.shape[1:]), row.dtype).at[:, 0].set(row)


# Constraints.


@few
@given(
    shape=st.lists(sizes, min_size=1, max_size=5),
    seed=seeds,
    scale=st.sampled_from([1, 1e-3, 2]),
)
def test_inpainting_keeps_known_numbers_bit_for_bit_and_leaves_the_rest(shape, seed, scale):
    image = np.float32(scale) * normal(seed, *shape)
    known = normal(seed + 1, *shape) > 0
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
        x0 = normal(seed + 2, *shape).astype(dtype)
        apply = jax.jit(inpaint(image, known))
        result = np.asarray(apply(x0))
        assert result.dtype == dtype
        np.testing.assert_array_equal(result[known], image.astype(dtype)[known])
        np.testing.assert_array_equal(result[~known], x0[~known])
        np.testing.assert_array_equal(apply(result), result)


def test_soft_edges_mix_and_unknown_numbers_are_never_read():
    x0 = jnp.asarray(normal(0, 1, 4))
    known = np.array([1.0, 0.75, 0.25, 0.0])
    constraint = inpaint(np.array([2.0, -1.0, 0.5, np.nan]), known)
    expected = known * [2.0, -1.0, 0.5, 0.0] + (1 - known) * np.asarray(x0)
    np.testing.assert_allclose(constraint(x0), expected, rtol=1e-6)
    gradient = jax.grad(lambda x: constraint(x).sum())(x0)
    np.testing.assert_allclose(gradient, 1 - known[None], rtol=1e-6)


@few
@given(
    shape=st.lists(sizes, min_size=1, max_size=4),
    seed=seeds,
    channels=st.sampled_from([1, 3, 4]),
)
def test_colourising_keeps_the_luminance_and_moves_along_the_weights_alone(
    shape, seed, channels
):
    weights = editing.REC601 if channels == 3 else tuple(np.linspace(0.1, 0.6, channels))
    x0 = normal(seed, *shape, channels)
    gray = normal(seed + 1, *shape, 1)
    constraint = jax.jit(colorize(gray, weights))
    result = np.asarray(constraint(x0))
    luminance = np.asarray(result, np.float64) @ np.array(weights)
    # Rounding: each channel to 6e-8 of itself, and these numbers reach 10.
    np.testing.assert_allclose(luminance, gray[..., 0], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(constraint(result), result, rtol=1e-6, atol=1e-6)
    change = np.asarray(result - x0, np.float64)
    np.testing.assert_allclose(
        change[..., :1] / weights[0] * np.array(weights), change, atol=2e-5
    )


@few
@given(
    low=st.lists(sizes, min_size=1, max_size=3),
    factor=st.integers(1, 5),
    channels=st.integers(1, 3),
    seed=seeds,
)
def test_super_resolving_keeps_block_averages_of_signals_images_and_volumes(
    low, factor, channels, seed
):
    x0 = normal(seed, 2, *(factor * size for size in low), channels)
    measured = normal(seed + 1, 2, *low, channels)
    constraint = jax.jit(super_resolve(measured, factor))
    result = np.asarray(constraint(x0))
    change = np.asarray(result - x0, np.float64)
    if len(low) == 2:
        averages = np.stack([blocks(one, factor) for one in result])
        np.testing.assert_allclose(averages, measured, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(constraint(result), result, rtol=2e-6, atol=2e-6)
    for axis in range(
        1, len(low) + 1
    ):  # all pixels of a block move alike: detail is untouched
        firsts = np.take(change, range(0, change.shape[axis], factor), axis)
        np.testing.assert_allclose(np.repeat(firsts, factor, axis), change, atol=2e-6)


@pytest.mark.parametrize("size", [3, 9, 15])
def test_odd_sizes(size):
    image = normal(0, 1, size, 3 * size, 2)
    result = super_resolve(blocks(image[0], 3), 3)(jnp.asarray(normal(1, *image.shape)))
    np.testing.assert_allclose(
        blocks(result[0], 3), blocks(image[0], 3), rtol=1e-6, atol=1e-6
    )


@few
@given(dims=st.integers(2, 9), seed=seeds, data=st.data())
def test_any_operator_with_orthogonal_rows(dims, seed, data):
    rows = data.draw(st.integers(1, dims))
    matrix = 3 * np.linalg.qr(normal(seed, dims, rows))[0].T
    measured = normal(seed + 1, rows)
    made = observe(
        jax.tree_util.Partial(lambda a, x: x @ a.T, jnp.asarray(matrix)),
        jax.tree_util.Partial(lambda a, y: y @ a / 9, jnp.asarray(matrix)),
        measured[None],  # without the batch it could be one number for each of 4 samples
    )
    constraint = jax.jit(made)
    x0 = normal(seed + 2, 4, dims)
    result = np.asarray(constraint(x0))
    np.testing.assert_allclose(result @ matrix.T, np.tile(measured, (4, 1)), atol=1e-5)
    np.testing.assert_allclose(constraint(result), result, atol=1e-5)
    null = np.eye(dims) - matrix.T @ matrix / 9  # what A does not see stays
    np.testing.assert_allclose(result @ null, x0 @ null, atol=1e-5)


def test_composed_constraints_hold_together_where_they_do_not_conflict_and_else_the_last():
    gray = (IMAGE @ WEIGHTS)[..., None]
    known = np.broadcast_to(KNOWN, SHAPE)
    x0 = jnp.asarray(normal(0, *SHAPE))
    result = np.asarray(compose(colorize(gray), inpaint(IMAGE, KNOWN))(x0))
    np.testing.assert_array_equal(result[known], IMAGE[known])
    np.testing.assert_allclose(result @ WEIGHTS, gray[..., 0], atol=1e-6)
    brighter = np.asarray(compose(inpaint(IMAGE, KNOWN), colorize(gray + 0.5))(x0))
    np.testing.assert_allclose(brighter @ WEIGHTS, gray[..., 0] + 0.5, atol=1e-6)


@pytest.mark.parametrize("name", constraints())
def test_one_trace_serves_any_data_of_a_shape_and_vmap_equals_a_loop(name):
    traces = []

    @jax.jit
    def apply(constraint, x0):
        traces.append(1)
        return constraint(x0)

    both = [constraints(slice(i, i + 2))[name] for i in (0, 2)]
    x0 = jnp.asarray(normal(0, 2, *SHAPE[1:]))
    expected = [constraint(x0) for constraint in both]
    for constraint, one in zip(both, expected, strict=True):
        np.testing.assert_allclose(apply(constraint, x0), one, atol=1e-6)
    assert len(traces) == 1

    def stack(*leaves):
        return jnp.stack(leaves)

    mapped = jax.vmap(lambda constraint: constraint(x0))(jax.tree.map(stack, *both))
    np.testing.assert_allclose(mapped, jnp.stack(expected), atol=1e-6)


@pytest.mark.parametrize("name", constraints())
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float64])
def test_constraints_keep_the_dtype(name, dtype):
    with jax.enable_x64(dtype == jnp.float64):
        constraint = constraints()[name]
        x0 = jnp.asarray(IMAGE[::-1].copy()).astype(dtype)
        result = constraint(x0)
        chex.assert_type(result, dtype)
        full = constraint(x0.astype(jnp.float32))
        atol = 0.02 if x0.itemsize == 2 else 1e-6
        np.testing.assert_allclose(np.asarray(result, np.float32), full, atol=atol)


# The loop.


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_edited_samples_end_in_exactly_what_is_known_even_outside_the_clipped_range(
    wrap, dtype
):
    image = 1.5 * IMAGE
    options = {"num_inference_steps": 3, "dtype": dtype}

    def run():
        return edit(KEY, network, None, SCHEDULER, inpaint(image, KNOWN), SHAPE, **options)

    result = wrap(run)()
    chex.assert_type(result, dtype)
    known = np.broadcast_to(KNOWN, SHAPE)
    expected = np.asarray(jnp.asarray(image).astype(dtype))
    np.testing.assert_array_equal(np.asarray(result)[known], expected[known])
    assert np.abs(np.asarray(result, np.float32))[~known].max() <= 1


def test_measurements_hold_at_the_end_of_a_jitted_run():
    made = constraints()

    @jax.jit
    def run(constraint):
        return edit(KEY, network, None, SCHEDULER, constraint, SHAPE, num_inference_steps=3)

    coloured = np.asarray(run(made["colorize"]))
    np.testing.assert_allclose(coloured @ WEIGHTS, IMAGE @ WEIGHTS, atol=1e-6)
    averages = [blocks(one, 2) for one in run(made["super_resolve"])]
    np.testing.assert_allclose(averages, [blocks(one, 2) for one in IMAGE], atol=1e-6)


def load_goldens():
    with np.load(
        Path(__file__).parent / "golden" / "editing.npz", allow_pickle=False
    ) as file:
        for case in json.loads(str(file["index"])):
            names = [*case["given"], "noise", "result"]
            yield {**case, **{name: file[f"{case['name']}.{name}"] for name in names}}


@pytest.mark.parametrize("case", list(load_goldens()), ids=lambda case: case["name"])
def test_goldens_of_algorithm_4(case, monkeypatch):
    noise = jnp.asarray(case["noise"])
    for module in (strokes, base):  # noise is given: random generators do not matter
        monkeypatch.setattr(
            module, "level_noise", lambda keys, level, shape, dtype: noise[level]
        )
    if case["task"] == "inpaint":
        constraint = inpaint(case["image"], case["known"])
    elif case["task"] == "colorize":
        constraint = colorize(case["gray"], weights=(0.2989, 0.5870, 0.1140))
    else:
        constraint = super_resolve(case["low"], 2)

    # All levels are the default.
    total = case["num_train_timesteps"]
    steps = case["ts"][:-1]
    levels = {"timesteps": steps[::-1]} if len(steps) < total - 1 else {}
    scheduler = cmjax.CMStochasticIterativeScheduler(num_train_timesteps=total)
    result = edit(KEY, network, None, scheduler, constraint, case["result"].shape, **levels)
    np.testing.assert_allclose(result, case["result"], atol=2e-5)


def test_editing_starts_from_what_is_known_plus_noise_of_the_first_level():
    def skip_only(params, x, t):
        return jnp.zeros_like(x)

    image = IMAGE[..., 0, 0]  # signals [B, T]
    known = np.arange(6) < 3
    constraint = inpaint(image, known)
    result = edit(
        KEY, skip_only, None, UNCLIPPED, constraint, (4, 6), sigmas=[2.0], first_index=3
    )
    start = known * image + 2 * level_noise(sample_keys(KEY, 4, 3), 0, (4, 6))
    c_skip, _ = UNCLIPPED.get_scalings_for_boundary_condition(jnp.float32(2))
    np.testing.assert_allclose(result[:, 3:], (c_skip * start)[:, 3:], rtol=1e-6)
    chex.assert_trees_all_equal(result[:, :3], jnp.asarray(image[:, :3]))


@pytest.mark.parametrize("name", constraints())
def test_a_sample_depends_on_its_own_data_and_index_alone(name):
    @partial(jax.jit, static_argnums=(0, 1))
    def run(start, stop):
        constraint = constraints(slice(start, stop))[name]
        shape = (stop - start, *SHAPE[1:])
        options = {"num_inference_steps": 3, "first_index": start}
        return edit(KEY, network, None, SCHEDULER, constraint, shape, **options)

    np.testing.assert_allclose(run(1, 4), run(0, 4)[1:], rtol=1e-5, atol=1e-5)


def test_one_compilation_of_a_run_serves_any_mask_image_and_level():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def edit_any_mask_image_and_level(constraint, sigmas):
        return edit(KEY, network, None, SCHEDULER, constraint, SHAPE, sigmas=sigmas)

    for seed, levels in enumerate([[80.0, 2.0], [5.0, 1.0]]):
        image = normal(seed, *SHAPE)
        known = normal(seed + 9, *SHAPE) > 0
        result = edit_any_mask_image_and_level(inpaint(image, known), jnp.array(levels))
        expected = edit(
            KEY, network, None, SCHEDULER, inpaint(image, known), SHAPE, sigmas=levels
        )
        np.testing.assert_allclose(result, expected, atol=1e-5)


def test_sharded_data_and_keys_per_sample_give_the_same_samples():
    sharding = NamedSharding(
        Mesh(np.array(jax.devices()[:4]), ("batch",)), PartitionSpec("batch")
    )
    constraint = constraints()["inpaint"]
    keys, sharded = jax.device_put((sample_keys(KEY, 4), constraint), sharding)
    run = jax.jit(
        lambda keys, constraint: edit(
            keys, network, None, SCHEDULER, constraint, SHAPE, num_inference_steps=2
        ),
        out_shardings=sharding,
    )
    result = run(keys, sharded)
    assert len(result.sharding.device_set) == 4
    expected = edit(KEY, network, None, SCHEDULER, constraint, SHAPE, num_inference_steps=2)
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_levels_by_default_are_the_papers():
    run = partial(edit, KEY, network, None, SCHEDULER, constraints()["inpaint"], SHAPE)
    _, trajectory = run(cond={}, return_trajectory=True)
    assert len(trajectory.denoised) == 39

    # All 40 levels of the grid, sigma_min being the end; strokes start from two of them.
    grid = SCHEDULER.training_sigmas()
    state = SCHEDULER.set_timesteps(timesteps=editing.editing_timesteps(40))
    np.testing.assert_allclose(state.sigmas, grid, rtol=1e-6)
    np.testing.assert_allclose(grid[[16, 20]], editing.STROKE_SIGMAS, atol=0.005)


# Truth, on Gaussian data.


def correlated_gaussian_model(scheduler, covariance):
    """The exact consistency model of N(0, covariance): along eigenvectors as in one dimension.

    Also returns the function sigma -> S with f(x, sigma) = S x.
    """
    variances, axes = np.linalg.eigh(covariance)

    def consistency(params, x, sigma):
        shrink = jnp.sqrt((variances + scheduler.sigma_min**2) / (variances + sigma**2))
        return (x @ axes * shrink) @ axes.T

    def matrix(sigma):
        shrink = np.sqrt((variances + scheduler.sigma_min**2) / (variances + sigma**2))
        return (axes * shrink) @ axes.T

    return testing.network_of(scheduler.parametrization, consistency), matrix


def test_inpainted_gaussians_move_toward_the_conditional_mean():
    # Everything is linear and noise has mean 0, so the mean of the unknown part obeys
    # m <- S_uu m + S_uk a exactly, S being the matrix of f at each level. Its fixed point at level
    # sigma tends to the conditional mean as sigma -> 0, since
    # S = 1 - sigma^2 / 2 covariance^-1 + O(sigma^4); but the pull toward it, sigma^2, then fades.
    # So the end is a distance away that more levels shorten: it halves for four times the levels.
    # Sampled means lie within 6 standard errors (std <= 0.5) of the recursion: a false alarm in
    # 3e-8 of tests (12 numbers, fixed seed).
    batch = 10_000
    dims = 6
    known = np.arange(dims) < 3
    a = np.array([0.8, -0.5, 0.6], np.float32)
    covariance = 0.25 * 0.8 ** np.abs(np.subtract.outer(np.arange(dims), np.arange(dims)))
    conditional = covariance[~known][:, known] @ np.linalg.solve(
        covariance[known][:, known], a
    )
    apply_fn, matrix = correlated_gaussian_model(UNCLIPPED, covariance.astype(np.float32))
    constraint = inpaint(np.append(a, np.zeros(3, np.float32)), known)
    distances = []
    for n in (1, 8, 64, 256):
        sigmas = karras_sigmas(np.arange(n) / n, 0.002, 80.0, 7.0)
        run = jax.jit(
            lambda s: edit(
                KEY, apply_fn, None, UNCLIPPED, constraint, (batch, dims), sigmas=s
            )
        )
        mean = np.asarray(run(jnp.asarray(sigmas, jnp.float32)))[:, ~known].mean(0)
        expected = np.zeros(3)
        for sigma in sigmas:
            s = matrix(sigma)
            expected = s[~known][:, ~known] @ expected + s[~known][:, known] @ a
        np.testing.assert_allclose(mean, expected, atol=6 * 0.5 / batch**0.5)
        distances.append(np.linalg.norm(mean - conditional) / np.linalg.norm(conditional))
    assert np.all(np.diff(distances) < -0.1), distances
    assert distances[-1] < 0.35, distances


@pytest.mark.parametrize("sigmas", [(1.5,), editing.STROKE_SIGMAS])
def test_strokes_keep_what_the_noise_leaves_of_them(sigmas):
    # On N(0, std^2) a step from level s multiplies by r = sqrt((std^2 + s_min^2) / (std^2 + s^2)),
    # after noise of level s: mean r m, variance r^2 (v + s^2). 100,000 samples: 6 standard errors
    # are 6 std / 316, and 6 / 447 of std.
    std = 0.5
    stroke = 0.9
    apply_fn, params = testing.gaussian_consistency_model(UNCLIPPED, 0.0, std)
    image = jnp.full((100_000,), stroke)
    run = jax.jit(
        partial(editing.stroke_to_image, KEY, apply_fn, params, UNCLIPPED, image, sigmas)
    )
    made = run()
    mean = stroke
    variance = 0.0
    there = 0.0  # noise that the sample already has
    for sigma in sigmas:
        shrink = np.sqrt((std**2 + 0.002**2) / (std**2 + sigma**2))
        mean = shrink * mean
        variance = shrink**2 * (variance + sigma**2 - there**2)
        there = 0.002
    assert abs(float(made.mean()) - mean) < 6 * std / 316
    assert abs(float(made.std()) - variance**0.5) < 6 * std / 447


def test_strokes_start_from_the_noise_of_each_samples_index_and_take_constraints():
    image = jnp.asarray(IMAGE)
    run = partial(editing.stroke_to_image, KEY, network, None, SCHEDULER)
    whole = run(image, constrain=inpaint(image, KNOWN))
    known = np.broadcast_to(KNOWN, SHAPE)
    np.testing.assert_array_equal(np.asarray(whole)[known], IMAGE[known])
    part = run(image[2:], first_index=2, constrain=inpaint(image[2:], KNOWN[2:]))
    np.testing.assert_allclose(part, whole[2:], atol=1e-5)
    noisy = image + 3 * level_noise(sample_keys(KEY, 4), 0, SHAPE)
    expected = editing.denoise(network, None, SCHEDULER, noisy, 3.0)
    np.testing.assert_allclose(run(image, [3.0]), expected, atol=1e-5)
    assert run(image.astype(jnp.bfloat16), [3.0]).dtype == jnp.bfloat16


def test_denoising_is_the_consistency_function_at_any_level():
    # One trajectory of the probability-flow ODE: f gives its end from everywhere on it, here in one
    # batch.
    sigma = np.array([0.002, 0.01, 1.0, 80.0], np.float32)
    u = normal(0, 5)
    noisy = 0.3 + np.hypot(0.7, sigma)[:, None] * u
    apply_fn, params = testing.gaussian_consistency_model(UNCLIPPED, 0.3, 0.7)
    clean = editing.denoise(apply_fn, params, UNCLIPPED, noisy, sigma)
    expected = np.tile(0.3 + np.hypot(0.7, 0.002) * u, (4, 1))
    np.testing.assert_allclose(clean, expected, rtol=2e-4, atol=2e-5)
    traced = jax.jit(
        lambda sigma: editing.denoise(apply_fn, params, UNCLIPPED, noisy, sigma)
    )
    np.testing.assert_allclose(traced(sigma), clean, rtol=1e-4, atol=1e-5)


def test_restoring_from_one_level_is_denoising_and_more_levels_give_data():
    noisy = 3 * normal(0, *SHAPE)
    clean = editing.denoise(network, None, SCHEDULER, noisy, 3.0)
    restored = editing.restore(KEY, network, None, SCHEDULER, noisy, [3.0])
    np.testing.assert_allclose(restored, clean, atol=1e-6)
    apply_fn, params = testing.gaussian_consistency_model(UNCLIPPED, 0.0, 0.5)
    noisy = np.hypot(0.5, 3.0) * normal(1, 100_000)
    restored = editing.restore(KEY, apply_fn, params, UNCLIPPED, noisy, [3.0, 1.0, 0.2])
    assert abs(float(restored.std()) - 0.5) < 6 * 0.5 / 447  # 6 standard errors


@pytest.mark.parametrize(
    "scheduler",
    [
        cmjax.EDMHeunScheduler(s_churn=24.0, s_tmin=4.9),
        cmjax.KarrasVeScheduler(s_min=4.9, s_noise=1.0),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_restoring_adds_the_noise_that_churn_takes_away(scheduler):
    # Churn before the first step alone, of data N(0, 1). The solver is exact to a few 1e-4.
    apply_fn = testing.network_of(
        scheduler.parametrization, lambda params, x, sigma: x / (1 + sigma**2)
    )
    noisy = np.hypot(1.0, 5.0) * normal(1, 100_000)
    levels = np.geomspace(5.0, 0.05, 60)
    restored = editing.restore(KEY, apply_fn, None, scheduler, noisy, levels)
    assert abs(float(restored.std()) - 1) < 6 / 447 + 2e-3  # 6 standard errors

    # In part, the noise is that of the sample's index.
    part = editing.restore(
        KEY, apply_fn, None, scheduler, noisy[5:8], levels, first_index=5
    )
    np.testing.assert_allclose(part, restored[5:8], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "scheduler",
    [
        cmjax.KarrasVeScheduler(s_noise=1.0),
        cmjax.EDMHeunScheduler(s_churn=20.0),
        cmjax.EDMEulerScheduler(s_churn=20.0),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_strokes_have_the_noise_of_the_raised_level_once(scheduler):
    seen = []

    def network(params, x, t):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), x)
        return 0 * x

    sigmas = [5.0, 2.0, 1.0]
    stroke = jnp.zeros((4, 64, 64, 1))
    jax.block_until_ready(
        editing.stroke_to_image(KEY, network, None, scheduler, stroke, sigmas)
    )
    jax.effects_barrier()
    raised = scheduler.set_timesteps(sigmas=sigmas).sigma
    c_in, _, _ = scheduler.parametrization.scalings(1.0, raised)
    assert raised > 6
    assert seen[0].std() == pytest.approx(float(c_in * raised), rel=0.03)  # 5 errors


def test_interpolation_ends_in_the_two_samples_and_is_spherical_between():
    noise = level_noise(sample_keys(KEY, 2), 0, (2, *SHAPE[1:]))
    between = editing.interpolate(
        network, None, SCHEDULER, noise[0], noise[1], [0.0, 0.25, 1.0]
    )
    samples = cmjax.sample(KEY, network, None, SCHEDULER, (2, *SHAPE[1:]))
    np.testing.assert_allclose(between[jnp.array([0, 2])], samples, atol=2e-6)
    middle = editing.denoise(
        network, None, SCHEDULER, 80 * editing.slerp(*noise, 0.25)[None], 80.0
    )
    np.testing.assert_allclose(between[1:2], middle, atol=1e-5)


@few
@given(seed=seeds, fraction=st.floats(0, 1))
def test_slerp_walks_the_arc_at_constant_speed(seed, fraction):
    first, second = (
        x / np.linalg.norm(x) for x in (normal(seed, 3, 4), normal(seed + 1, 3, 4))
    )
    result = np.asarray(jax.jit(editing.slerp)(first, second, fraction), np.float64)
    angle = np.arccos(np.sum(first.astype(np.float64) * second))
    np.testing.assert_allclose(np.sum(result**2), 1, atol=1e-5)
    np.testing.assert_allclose(np.sum(result * first), np.cos(fraction * angle), atol=1e-5)


def test_slerp_of_parallel_arrays_is_finite_and_straight():
    x = jnp.asarray(normal(0, 5))
    np.testing.assert_allclose(editing.slerp(x, 3 * x, 0.25), 1.5 * x, rtol=1e-6)
    assert np.isfinite(jax.grad(lambda y: editing.slerp(x, y, 0.25).sum())(x)).all()


def test_slerp_of_zeros_is_straight_and_has_gradients():
    zeros = jnp.zeros(3)
    ones = jnp.ones(3)
    np.testing.assert_allclose(editing.slerp(zeros, ones, 0.25), 0.25 * ones)
    gradient = jax.grad(lambda x: editing.slerp(x, ones, 0.25).sum())(zeros)
    np.testing.assert_allclose(gradient, 0.75 * ones, rtol=1e-6)


def test_axes_that_are_given_say_which_way_a_mask_is_meant():
    image = np.zeros((3, 3), np.float32)
    mask = np.array([1.0, 0.0, 0.0])
    x0 = jnp.ones((3, 3))
    np.testing.assert_array_equal(
        inpaint(image, mask[None])(x0), 1 - mask * np.ones((3, 1))
    )
    np.testing.assert_array_equal(
        inpaint(image, mask[:, None])(x0), (1 - mask)[:, None] * np.ones(3)
    )


def test_conditioning_reaches_every_function():
    def labelled(params, x, t, label):
        return label.reshape(-1, 1).astype(x.dtype) * jnp.ones_like(x)

    cond = {"label": jnp.arange(3.0)}
    x = jnp.zeros((3, 2))
    run = (labelled, None, UNCLIPPED)
    c_out = UNCLIPPED.get_scalings_for_boundary_condition(jnp.float32(2.0))[1]
    expected = c_out * jnp.arange(3.0)[:, None] * jnp.ones((3, 2))
    np.testing.assert_allclose(
        editing.denoise(*run, x, 2.0, cond=cond), expected, rtol=1e-6
    )
    np.testing.assert_allclose(
        editing.restore(KEY, *run, x, [2.0], cond=cond), expected, rtol=1e-6
    )

    # With the same noise for all three samples, only the label differs.
    keys = jnp.stack([KEY] * 3)
    for made in (
        editing.interpolate(*run, normal(0, 2), normal(1, 2), [0.0, 0.0, 0.0], cond=cond),
        editing.stroke_to_image(keys, *run, x, [2.0], cond=cond),
        edit(keys, *run, lambda x0: x0, (3, 2), sigmas=[2.0], cond=cond),
    ):
        np.testing.assert_allclose(np.diff(np.diff(made, axis=0), axis=0), 0, atol=1e-5)
        assert np.diff(made, axis=0).min() > 0.4


# Misuse. The words of constraints.py and editing.py are asserted here, each once.

_run = partial(edit, KEY, network, None, SCHEDULER)
MISUSE = {
    "8-bit mask": (lambda: inpaint(IMAGE, np.full(SHAPE, 255)), "mask must be in.*255"),
    "mask in [-1, 1]": (lambda: inpaint(IMAGE, 2.0 * KNOWN - 1), "got -1.0 to 1.0"),
    "NaN in what is known": (
        lambda: inpaint(np.full(SHAPE, np.nan, np.float32), KNOWN),
        "image must be finite, got NaN or infinity",
    ),
    "NaN in gray": (lambda: colorize(np.full((6, 6, 1), np.nan)), "gray must be finite"),
    "infinity in low": (
        lambda: super_resolve(np.full((3, 3, 3), np.inf), 2),
        "low must be finite",
    ),
    "NaN in the mask": (lambda: inpaint(IMAGE, np.full(SHAPE, np.nan)), "mask.*nan"),
    "8-bit image": (
        lambda: inpaint(np.zeros(SHAPE, np.uint8), KNOWN),
        "image must hold floats.*uint8.*127.5",
    ),
    "image of pixels": (
        lambda: inpaint(np.linspace(0, 255, IMAGE.size).reshape(SHAPE), KNOWN),
        "image goes from 0 to 255, as pixels do",
    ),
    "gray of pixels": (lambda: colorize(np.full((6, 6, 1), 200.0)), "gray goes from 200"),
    "low of pixels": (lambda: super_resolve(np.full((3, 3, 3), 9.0), 2), "low goes from 9"),
    "strokes of pixels": (
        lambda: editing.stroke_to_image(
            KEY, network, None, SCHEDULER, np.full(SHAPE, 128.0)
        ),
        "image goes from 128",
    ),
    "noisy pixels": (
        lambda: editing.restore(KEY, network, None, SCHEDULER, np.full(SHAPE, 9.0), [1.0]),
        "noisy goes from 9",
    ),
    "noisy pixels, once": (
        lambda: editing.denoise(network, None, SCHEDULER, np.full(SHAPE, 9.0), 1.0),
        "noisy goes from 9",
    ),
    "mask of text": (lambda: inpaint(IMAGE, "x"), "mask must be numbers, got 'x'"),
    "mask of one number per sample, or per feature": (
        lambda: inpaint(np.zeros((3, 3)), np.ones(3))(jnp.ones((3, 3))),
        r"mask \(3,\) fits samples \(3, 3\) in two ways; .* mask\[None\] is the same",
    ),
    "image per sample, or for all": (
        lambda: inpaint(np.zeros((3, 3, 3)), np.ones((1, 1, 1)))(jnp.ones((3, 3, 3, 3))),
        r"image \(3, 3, 3\) fits samples .* in two ways",
    ),
    "mask of another size": (
        lambda: _run(inpaint(IMAGE, KNOWN[:, :5]), SHAPE),
        r"mask is \(4, 5, 6, 1\).*fit",
    ),
    "mask without channels": (
        lambda: _run(inpaint(IMAGE, KNOWN[0, ..., 0]), SHAPE),
        r"mask .*\(6, 6\).*\(6, 6, 3\)",
    ),
    "image of another size": (
        lambda: _run(inpaint(IMAGE, KNOWN), (4, 8, 8, 3)),
        r"mask .*\(4, 8, 8, 3\)",
    ),
    "image of another batch": (
        lambda: _run(inpaint(IMAGE[:3], KNOWN), SHAPE),
        r"image .*\(3, 6, 6, 3\)",
    ),
    "gray with colours": (
        lambda: _run(colorize(IMAGE), SHAPE),
        r"gray .*\(4, 6, 6, 3\).*\(4, 6, 6, 1\)",
    ),
    "colour of gray samples": (
        lambda: edit(KEY, network, None, SCHEDULER, colorize(IMAGE[..., :1]), (4, 6, 6, 1)),
        r"weights are for 3 channels.*\(4, 6, 6, 1\)",
    ),
    "weights of zero": (
        lambda: colorize(IMAGE[..., :1], (0.0, 0.0, 0.0)),
        "weights must be finite.*not all 0",
    ),
    "one weight": (
        lambda: colorize(IMAGE[..., :1], 0.3),
        "weights.*one per channel",
    ),
    "factor 0": (
        lambda: super_resolve(IMAGE, 0),
        "factor must be an integer of at least 1, got 0",
    ),
    "factor 1.5": (lambda: super_resolve(IMAGE, 1.5), "factor.*1.5"),
    "factor that does not divide": (
        lambda: _run(super_resolve(IMAGE, 4), SHAPE),
        r"factor 4 must divide.*6, 6",
    ),
    "vectors have no blocks": (
        lambda: super_resolve(IMAGE[0, 0], 2)(jnp.zeros((6, 3))),
        r"factor 2.*\(6, 3\)",
    ),
    "low of another size": (
        lambda: _run(super_resolve(IMAGE, 2), SHAPE),
        r"low .*\(4, 6, 6, 3\).*\(4, 3, 3, 3\)",
    ),
    "operator": (lambda: observe(np.eye(3), to_top_row, IMAGE), "forward"),
    "measurement": (
        lambda: _run(observe(top_row, to_top_row, IMAGE), SHAPE),
        r"measurement .*\(4, 6, 6, 3\)",
    ),
    "inverse": (
        lambda: _run(observe(top_row, top_row, IMAGE[:, 0]), SHAPE),
        "pseudo_inverse.*samples",
    ),
    "no constraint": (lambda: _run(IMAGE, SHAPE), "constraint must be a function.*inpaint"),
    "composing arrays": (
        lambda: compose(lambda x: x, IMAGE),
        r"constraints\[1\]",
    ),
    "no batch": (lambda: _run(lambda x: x, ()), r"shape must be \(B, ...\)"),
    "empty batch": (lambda: _run(lambda x: x, (0, 6, 6, 3)), "shape.*0"),
    "two kinds of levels": (
        lambda: _run(lambda x: x, SHAPE, sigmas=[80.0], timesteps=[0]),
        "timesteps and sigmas",
    ),
    "grid of one": (
        lambda: editing.editing_timesteps(1),
        "num_train_timesteps must be .* at least 2",
    ),
    "level above sigma_max": (
        lambda: editing.denoise(network, None, SCHEDULER, IMAGE, 81.0),
        r"sigmas.*81",
    ),
    "level NaN": (
        lambda: editing.denoise(network, None, SCHEDULER, IMAGE, np.nan),
        "sigmas.*nan",
    ),
    "levels of another batch": (
        lambda: editing.denoise(network, None, SCHEDULER, IMAGE, np.ones(3)),
        r"sigma .*\(4,\)",
    ),
    "bytes to denoise": (
        lambda: editing.denoise(network, None, SCHEDULER, IMAGE.astype(int), 1.0),
        "noisy.*int",
    ),
    "stroke level": (
        lambda: editing.stroke_to_image(KEY, network, None, SCHEDULER, IMAGE, 5.0),
        "sigmas.*list",
    ),
    "noises": (
        lambda: editing.interpolate(network, None, SCHEDULER, IMAGE[0], IMAGE, [0.5]),
        r"first \(6, 6, 3\), second \(4, 6, 6, 3\)",
    ),
    "fractions beyond the ends": (
        lambda: editing.interpolate(
            network, None, SCHEDULER, IMAGE[0], IMAGE[1], [2.0, -3.0]
        ),
        r"fractions must be a list of numbers in \[0, 1\], got \[2.0, -3.0\]",
    ),
    "fraction NaN": (
        lambda: editing.interpolate(network, None, SCHEDULER, IMAGE[0], IMAGE[1], [np.nan]),
        "fractions must be .*nan",
    ),
    "many fractions of slerp": (
        lambda: editing.slerp(IMAGE[0], IMAGE[1], [0.5, 0.5]),
        "fraction must be one finite number",
    ),
    "one fraction": (
        lambda: editing.interpolate(network, None, SCHEDULER, IMAGE[0], IMAGE[1], 0.5),
        "fractions",
    ),
}


@pytest.mark.parametrize("name", MISUSE)
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_misuse(name, wrap):
    misuse, message = MISUSE[name]
    with pytest.raises(ValueError, match=message):
        wrap(misuse)()


@pytest.mark.parametrize("method", ["projection", "posterior"])
def test_a_constraint_that_changes_the_shape_is_called_by_its_name(method):
    def cropped(x0):
        return x0[:, :2]

    with pytest.raises(ValueError, match="the constraint must return x0 in the shape"):
        editing.edit(KEY, network, None, SCHEDULER, cropped, SHAPE, method=method)


@pytest.mark.parametrize("name", ["init", "state", "constrain"])
def test_edit_takes_nothing_that_it_makes_itself(name):
    with pytest.raises(TypeError, match=name):
        _run(
            lambda x: x, SHAPE, num_inference_steps=1, **{name: SCHEDULER.set_timesteps(1)}
        )


def test_edit_called_bare_compiles_once_for_other_pictures():
    traces = []

    def network(params, x, t):
        traces.append(1)
        return params * jnp.sin(x)

    counts = []
    for seed in range(3):
        constraint = compose(inpaint(normal(seed, *SHAPE), KNOWN), clip)
        options = {"num_inference_steps": 3, "first_index": seed}
        edit(
            jax.random.key(seed),
            network,
            jnp.float32(1),
            SCHEDULER,
            constraint,
            SHAPE,
            **options,
        )
        counts.append(len(traces))
    assert counts[0] == counts[-1], counts


def clip(x0):
    return jnp.clip(x0, -1, 1)


def test_other_schedulers_edit_at_levels_that_are_given():
    solver = cmjax.EDMEulerScheduler()
    constraint = inpaint(IMAGE, KNOWN)
    with pytest.raises(
        ValueError, match="give num_inference_steps, .* is a EDMEulerScheduler"
    ):
        edit(KEY, network, None, solver, constraint, SHAPE)
    made = edit(KEY, network, None, solver, constraint, SHAPE, num_inference_steps=2)
    kept = np.broadcast_to(KNOWN, SHAPE)
    np.testing.assert_array_equal(np.asarray(made)[kept], np.asarray(IMAGE)[kept])


@pytest.mark.parametrize("name", ["EDMHeunScheduler", "SCMScheduler"])
def test_other_schedulers_denoise_in_one_call(name):
    scheduler = getattr(cmjax, name)()
    exact = testing.network_of(scheduler.parametrization, lambda params, x, sigma: x / 2)
    x = jnp.asarray(normal(0, 2, 3))
    np.testing.assert_allclose(
        editing.denoise(exact, None, scheduler, x, 1.5), x / 2, rtol=1e-5
    )


def test_a_constraint_is_freed_with_its_program():
    class Picture:
        """What a constraint of one request closes over."""

    freed = []

    def keep(picture):
        freed.append(weakref.ref(picture))
        return lambda x0: 0.9 * x0 if picture else x0

    def apply_fn(params, x, t):
        return params * x

    for _ in range(2):
        cmjax.sample(KEY, apply_fn, 0.3, SCHEDULER, (2, 2), constrain=keep(Picture()))
        editing.edit(
            KEY,
            apply_fn,
            0.3,
            SCHEDULER,
            keep(Picture()),
            (2, 2),
            method="posterior",
            sigmas=[5.0],
        )
    sampling._compiled.cache_clear()
    posterior._compiled.cache_clear()
    gc.collect()
    assert [picture() for picture in freed] == [None] * 4


def test_constraints_are_pickled():
    low = np.random.default_rng(0).uniform(-1, 1, (2, 2, 3)).astype(np.float32)
    x0 = jnp.linspace(-1, 1, 96).reshape(2, 4, 4, 3)
    gray = np.zeros((4, 4, 1), np.float32)
    for constraint in (super_resolve(low, 2), colorize(gray), inpaint(x0, x0 > 0)):
        again = pickle.loads(pickle.dumps(constraint))
        np.testing.assert_array_equal(again(x0), constraint(x0))

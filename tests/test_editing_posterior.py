"""Editing by `method="posterior"`: exact on Gaussian data, typical noise, known values kept."""

import math
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cmjax
from cmjax import testing
from cmjax.editing import (
    colorize,
    compose,
    edit,
    inpaint,
    least_move,
    noise_projection,
    observe,
    super_resolve,
)
from tests.support.tiers import slow, thorough

SCHEDULER = cmjax.CMStochasticIterativeScheduler(clip_denoised=False)
KEY = jax.random.key(0)
WEIGHTS = np.array([0.299, 0.587, 0.114])


def field(size, channels):
    """The covariance of a field of pixels `[size, size, channels]` that fades with distance."""
    places = np.stack(np.meshgrid(np.arange(size), np.arange(size)), -1).reshape(-1, 2)
    distances = np.linalg.norm(places[:, None] - places[None], axis=-1)
    colours = 0.5 * np.eye(channels) + 0.5
    return np.kron(0.25 * np.exp(-distances / 2), colours)


def gaussian_network(covariance):
    """The exact consistency model of N(0, covariance), for samples of any shape."""
    variances, axes = np.linalg.eigh(covariance)
    variances = variances.astype(np.float32)
    axes = axes.astype(np.float32)

    def consistency(params, x, sigma):
        del params
        shrink = jnp.sqrt((variances + SCHEDULER.sigma_min**2) / (variances + sigma**2))
        return ((x.reshape(-1) @ axes * shrink) @ axes.T).reshape(x.shape)

    return testing.network_of(SCHEDULER.parametrization, consistency)


def task(name, size, channels, seed=0):
    """A constraint by a sample of the field, its matrix A, and y."""
    covariance = field(size, channels)
    values = np.linalg.cholesky(covariance) @ np.random.default_rng(seed).standard_normal(
        len(covariance)
    )
    image = values.reshape(size, size, channels).astype(np.float32)
    if name == "inpaint":
        known = np.arange(size)[:, None, None] < size // 2
        kept = np.broadcast_to(known, image.shape).reshape(-1)
        return inpaint(image, known), np.eye(kept.size)[kept], image.reshape(-1)[kept]
    if name == "colorize":
        matrix = np.kron(np.eye(size * size), WEIGHTS)
        gray = (image @ WEIGHTS).astype(np.float32)[..., None]
        return colorize(gray), matrix, gray.reshape(-1)

    def means(x):
        blocks = x.reshape(-1, size // 2, 2, size // 2, 2, channels)
        return blocks.mean((2, 4))

    matrix = means(np.eye(image.size)).reshape(image.size, -1).T
    low = means(image)[0]
    return super_resolve(low, 2), matrix, low.reshape(-1)


def divergence(samples, mean, covariance, matrix):
    """KL from the samples' normal distribution to N(mean, covariance), where A sees nothing."""
    # Along the rows of A exact values have no spread; noisy ones have: matrix is None there.
    x = np.asarray(samples, np.float64).reshape(len(samples), -1) - mean
    if matrix is not None:
        unseen = np.linalg.svd(matrix)[2][len(matrix) :].T
        x = x @ unseen
        covariance = unseen.T @ covariance @ unseen
    inverse = np.linalg.inv(covariance)
    found = x.mean(0)
    ratio = inverse @ np.cov(x.T)
    squares = np.trace(ratio) + found @ inverse @ found - len(found)
    return 0.5 * (squares - np.linalg.slogdet(ratio)[1])


def check_field(name, size, channels, sigma_y=0.0, batch=6000):
    # The divergence of n true samples' moments in d dimensions is chi^2 / (2 n), with
    # d (d + 3) / 2 degrees of freedom: 6 standard deviations are a false alarm in 1e-8 of tests.
    covariance = field(size, channels)
    constraint, matrix, y = task(name, size, channels)
    full = covariance + SCHEDULER.sigma_min**2 * np.eye(len(covariance))
    seen = matrix @ full @ matrix.T + sigma_y**2 * np.eye(len(y))
    gain = full @ matrix.T @ np.linalg.inv(seen)
    run = partial(edit, KEY, gaussian_network(covariance), None, SCHEDULER, constraint)
    samples, steps = run(
        (batch, size, size, channels),
        method="posterior",
        sigma_y=sigma_y,
        return_trajectory=True,
    )
    unseen = None if sigma_y else matrix
    dims = len(full) - (0 if sigma_y else len(y))
    freedom = dims * (dims + 3) / 2
    bound = (freedom + 6 * np.sqrt(2 * freedom)) / (2 * batch)
    found = divergence(samples, gain @ y, full - gain @ matrix @ full, unseen)
    assert found < bound + 0.015, (found, bound)
    return samples, steps


def test_inpainted_fields_have_exactly_the_conditional_distribution():
    samples, steps = check_field("inpaint", 4, 1)
    constraint, _, y = task("inpaint", 4, 1)
    kept = np.asarray(samples)[:, :2].reshape(len(samples), -1)
    np.testing.assert_array_equal(kept, np.broadcast_to(y, kept.shape))

    # One entry per level and sample, of ten by default; the network itself makes what is known.
    assert steps.denoised.shape == (10, *samples.shape)
    chex.assert_shape([steps.residual, steps.noise, steps.damping], (10, len(samples)))
    assert steps.residual[-1].mean() < 0.01


def test_noisy_measurements_of_a_field_are_weighed_against_it():
    samples, _ = check_field("super_resolve", 4, 1, sigma_y=0.3)
    _, matrix, y = task("super_resolve", 4, 1)
    off = np.asarray(samples).reshape(len(samples), -1) @ matrix.T - y
    assert np.std(off) > 0.1


@pytest.mark.parametrize(
    ("name", "size", "channels", "sigma_y"),
    [
        thorough("inpaint", 4, 1, 0.2),
        thorough("colorize", 4, 3, 0.0),
        slow("super_resolve", 4, 1, 0.0),
        slow("colorize", 4, 3, 0.1),
        slow("inpaint", 8, 1, 0.0),
        slow("super_resolve", 8, 1, 0.0),
    ],
)
def test_fields_of_every_kind(name, size, channels, sigma_y):
    check_field(name, size, channels, sigma_y)


# The least move.


def linear_problem(rows=3, columns=6, batch=2):
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((rows, columns)).astype(np.float32)
    noise = rng.standard_normal((batch, columns)).astype(np.float32)
    residual = 3 * rng.standard_normal((batch, rows)).astype(np.float32)

    def move(iterations, **limits):
        found = least_move.directions(
            lambda d: d @ matrix.T, lambda r: r @ matrix, residual, noise, iterations
        )
        return least_move.least_move(found, noise, **limits)

    return matrix, residual, noise, move


def test_without_a_bound_the_move_is_the_least_that_meets_the_constraint():
    matrix, residual, noise, move = linear_problem()
    expected = noise - residual @ np.linalg.pinv(matrix).T
    found = move(allowance=1e6, iterations=3)
    np.testing.assert_allclose(found.noise, expected, atol=1e-4)
    np.testing.assert_allclose(found.change, -residual, atol=1e-4)

    # With fewer products it is the best within the space that they span.
    shorter = move(allowance=1e6, iterations=1).noise - noise
    gradient = -residual @ matrix
    scale = np.sum(shorter * gradient, 1) / np.sum(gradient**2, 1)
    np.testing.assert_allclose(shorter, scale[:, None] * gradient, atol=1e-5)


def test_a_bound_on_the_noise_damps_the_move_just_enough():
    matrix, residual, noise, move = linear_problem()
    allowance = 0.5
    found = move(allowance=allowance, iterations=3)
    square = np.sum(noise**2, 1)
    np.testing.assert_allclose(
        np.sum(np.square(found.noise), 1), square + allowance, rtol=1e-4
    )
    np.testing.assert_allclose(found.square, square + allowance, rtol=1e-4)
    for i in range(len(noise)):
        normal = matrix @ matrix.T + found.damping[i] * np.eye(len(matrix))
        expected = noise[i] - matrix.T @ np.linalg.solve(normal, residual[i])
        np.testing.assert_allclose(found.noise[i], expected, atol=1e-4)


def test_a_bound_on_the_distance_damps_the_move_just_enough():
    _, _, noise, move = linear_problem()
    farthest = np.array([0.5, 1e6], np.float32)
    found = move(allowance=1e6, iterations=3, farthest=farthest)
    free = move(allowance=1e6, iterations=3)
    distance = np.sum(np.square(found.noise - noise), 1)
    np.testing.assert_allclose(distance, [0.5, free.distance[1]], rtol=1e-4)
    np.testing.assert_allclose(found.distance, distance, rtol=1e-4)


def test_noise_that_meets_the_constraint_stays():
    noise = jnp.ones((2, 3))
    found = least_move.directions(
        lambda d: d, lambda r: r, jnp.zeros((2, 3)), noise, iterations=4
    )
    move = least_move.least_move(found, noise, allowance=1.0)
    np.testing.assert_array_equal(move.noise, noise)


# The loop.

SHAPE = (3, 4, 4, 1)
IMAGE = np.random.default_rng(1).uniform(-1, 1, SHAPE).astype(np.float32)
KNOWN = np.random.default_rng(2).uniform(size=SHAPE) < 0.5
CLIPPED = cmjax.CMStochasticIterativeScheduler()


def network(params, x, t):
    """Curved, and mixes neighbours."""
    del params
    time = (1e-3 * t.reshape(-1, 1, 1, 1)).astype(x.dtype)
    return 2 * jnp.tanh(x) + jnp.sin(jnp.roll(x, 1, -2)) + time


def run(constraint, shape=SHAPE, **options):
    options = {"sigmas": [80.0, 2.0, 0.3], **options}
    return edit(
        KEY, network, None, CLIPPED, constraint, shape, method="posterior", **options
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_known_values_are_exact_and_the_noise_stays_typical(dtype):
    x0, steps = run(inpaint(IMAGE, KNOWN), dtype=dtype, return_trajectory=True)
    chex.assert_type([x0, steps.denoised], dtype)
    chex.assert_type([steps.noise, steps.residual, steps.damping], jnp.float32)
    expected = np.asarray(jnp.asarray(IMAGE).astype(dtype))
    np.testing.assert_array_equal(np.asarray(x0)[KNOWN], expected[KNOWN])
    assert np.isfinite(np.asarray(x0, np.float32)).all()

    # |z|^2 of 16 numbers is beyond 50 once in 4e4 cases; moves add at most 0.75 sqrt(2 * 16).
    assert np.max(steps.noise) < (50 + 5) / 16


def test_soft_edges_are_blended_beside_values_with_noise():
    mask = jnp.where(KNOWN, 1.0, 0.0).at[:, :, 1].set(0.5)
    soft = inpaint(IMAGE, mask)
    hard = inpaint(IMAGE, jnp.floor(mask))
    run_both = partial(run, sigma_y=1e-3)
    unblended = run_both(hard)
    expected = jnp.where(mask == 0.5, 0.5 * (unblended + IMAGE), unblended)
    np.testing.assert_allclose(run_both(soft), expected, atol=1e-5)
    np.testing.assert_allclose(run_both(compose(soft)), expected, atol=1e-5)


def test_a_sample_depends_on_its_own_data_and_index_alone():
    whole = run(inpaint(IMAGE, KNOWN), sigma_y=jnp.array([0.1, 0.2, 0.3]))
    part = run(
        inpaint(IMAGE[1:], KNOWN[1:]),
        (2, 4, 4, 1),
        sigma_y=jnp.array([0.2, 0.3]),
        first_index=1,
    )
    np.testing.assert_allclose(part, whole[1:], atol=2e-5)


def test_other_data_and_levels_do_not_compile_again():
    traces = []

    def counted(params, x, t):
        traces.append(1)
        return network(params, x, t)

    for seed in range(2):
        image = np.random.default_rng(seed).uniform(-1, 1, SHAPE).astype(np.float32)
        edit(
            KEY,
            counted,
            None,
            CLIPPED,
            compose(inpaint(image, KNOWN), inpaint(image, ~KNOWN)),
            SHAPE,
            method="posterior",
            sigmas=[80.0 - seed, 1.0],
            iterations=1,
        )
        if not seed:
            once = len(traces)
    assert len(traces) == once


def test_conditioning_and_callbacks_work_as_in_sample():
    seen = []

    def labelled(params, x, t, label):
        return network(params, x, t) + label.reshape(-1, 1, 1, 1)

    x0 = edit(
        jnp.stack([KEY] * 3),
        labelled,
        None,
        CLIPPED,
        inpaint(IMAGE[0], KNOWN[0]),
        SHAPE,
        method="posterior",
        sigmas=[2.0, 1.0],
        cond={"label": [0.0, 0.0, 0.5]},
        callback=lambda i, step: seen.append((int(i), step.denoised.shape)),
    )
    jax.effects_barrier()
    assert sorted(seen) == [(0, SHAPE), (1, SHAPE)]
    np.testing.assert_allclose(x0[0], x0[1], atol=1e-5)
    assert np.abs(x0[2] - x0[1]).max() > 0.1


# Two modes: what is known says which of them it is, and f alone does not.


def mixture_consistency(params, x, sigma):
    """Of two normal distributions in the plane, by Heun's method in 20 steps of equal ratios."""
    del params
    ratio = jnp.log(SCHEDULER.sigma_min / sigma) / 20

    def slope(x, level):
        variance = MODE_STD**2 + level**2
        logits = -jnp.sum(jnp.square(x[None] - MODES), -1) / (2 * variance)
        means = MODES + MODE_STD**2 / variance * (x[None] - MODES)
        return x - jax.nn.softmax(logits) @ means

    def step(i, x):
        first = slope(x, sigma * jnp.exp(i * ratio))
        second = slope(x + ratio * first, sigma * jnp.exp((i + 1) * ratio))
        return x + ratio * (first + second) / 2

    return jax.lax.fori_loop(0, 20, step, x)


MODES = np.array([[-0.6, -0.4], [0.6, 0.4]], np.float32)
MODE_STD = 0.25


def test_of_more_candidates_each_mode_comes_up_as_often_as_it_should():
    network = testing.network_of(SCHEDULER.parametrization, mixture_consistency)
    known = -0.2
    constraint = inpaint(jnp.array([known, 0.0]), jnp.array([1.0, 0.0]))
    share = {}
    for candidates in (1, 32):
        x0 = edit(
            KEY,
            network,
            None,
            SCHEDULER,
            constraint,
            (1000, 2),
            method="posterior",
            candidates=candidates,
        )
        assert (np.asarray(x0)[:, 0] == np.float32(known)).all()
        share[candidates] = np.mean(np.asarray(x0)[:, 1] < 0)

    # Given the first coordinate, by Bayes: the share of the first mode, and of its samples that are
    # below 0, and so for the second.
    squares = (known - MODES[:, 0]) ** 2 / (2 * MODE_STD**2)
    weights = np.exp(-squares) / np.exp(-squares).sum()
    below = 0.5 + 0.5 * math.erf(0.4 / (MODE_STD * math.sqrt(2)))
    truth = weights @ [below, 1 - below]
    assert abs(share[32] - truth) < 0.03
    assert abs(share[1] - truth) > 0.1


def drawn_and_taken(failing):
    """Draws of noise, of which `failing` make NaN; which are nearest; and which are taken."""
    draws = np.random.default_rng(3).standard_normal((5, *SHAPE)).astype(np.float32)
    for draw, sample in failing:
        draws[draw, sample] = np.nan
    constraint = inpaint(IMAGE, KNOWN)
    problem = noise_projection.Problem(
        lambda x, sigma: x, lambda x: x, constraint, None, 3, candidates=4
    )
    zeros = jnp.zeros(SHAPE), ()
    taken, _ = noise_projection._nearest(
        problem, zeros, lambda i: (jnp.asarray(draws)[i], ()), jnp.float32(2.0)
    )
    missed = np.where(KNOWN, IMAGE - 2 * draws[1:], 0)
    return draws, 1 + np.nanargmin(np.sum(missed**2, (2, 3, 4)), 0), taken


# Draws and samples of which the network makes NaN: none; the first draw; the nearest of a sample.
@pytest.mark.parametrize("failing", [(), ((1, 0), (1, 1), (1, 2)), ((2, 0), (4, 1))])
def test_the_candidate_nearest_to_what_is_known_is_taken(failing):
    draws, nearest, taken = drawn_and_taken(failing)
    assert len(set(nearest)) > 1
    np.testing.assert_array_equal(taken, draws[nearest, np.arange(len(nearest))])


def top(x0):
    return x0[:, :1]


def to_top(y):
    return jnp.concatenate([y, jnp.zeros((y.shape[0], 3, *y.shape[2:]), y.dtype)], 1)


MISUSE = {
    "another method": (
        lambda: edit(
            KEY, network, None, CLIPPED, lambda x0: x0, SHAPE, method="posteriori"
        ),
        r"method must be one of \['projection', 'posterior'\], got 'posteriori'",
    ),
    "noise for projection": (
        lambda: edit(
            KEY, network, None, CLIPPED, inpaint(IMAGE, KNOWN), SHAPE, sigma_y=0.1
        ),
        'sigma_y is an option of method="posterior"',
    ),
    "negative noise": (
        lambda: run(inpaint(IMAGE, KNOWN), sigma_y=-0.1),
        "sigma_y must be 0, or positive.*-0.1",
    ),
    "noise NaN": (
        lambda: run(inpaint(IMAGE, KNOWN), sigma_y=np.nan),
        "sigma_y must be .*nan",
    ),
    "noise of another batch": (
        lambda: run(inpaint(IMAGE, KNOWN), sigma_y=[0.1, 0.2]),
        r"sigma_y must be .*\(3,\)",
    ),
    "noise of a plain function": (
        lambda: run(lambda x0: x0, sigma_y=0.1),
        "sigma_y needs a constraint that knows its data",
    ),
    "no iterations": (
        lambda: run(inpaint(IMAGE, KNOWN), iterations=0),
        "iterations must be an integer from 1 to 100, got 0",
    ),
    "no candidates": (
        lambda: run(inpaint(IMAGE, KNOWN), candidates=0),
        "candidates must be an integer from 1 to 10000, got 0",
    ),
    "two times": (
        lambda: edit(
            KEY,
            network,
            None,
            cmjax.CTMScheduler(),
            observe(top, to_top, IMAGE[:, :1]),
            SHAPE,
            method="posterior",
            num_inference_steps=2,
        ),
        "whose networks take two times",
    ),
}


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        (lambda x0: x0[:1], "the constraint must return x0 in the shape"),
        (lambda x0: jnp.ones(x0.shape, int), "constrain's result must hold floats"),
    ],
)
def test_a_constraint_returns_floats_in_the_shape_of_the_samples(constraint, message):
    with pytest.raises(ValueError, match=message):
        run(constraint)


@pytest.mark.parametrize("method", ["projection", "posterior"])
def test_an_option_that_there_is_not_is_named(method):
    with pytest.raises(TypeError, match="edit has no option 'strength'; known are cond"):
        edit(
            KEY,
            network,
            None,
            CLIPPED,
            inpaint(IMAGE, KNOWN),
            SHAPE,
            method=method,
            strength=0.5,
        )


@pytest.mark.parametrize("name", MISUSE)
def test_misuse(name):
    misuse, message = MISUSE[name]
    with pytest.raises(ValueError, match=message):
        misuse()


def test_gradients_are_finite_where_nothing_is_known():
    # The length of a residual of 0 had an infinite slope.
    nothing = inpaint(jnp.ones(4), jnp.zeros(4))

    def total(gain):
        samples, steps = edit(
            KEY,
            lambda gain, x, t: gain * jnp.tanh(x),
            gain,
            cmjax.CMStochasticIterativeScheduler(),
            nothing,
            (2, 4),
            method="posterior",
            sigmas=[5.0, 1.0],
            candidates=1,
            iterations=1,
            return_trajectory=True,
        )
        return samples.sum() + steps.residual.sum()

    slope = jax.grad(total)(0.3)
    difference = (total(0.3 + 1e-2) - total(0.3 - 1e-2)) / 2e-2
    np.testing.assert_allclose(slope, difference, rtol=1e-2)


@pytest.mark.parametrize("weight", [0.02, 0.5, 0.98])
@pytest.mark.parametrize("composed", [False, True])
def test_what_a_mask_keeps_in_part_is_blended_once(weight, composed):
    # Pixels are independent, N(0.2, 0.5^2): blended with what is not known about them, their mean
    # is that of (1 - w) x0 + w image, and their deviation (1 - w) 0.5.
    apply_fn, params = testing.gaussian_consistency_model(SCHEDULER, 0.2, 0.5)
    image = np.random.default_rng(0).uniform(-1, 1, (4, 4, 3)).astype(np.float32)
    constraint = inpaint(image, np.full((4, 4, 1), weight, np.float32))
    if composed:
        constraint = compose(constraint, lambda x0: x0)
    x = edit(
        KEY,
        apply_fn,
        params,
        SCHEDULER,
        constraint,
        (2000, 4, 4, 3),
        method="posterior",
        sigmas=[80.0, 5.0, 1.0],
        candidates=2,
    )
    expected = (1 - weight) * 0.2 + weight * image
    deviation = (1 - weight) * 0.5
    np.testing.assert_allclose(np.mean(x, 0), expected, atol=0.1 * deviation)
    np.testing.assert_allclose(np.std(x, 0), deviation, rtol=0.1)

"""Losses between two levels against float64 arithmetic written out by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmjax.training import losses
from cmjax.training.discretization import lognormal_index
from tests.support.training import (
    EDM,
    evaluate,
    finite_differences,
    gaussian_denoiser,
    karras_grid,
    value,
    wide,
)

KEY = jax.random.key(3)
DATA = {"data": 0.5 * jax.random.normal(jax.random.key(1), (16, 3))}
PARAMS = {"a": jnp.float32(0.7), "b": jnp.array([0.1, -0.2, 0.3]), "c": jnp.float32(0.4)}
TARGET = {"a": jnp.float32(0.5), "b": jnp.array([0.0, -0.1, 0.2]), "c": jnp.float32(0.3)}
TEACHER = {"a": jnp.float32(-0.6), "b": jnp.array([0.2, 0.1, 0.0]), "c": jnp.float32(0.1)}


def network(params, x, t, xp=jnp):
    return xp.tanh(params["a"] * x + params["b"][None]) + params["c"] * t[:, None] / 1000


def denoise(params, x, sigma, epsilon):
    """Karras et al. 2022, table 1, with the boundary condition's sigma - epsilon; float64."""
    shifted = sigma - epsilon
    norm = np.sqrt(sigma**2 + 0.25)
    c_skip = 0.25 / (shifted**2 + 0.25)
    c_out = 0.5 * shifted / norm
    output = network(params, x / norm[:, None], 250 * np.log(sigma), np)
    return c_skip[:, None] * x + c_out[:, None] * output


def drawn(num_levels):
    """The levels (higher, lower) and the noise that the losses draw from KEY."""
    level_key, noise_key = jax.random.split(KEY)
    index = np.asarray(jax.random.randint(level_key, (16,), 0, num_levels - 1))
    levels = karras_grid(num_levels)
    noise = np.asarray(jax.random.normal(noise_key, (16, 3)), np.float64)
    return levels[index], levels[index + 1], noise


def training_reference(params, num_levels):
    higher, lower, noise = drawn(num_levels)
    data = np.asarray(DATA["data"], np.float64)
    estimate = denoise(params, data + higher[:, None] * noise, higher, 0.002)
    target = denoise(wide(TARGET), data + lower[:, None] * noise, lower, 0.002)
    return np.mean((estimate - target) ** 2)


def distillation_reference(params, num_levels, solver):
    higher, lower, noise = drawn(num_levels)
    noisy = np.asarray(DATA["data"], np.float64) + higher[:, None] * noise
    gap = (lower - higher)[:, None]

    def slope(x, sigma):
        return (x - denoise(wide(TEACHER), x, sigma, 0.0)) / sigma[:, None]

    first = slope(noisy, higher)
    less_noisy = noisy + gap * first
    if solver == "heun":
        less_noisy = noisy + gap * (first + slope(less_noisy, lower)) / 2
    estimate = denoise(params, noisy, higher, 0.002)
    target = denoise(wide(TARGET), less_noisy, lower, 0.002)
    return np.mean((estimate - target) ** 2)


def check(loss, teacher, reference):
    """Compares value and gradient at step 0 with those of a float64 function."""
    at = jax.jit(
        jax.value_and_grad(
            lambda p: value(loss, network, p, DATA, target=TARGET, teacher=teacher, key=KEY)
        )
    )
    found, gradient = at(PARAMS)
    assert found == pytest.approx(reference(wide(PARAMS)), rel=1e-4)
    for name, expected in finite_differences(reference, PARAMS).items():
        np.testing.assert_allclose(gradient[name], expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("num_levels", [2, 9, 40])
def test_consistency_training_and_its_gradient(num_levels):
    # At step 0 the grid has initial_levels levels.
    loss = losses.ConsistencyTraining(EDM, 100, num_levels, num_levels, metric=losses.L2())
    check(loss, None, partial(training_reference, num_levels=num_levels))


@pytest.mark.parametrize("solver", ["euler", "heun"])
@pytest.mark.parametrize("num_levels", [2, 18])
def test_consistency_distillation_and_its_gradient(solver, num_levels):
    loss = losses.ConsistencyDistillation(
        EDM, num_levels, solver=solver, metric=losses.L2()
    )
    check(
        loss, TEACHER, partial(distillation_reference, num_levels=num_levels, solver=solver)
    )


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_the_teachers_step_is_exact_for_gaussian_data(solver):
    """For N(0, s^2) the slope is x sigma / (s^2 + sigma^2): a step multiplies x by a number."""
    x = jnp.array([[1.0, -2.0], [0.3, 4.0], [5.0, 0.0]])
    high = np.array([80.0, 2.0, 0.1])
    low = np.array([60.0, 1.5, 0.002])
    for s in (0.0, 0.7):
        rates = [sigma / (s**2 + sigma**2) for sigma in (high, low)]
        factor = 1 + (low - high) * rates[0]
        if solver == "heun":
            factor = 1 + (low - high) / 2 * (rates[0] + rates[1] * factor)

        def slope(x, sigma, s=s):
            return x * (sigma / (s**2 + sigma**2))[:, None]

        moved = losses.ode_step(solver, slope, x, jnp.float32(high), jnp.float32(low))
        np.testing.assert_allclose(moved, x * factor[:, None], rtol=1e-4, atol=1e-7)
        if s == 0:  # a single datum: paths are straight, and one step of any size is exact
            np.testing.assert_allclose(factor, low / high, rtol=1e-9)


def test_progressive_distillation_wants_two_steps_in_one():
    """On Gaussian data two Euler steps multiply x by a number; any x0 but theirs has a loss."""
    variance = 0.49
    loss = losses.ProgressiveDistillation(
        EDM, student_steps=4, teacher_fn=gaussian_denoiser
    )
    level_key, noise_key = jax.random.split(KEY)
    index = np.asarray(jax.random.randint(level_key, (16,), 0, 4))
    levels = karras_grid(9)
    high, middle, low = levels[2 * index], levels[2 * index + 1], levels[2 * index + 2]
    noisy = DATA["data"] + high[:, None] * np.asarray(jax.random.normal(noise_key, (16, 3)))
    first = 1 + (middle - high) * high / (variance + high**2)
    second = 1 + (low - middle) * middle / (variance + middle**2)
    # One step to the same place: x + (low - high) (x - x0) / high = first second x.
    target = noisy * (1 - high * (first * second - 1) / (low - high))[:, None]

    def student(shift, x, t):
        c_skip, c_out = (c[:, None] for c in EDM.get_scalings(jnp.exp(t / 250)))
        return (target + shift - c_skip * noisy) / c_out

    for shift in (0.0, 0.3):
        found = value(loss, student, shift, DATA, teacher=jnp.float32(variance), key=KEY)
        expected = np.mean(np.maximum(1 / high**2, 1)) * shift**2
        assert found == pytest.approx(expected, rel=2e-3, abs=1e-5)


def test_improved_training_weighs_by_the_gap_and_draws_lognormal_pairs():
    num_levels = 11
    seen = []

    def spy(estimate, target):
        seen.append((estimate, target))
        return losses.PseudoHuber(0.1)(estimate, target)

    loss = losses.ImprovedConsistencyTraining(EDM, 100, 10, 80, metric=spy)
    found, metrics = evaluate(loss, network, PARAMS, DATA, target=TARGET, key=KEY)
    assert metrics["num_levels"] == num_levels

    level_key, noise_key = jax.random.split(KEY)
    levels = jnp.int32(num_levels)
    index = np.asarray(lognormal_index(level_key, 16, -1.1, 2.0, levels, 0.002, 80.0, 7.0))
    higher = karras_grid(num_levels)[index]
    lower = karras_grid(num_levels)[index + 1]
    noise = np.asarray(jax.random.normal(noise_key, (16, 3)), np.float64)
    estimate = denoise(wide(PARAMS), DATA["data"] + higher[:, None] * noise, higher, 0.002)
    target = denoise(wide(TARGET), DATA["data"] + lower[:, None] * noise, lower, 0.002)
    np.testing.assert_allclose(seen[0][0], estimate, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(seen[0][1], target, rtol=1e-4, atol=1e-5)

    square = np.sum((estimate - target) ** 2, -1)
    distance = np.sqrt(square + 0.1**2 * 3) - 0.1 * 3**0.5
    assert found == pytest.approx(np.mean(distance / (higher - lower)), rel=1e-3)


def test_a_grid_may_begin_with_one_level():
    loss = losses.ConsistencyTraining(EDM, 100, initial_levels=1, final_levels=1)
    assert np.isfinite(value(loss, network, PARAMS, DATA, target=TARGET, key=KEY))

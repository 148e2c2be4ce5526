"""Losses between two levels against float64 arithmetic written out by hand."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cmjax
from cmjax.schedulers import LCMScheduler, SCMScheduler
from cmjax.training import losses

SCHEDULER = cmjax.CMStochasticIterativeScheduler(clip_denoised=False)
KEY = jax.random.key(3)
DATA = {"data": 0.5 * jax.random.normal(jax.random.key(1), (16, 3))}
PARAMS = {"a": jnp.float32(0.7), "b": jnp.array([0.1, -0.2, 0.3]), "c": jnp.float32(0.4)}
TARGET = {"a": jnp.float32(0.5), "b": jnp.array([0.0, -0.1, 0.2]), "c": jnp.float32(0.3)}
TEACHER = {"a": jnp.float32(-0.6), "b": jnp.array([0.2, 0.1, 0.0]), "c": jnp.float32(0.1)}


def network(params, x, t, xp=jnp):
    return xp.tanh(params["a"] * x + params["b"][None]) + params["c"] * t[:, None] / 1000


def denoise(params, x, sigma, epsilon):
    """Karras et al. 2022, table 1, with sigma - epsilon for sigma as the boundary condition wants; float64."""
    shifted, data = sigma - epsilon, 0.5
    c_skip, c_out = data**2 / (shifted**2 + data**2), data * shifted / np.sqrt(sigma**2 + data**2)
    scaled = x / np.sqrt(sigma**2 + data**2)[:, None]
    return c_skip[:, None] * x + c_out[:, None] * network(params, scaled, 250 * np.log(sigma), np)


def grid(n):
    return (80 ** (1 / 7) + np.arange(n) / (n - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7


def drawn(scales):
    """The levels and the noise that the losses draw from KEY."""
    level_key, noise_key = jax.random.split(KEY)
    index = np.asarray(jax.random.randint(level_key, (16,), 0, scales - 1))
    levels = grid(scales)
    return (
        levels[index],
        levels[index + 1],
        np.asarray(jax.random.normal(noise_key, (16, 3)), np.float64),
    )


def l2(a, b):
    return np.mean((a - b) ** 2)


def training_reference(params, scales):
    higher, lower, noise = drawn(scales)
    data, target = np.asarray(DATA["data"], np.float64), wide(TARGET)
    estimate = denoise(params, data + higher[:, None] * noise, higher, 0.002)
    return l2(estimate, denoise(target, data + lower[:, None] * noise, lower, 0.002))


def distillation_reference(params, scales, solver):
    higher, lower, noise = drawn(scales)
    noisy = np.asarray(DATA["data"], np.float64) + higher[:, None] * noise
    teacher, gap = wide(TEACHER), (lower - higher)[:, None]

    def slope(x, sigma):
        return (x - denoise(teacher, x, sigma, 0.0)) / sigma[:, None]

    first = slope(noisy, higher)
    earlier = noisy + gap * first
    if solver == "heun":
        earlier = noisy + gap * (first + slope(earlier, lower)) / 2
    estimate, target = (
        denoise(params, noisy, higher, 0.002),
        denoise(wide(TARGET), earlier, lower, 0.002),
    )
    return l2(estimate, target)


def wide(params):
    return {name: np.asarray(value, np.float64) for name, value in params.items()}


def finite_differences(f, params, h=1e-6):
    gradient = {}
    for name, value in wide(params).items():
        slopes = []
        for unit in np.eye(value.size).reshape(value.size, *value.shape):
            up, down = ({**wide(params), name: value + s * h * unit} for s in (1, -1))
            slopes.append((f(up) - f(down)) / (2 * h))
        gradient[name] = np.reshape(slopes, value.shape)
    return gradient


def check(loss, config, fixed, reference):
    def value(params):
        return loss(KEY, network, params, fixed, DATA, jnp.int32(0), config)[0]

    found, gradient = jax.value_and_grad(value)(PARAMS)
    assert found == pytest.approx(reference(wide(PARAMS)), rel=1e-4)
    for name, expected in finite_differences(reference, PARAMS).items():
        np.testing.assert_allclose(gradient[name], expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("scales", [2, 9, 40])
def test_consistency_training_and_its_gradient(scales):
    config = losses.LossConfig(SCHEDULER, 100, s0=scales, s1=scales, metric="l2")
    # At step 0 the grid has s0 levels.
    check(
        losses.consistency_training_loss,
        config,
        TARGET,
        lambda params: training_reference(params, scales),
    )


@pytest.mark.parametrize("solver", ["euler", "heun"])
@pytest.mark.parametrize("scales", [2, 18])
def test_consistency_distillation_and_its_gradient(solver, scales):
    config = losses.LossConfig(SCHEDULER, 100, s1=scales, solver=solver, metric="l2")
    reference = partial(distillation_reference, scales=scales, solver=solver)
    check(losses.consistency_distillation_loss, config, (TARGET, TEACHER), reference)


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_the_teachers_step_is_exact_for_gaussian_data(solver):
    """For N(0, s^2) the slope is x sigma / (s^2 + sigma^2), so a step multiplies x by a known number."""
    config = losses.LossConfig(SCHEDULER, 100, solver=solver)
    x = jnp.array([[1.0, -2.0], [0.3, 4.0], [5.0, 0.0]])
    high, low = np.array([80.0, 2.0, 0.1]), np.array([60.0, 1.5, 0.002])
    for s in (0.0, 0.7):
        rate = [sigma / (s**2 + sigma**2) for sigma in (high, low)]
        factor = 1 + (low - high) * rate[0]
        if solver == "heun":
            factor = 1 + (low - high) / 2 * (rate[0] + rate[1] * factor)

        def slope(x, sigma, s=s):
            return x * (sigma / (s**2 + sigma**2))[:, None]

        moved = losses.ode_step(config, slope, x, jnp.float32(high), jnp.float32(low))
        np.testing.assert_allclose(moved, x * factor[:, None], rtol=1e-4, atol=1e-7)
        if s == 0:  # a single datum: paths are straight, and one step of any size is exact
            np.testing.assert_allclose(factor, low / high, rtol=1e-9)


def gaussian_teacher(variance, x, t):
    sigma = jnp.exp(t / 250)[:, None]
    noisy = x / SCHEDULER.get_input_scaling(sigma)
    c_skip, c_out = SCHEDULER.get_scalings(sigma)
    return (variance / (variance + jnp.square(sigma)) - c_skip) * noisy / c_out


def test_progressive_distillation_wants_two_steps_in_one():
    """On Gaussian data two Euler steps multiply x by a known number; the loss is that of any x0 but theirs."""
    variance, config = 0.49, losses.LossConfig(SCHEDULER, 100, s0=1, s1=4)
    level_key, noise_key = jax.random.split(KEY)
    index = np.asarray(jax.random.randint(level_key, (16,), 0, 4))
    levels = grid(9)
    high, middle, low = levels[2 * index], levels[2 * index + 1], levels[2 * index + 2]
    noisy = DATA["data"] + high[:, None] * np.asarray(jax.random.normal(noise_key, (16, 3)))
    factor = (1 + (middle - high) * high / (variance + high**2)) * (
        1 + (low - middle) * middle / (variance + middle**2)
    )
    # One step to the same place: x + (low - high) (x - x0) / high = factor x.
    target = noisy * (1 - high * (factor - 1) / (low - high))[:, None]
    for shift in (0.0, 0.3):

        def student(params, x, t, shift=shift):
            sigma = jnp.exp(t / 250)
            c_skip, c_out = (c[:, None] for c in SCHEDULER.get_scalings(sigma))
            return (target + shift - c_skip * noisy) / c_out

        config = dataclasses.replace(config, teacher_fn=gaussian_teacher)
        args = (KEY, student, None, (None, jnp.float32(variance)), DATA, jnp.int32(0), config)
        expected = np.mean(np.maximum(1 / high**2, 1)) * shift**2
        assert losses.progressive_distillation_loss(*args)[0] == pytest.approx(
            expected, rel=2e-3, abs=1e-5
        )


def test_improved_training_weighs_by_the_gap_and_draws_lognormal_pairs():
    scales, config = (
        11,
        losses.LossConfig(SCHEDULER, 100, p_mean=-1.1, p_std=2.0, s0=10, s1=80, huber_c=0.1),
    )
    seen = []

    def spy(estimate, target):
        seen.append((estimate, target))
        return losses.pseudo_huber(estimate - target, 0.1)

    plain = losses.improved_consistency_loss(
        KEY, network, PARAMS, TARGET, DATA, jnp.int32(0), config
    )[0]
    config = dataclasses.replace(config, metric=spy)
    loss, metrics = losses.improved_consistency_loss(
        KEY, network, PARAMS, TARGET, DATA, jnp.int32(0), config
    )
    assert plain == loss and metrics["num_scales"] == scales
    level_key, noise_key = jax.random.split(KEY)
    from cmjax.training.discretization import lognormal_index

    index = np.asarray(
        lognormal_index(level_key, 16, -1.1, 2.0, jnp.int32(scales), 0.002, 80.0, 7.0)
    )
    higher, lower = grid(scales)[index], grid(scales)[index + 1]
    noise = np.asarray(jax.random.normal(noise_key, (16, 3)), np.float64)
    estimate = denoise(wide(PARAMS), DATA["data"] + higher[:, None] * noise, higher, 0.002)
    target = denoise(wide(TARGET), DATA["data"] + lower[:, None] * noise, lower, 0.002)
    np.testing.assert_allclose(seen[0][0], estimate, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(seen[0][1], target, rtol=1e-4, atol=1e-5)
    norm = np.sum((estimate - target) ** 2, -1)
    expected = np.mean((np.sqrt(norm + 0.1**2 * 3) - 0.1 * 3**0.5) / (higher - lower))
    assert loss == pytest.approx(expected, rel=1e-3)


def test_metrics():
    a, b = jnp.array([[1.0, 2.0], [0.0, 0.0]]), jnp.array([[0.0, 4.0], [0.0, 0.0]])
    from cmjax.training.losses.base import distance

    def config(metric, **options):
        return losses.LossConfig(SCHEDULER, 1, metric=metric, **options)

    np.testing.assert_allclose(distance(config("l1"), a, b), [1.5, 0])
    np.testing.assert_allclose(distance(config("l2"), a, b), [2.5, 0])
    np.testing.assert_allclose(distance(config("pseudo_huber", huber_c=0.0), a, b), [5**0.5, 0])
    np.testing.assert_allclose(distance(config(lambda a, b: jnp.abs(a - b)[:, 0]), a, b), [1, 0])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"metric": "lpips"}, "metric must be 'l1' or 'l2' or 'pseudo_huber', got 'lpips'"),
        ({"solver": "dpm"}, "solver must be 'heun' or 'euler', got 'dpm'"),
        ({"p_std": -1.0}, "p_std must be a number from 1e-06 to 50, got -1.0"),
    ],
)
def test_settings_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        losses.LossConfig(SCHEDULER, 100, **options)


def test_grids_that_cannot_grow():
    config = losses.LossConfig(SCHEDULER, 100, s0=20, s1=10)
    for loss in (losses.consistency_training_loss, losses.improved_consistency_loss):
        with pytest.raises(ValueError, match="s1 must be at least 20 for this loss, got 10"):
            loss(KEY, network, PARAMS, TARGET, DATA, jnp.int32(0), config)
    config = dataclasses.replace(config, s0=1, s1=1)
    with pytest.raises(ValueError, match="s1 must be at least 2 for this loss, got 1"):
        losses.consistency_distillation_loss(
            KEY, network, PARAMS, (TARGET, TEACHER), DATA, jnp.int32(0), config
        )
    value = losses.consistency_training_loss(
        KEY, network, PARAMS, TARGET, DATA, jnp.int32(0), config
    )[0]
    assert np.isfinite(value)


def test_schedulers_without_a_preconditioning_of_ours_are_refused():
    with pytest.raises(
        ValueError,
        match="scheduler must be a CMStochasticIterativeScheduler or an SCMScheduler, got LCM",
    ):
        losses.LossConfig(LCMScheduler(), 100)


def test_angles_have_no_grid():
    config = losses.LossConfig(SCMScheduler(), 100)
    with pytest.raises(
        ValueError, match="scheduler must be a CMStochasticIterativeScheduler for this loss"
    ):
        losses.consistency_training_loss(KEY, network, PARAMS, TARGET, DATA, jnp.int32(0), config)


def test_an_unknown_recipe_suggests_one():
    with pytest.raises(ValueError, match="no loss 'itc'; did you mean 'ict'"):
        losses.recipe("itc")

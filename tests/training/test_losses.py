"""Losses on data whose answers are known in closed form."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cmjax
from cmjax import testing
from cmjax.guidance import autoguidance
from cmjax.parametrization import consistency_function, edm_denoiser
from cmjax.training import losses

SCHEDULER = cmjax.CMStochasticIterativeScheduler(clip_denoised=False)
CONFIG = losses.LossConfig(SCHEDULER, total_steps=1000)
KEY = jax.random.key(0)
STD = 0.7


def gaussian_denoiser(params, x, t):
    """The network of the exact denoiser D(x, sigma) = params x / (std^2 + sigma^2), params = std^2."""
    sigma = jnp.exp(t / 250)[:, None]
    noisy = x / SCHEDULER.get_input_scaling(sigma)
    c_skip, c_out = SCHEDULER.get_scalings(sigma)
    return (params / (STD**2 + jnp.square(sigma)) - c_skip) * noisy / c_out


def data(count, dimension=4):
    return {"data": STD * jax.random.normal(jax.random.key(5), (count, dimension))}


def test_denoising_loss_is_least_at_the_exact_denoiser():
    def loss(scale):
        return losses.denoising_loss(
            KEY, gaussian_denoiser, scale * STD**2, None, data(100_000), jnp.int32(0), CONFIG
        )[0]

    values = [float(loss(jnp.float32(s))) for s in (0.95, 1.0, 1.05)]
    assert values[1] < values[0] and values[1] < values[2]


def test_denoising_weight_makes_the_untrained_loss_one():
    # D = c_skip x has weighted error 1 at every level when the data's std is sigma_data (Karras et al., app. B.6).
    batch = {"data": 0.5 * jax.random.normal(jax.random.key(5), (50_000, 4))}
    loss, _ = losses.denoising_loss(
        KEY, lambda p, x, t: 0 * x, None, None, batch, jnp.int32(0), CONFIG
    )
    assert loss == pytest.approx(
        1, abs=0.02
    )  # six standard errors of sqrt(2 / 200,000): a false alarm in 5e8


@pytest.mark.parametrize("name", ["consistency_training_loss", "easy_consistency_loss"])
def test_consistency_losses_fall_towards_the_consistency_function_as_levels_close_in(name):
    """With one datum the exact f is that datum everywhere, so both losses vanish at it and only there."""
    datum = jnp.array([[0.3, -0.8]])
    batch = {"data": jnp.repeat(datum, 4096, 0)}
    loss = getattr(losses, name)

    def network(params, x, t):  # f = params * datum, through the preconditioning
        sigma = jnp.exp(t / 250)[:, None]
        c_skip, c_out = SCHEDULER.get_scalings_for_boundary_condition(sigma)
        noisy = x / SCHEDULER.get_input_scaling(sigma)
        return (params * datum - c_skip * noisy) / jnp.maximum(c_out, 1e-9)

    for step in (0, 500, 1000):
        exact = loss(KEY, network, jnp.float32(1), jnp.float32(1), batch, jnp.int32(step), CONFIG)[
            0
        ]
        wrong = loss(
            KEY, network, jnp.float32(1.5), jnp.float32(1), batch, jnp.int32(step), CONFIG
        )[0]
        assert np.isfinite(exact) and exact < 0.05 * wrong


def test_distillation_is_at_its_fixed_point_for_the_exact_consistency_function():
    """Exact teacher and exact student on Gaussian data: only the Heun step's error is left, falling as 1/N^2."""
    student, student_params = testing.gaussian_consistency_model(SCHEDULER, 0.0, STD)

    def loss(scales):
        config = losses.LossConfig(
            SCHEDULER, 1000, s1=scales, huber_c=0.0, teacher_fn=gaussian_denoiser
        )
        teacher = jnp.float32(STD**2)
        args = (
            KEY,
            student,
            student_params,
            (student_params, teacher),
            data(4096),
            jnp.int32(0),
            config,
        )
        return float(losses.consistency_distillation_loss(*args)[0])

    coarse, middle, fine = loss(10), loss(20), loss(40)
    assert coarse < 0.2
    assert (
        coarse / middle > 4 and middle / fine > 4
    )  # order 2 over the whole grid is order 3 a step


def test_guidance_extrapolates_the_denoised_images():
    x, sigma = data(8)["data"], jnp.linspace(0.1, 40, 8)
    good, weak = (
        edm_denoiser(gaussian_denoiser, jnp.float32(p), SCHEDULER, x, sigma) for p in (0.5, 0.3)
    )
    for scale in (1, 2, 3.5):
        network = autoguidance(gaussian_denoiser, scale)
        both = edm_denoiser(network, (jnp.float32(0.5), jnp.float32(0.3)), SCHEDULER, x, sigma)
        np.testing.assert_allclose(both, weak + scale * (good - weak), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss", [losses.consistency_training_loss, losses.easy_consistency_loss])
def test_the_target_gets_no_gradient(loss):
    def value(target):
        return loss(KEY, network, jnp.float32(0.3), target, data(64), jnp.int32(500), CONFIG)[0]

    def network(params, x, t):
        return params * jnp.tanh(x)

    assert jax.grad(value)(jnp.float32(0.4)) == 0
    assert abs(value(jnp.float32(0.4)) - value(jnp.float32(0.9))) > 1e-4  # though it matters


def test_conditioning_reaches_the_network():
    def network(params, x, t, class_labels):
        return x * class_labels[:, None].astype(x.dtype)

    batch = {**data(8), "class_labels": jnp.arange(8)}
    for loss in (
        losses.denoising_loss,
        losses.consistency_training_loss,
        losses.easy_consistency_loss,
    ):
        args = (KEY, network, None, None)
        a = loss(*args, batch, jnp.int32(3), CONFIG)[0]
        b = loss(*args, {**batch, "class_labels": jnp.zeros(8, jnp.int32)}, jnp.int32(3), CONFIG)[0]
        assert a != b


def test_levels_are_lognormal_or_uniform_on_the_karras_grid():
    # Standard errors are 0.0038, 0.0027 and at most 0.0016: six of them or more, a false alarm in 5e8.
    lognormal = np.log(losses.draw_levels(KEY, 100_000, CONFIG))
    assert lognormal.mean() == pytest.approx(-1.2, abs=0.03) and lognormal.std() == pytest.approx(
        1.2, abs=0.03
    )
    config = losses.LossConfig(SCHEDULER, 1000, uniform_fraction=1.0)
    sigma = np.asarray(losses.draw_levels(KEY, 100_000, config), np.float64)
    ramp = (sigma ** (1 / 7) - 80 ** (1 / 7)) / (0.002 ** (1 / 7) - 80 ** (1 / 7))
    quantiles = np.quantile(ramp, [0.1, 0.5, 0.9])
    np.testing.assert_allclose(quantiles, [0.1, 0.5, 0.9], atol=0.01)
    assert sigma.min() > 0.002 and sigma.max() <= 80.001


def test_pseudo_huber_is_quadratic_near_zero_and_the_norm_far_away():
    error = jnp.array([[3.0, 4.0]])
    assert losses.pseudo_huber(error, 0.0)[0] == pytest.approx(5)
    assert losses.pseudo_huber(1e-3 * error, 1.0)[0] == pytest.approx(
        25e-6 / (2 * 2**0.5), rel=0.02
    )
    for c in (0.01, 0.0):
        gradient = jax.grad(lambda e, c=c: losses.pseudo_huber(e, c).sum())(jnp.zeros((1, 2)))
        np.testing.assert_array_equal(gradient, [[0, 0]])


def test_easy_consistency_stays_finite_when_levels_meet():
    config = losses.LossConfig(SCHEDULER, total_steps=1000, stages=8.0, q=256.0, huber_c=0.0)

    def value(params):
        args = (
            KEY,
            lambda p, x, t: p * jnp.tanh(x),
            params,
            params,
            data(64),
            jnp.int32(1000),
            config,
        )
        return losses.easy_consistency_loss(*args)[0]

    loss, gradient = jax.value_and_grad(value)(jnp.float32(0.3))
    assert np.isfinite(loss) and np.isfinite(gradient) and gradient != 0


@pytest.mark.parametrize("f", [consistency_function, edm_denoiser])
def test_losses_and_sampling_share_one_preconditioning(f):
    """The function that training sees is what scale_input and denoise make of the same network."""
    network = partial(lambda p, x, t: jnp.tanh(x) + 1e-3 * t[:, None])
    x = jax.random.normal(KEY, (3, 4))
    state = SCHEDULER.set_timesteps(timesteps=[22, 5])
    output = network(None, SCHEDULER.scale_input(state, x), state.timesteps[:1].repeat(3))
    sampled = SCHEDULER.denoise(state, output, x)
    trained = f(network, None, SCHEDULER, x, state.sigmas[:1].repeat(3))
    # EDM's scalings differ from the boundary condition's by sigma_min / sigma.
    tolerance = 1e-5 if f is consistency_function else 3 * 0.002 / float(state.sigma)
    np.testing.assert_allclose(trained, sampled, rtol=tolerance, atol=tolerance)

"""Losses of infinitely close levels: tangents by finite differences, fixed points, CT's limit."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cmjax
from cmjax import testing
from cmjax.parametrization import consistency_function, edm_denoiser, trigflow_network
from cmjax.schedulers import SCMScheduler
from cmjax.training import losses
from tests.support.training import (
    EDM,
    KEY,
    STD,
    evaluate,
    gaussian_batch,
    gaussian_denoiser,
    value,
    wide,
)

TRIGFLOW = SCMScheduler()
Training = losses.SimplifiedConsistencyTraining
Distillation = losses.SimplifiedConsistencyDistillation


def trigflow_gaussian(variance, x, t):
    """F of N(0, variance)'s consistency function sqrt(variance / (variance + sigma^2)) x."""
    cos, sin, x = jnp.cos(t)[:, None], jnp.sin(t)[:, None], 0.5 * x
    shrink = jnp.sqrt(variance / (variance * cos**2 + 0.25 * sin**2))
    return (cos - shrink) * x / (0.5 * sin)


def trigflow_gaussian_teacher(variance, x, t):
    """F of the denoiser: x0 = variance / (variance + sigma^2) x / cos t."""
    cos, sin, x = jnp.cos(t)[:, None], jnp.sin(t)[:, None], 0.5 * x
    return (cos - variance * cos / (variance * cos**2 + 0.25 * sin**2)) * x / (0.5 * sin)


def tiny(params, x, t, xp=jnp):
    return (
        xp.tanh(
            params["a"] * x + params["b"][None] + 0.3 * xp.sin(2 * t)[:, None] * x[:, ::-1]
        )
        + params["shift"]
    )


def tiny_params(count):
    return {
        "a": jnp.float32(0.7),
        "b": jnp.array([0.1, -0.2, 0.3]),
        "shift": jnp.zeros((count, 3)),
    }


def reference_tangents(step, loss, teacher=None):
    """Returns `tiny`'s normalized tangents f64[B, 3] by central differences, and the norms.

    Lu and Song 2024, Algorithm 1.
    """
    params = wide(tiny_params(8))
    level_key, noise_key = jax.random.split(KEY)
    sigma = np.asarray(losses.draw_sigmas(level_key, 8, TRIGFLOW, loss.p_mean, loss.p_std))
    t = np.arctan(sigma.astype(np.float64) / 0.5)
    cos, sin = np.cos(t)[:, None], np.sin(t)[:, None]
    x0 = np.asarray(gaussian_batch(8)["data"], np.float64)
    noise = 0.5 * np.asarray(jax.random.normal(noise_key, (8, 3)), np.float64)
    x = cos * x0 + sin * noise
    dx = cos * noise - sin * x0 if teacher is None else 0.5 * teacher(x / 0.5, t)

    def F(x, t):
        return tiny(params, x / 0.5, t, np)

    h = 1e-5
    dF = (F(x + h * dx, t + h) - F(x - h * dx, t - h)) / (2 * h)
    warmup = min(1, step / loss.tangent_warmup_steps)
    g = -(cos**2) * (0.5 * F(x, t) - dx) - warmup * cos * sin * (x + 0.5 * dF)
    norm = np.linalg.norm(g, axis=-1, keepdims=True)
    size = norm if loss.tangent_size == "norm" else norm / np.sqrt(3)
    return g / (size + loss.tangent_c), norm


@pytest.mark.parametrize(
    ("teacher", "size"), [(False, "norm"), (False, "rms"), (True, "norm")]
)
def test_scm_tangents_equal_finite_differences(teacher, size):
    """The gradient by a shift of every output is -2/(B D) of the normalized tangent: all of it."""
    params = tiny_params(8)
    loss = Training(TRIGFLOW, tangent_warmup_steps=100, tangent_size=size)
    teacher_params, reference = None, None
    if teacher:
        loss = Distillation(
            TRIGFLOW, tangent_warmup_steps=100, teacher_fn=lambda p, x, t: jnp.sin(p * x)
        )
        teacher_params = jnp.float32(0.9)
        reference = lambda x, t: np.sin(0.9 * x)  # noqa: E731

    @jax.jit
    def at(p, step):
        f = partial(evaluate, loss, tiny, batch=gaussian_batch(8), step=step)
        f = partial(f, target=params, teacher=teacher_params)
        return jax.value_and_grad(lambda p: f(params=p), has_aux=True)(p)

    for step in (0, 30, 500):
        (found, metrics), gradient = at(params, step)
        expected, norm = reference_tangents(step, loss, reference)
        np.testing.assert_allclose(
            -gradient["shift"] * 8 * 3 / 2, expected, rtol=1e-4, atol=1e-4
        )
        assert metrics["tangent_norm"] == pytest.approx(norm.mean(), rel=1e-4)
        assert found == pytest.approx(np.mean(expected**2), rel=1e-4)


def gaussian(scheduler):
    """The exact student, its parameters and the exact teacher, for N(0, STD^2)."""
    if scheduler is TRIGFLOW:
        return trigflow_gaussian, jnp.float32(STD**2), trigflow_gaussian_teacher
    return *testing.gaussian_consistency_model(EDM, 0.0, STD), gaussian_denoiser


def largest(tree):
    return max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("scheduler", [EDM, TRIGFLOW])
def test_scm_distillation_vanishes_at_the_exact_consistency_function(scheduler):
    network, params, teacher = gaussian(scheduler)
    loss = Distillation(
        scheduler, p_mean=0.0, p_std=1.5, tangent_warmup_steps=1, teacher_fn=teacher
    )

    @jax.jit
    @jax.value_and_grad
    def at(p, scale):
        batch = gaussian_batch(512)
        return value(
            loss,
            network,
            p,
            batch,
            target=params,
            teacher=scale * jnp.float32(STD**2),
            step=9,
        )

    found, gradient = at(params, 1.0)
    wrong, wrong_gradient = at(params, 1.2)  # the teacher of other data
    assert found < 1e-7 and wrong > 1e-2
    assert largest(gradient) < 1e-3 * largest(wrong_gradient)


@pytest.mark.parametrize("scheduler", [EDM, TRIGFLOW])
def test_scm_training_is_stationary_at_the_exact_consistency_function(scheduler):
    """Without a teacher the tangent is right on average; not normalized, so that averages hold."""
    network, params, _ = gaussian(scheduler)
    loss = Training(scheduler, p_mean=0.0, p_std=1.0, tangent_warmup_steps=1, tangent_c=1e6)

    @jax.jit
    def gradient(std):
        moved = std**2 if scheduler is TRIGFLOW else {**params, "std": std}
        found = jax.grad(
            lambda p: value(
                loss, network, p, gaussian_batch(200_000, 1), target=moved, step=9
            )
        )(moved)
        return 1e6 * (found if scheduler is TRIGFLOW else found["std"])

    low, exact, high = (float(gradient(jnp.float32(s * STD))) for s in (0.9, 1.0, 1.1))
    # Measured: the slopes on both sides are 20 to 50 times as large and point at it.
    assert low < 0 < high and abs(exact) < 0.1 * min(-low, high)


def test_the_closed_form_has_no_tangent_along_its_path():
    """d/dt of f(x_t, t) along the ODE is zero: by jvp of TrigFlow's F, as sCM takes it."""
    network, params, teacher = gaussian(EDM)
    f = trigflow_network(network, EDM)
    slope = trigflow_network(teacher, EDM, edm_denoiser)
    t, x = jnp.linspace(0.1, 1.5, 12), jax.random.normal(KEY, (12, 3))
    dx = 0.5 * slope(jnp.float32(STD**2), x, t)
    value, tangent = jax.jvp(lambda x, t: f(params, x, t), (x, t), (dx, jnp.ones(12)))
    cos, sin = jnp.cos(t)[:, None], jnp.sin(t)[:, None]
    total = -cos * (0.5 * value - dx) - sin * (x + 0.5 * tangent)
    np.testing.assert_allclose(total, 0, atol=1e-4)


def test_trigflow_and_edm_are_the_same_function():
    x, sigma = jax.random.normal(KEY, (5, 3)), jnp.array([0.01, 0.2, 1.0, 10.0, 70.0])
    network = trigflow_network(gaussian_denoiser, EDM, edm_denoiser)
    as_trigflow = edm_denoiser(
        lambda p, x, t: network(p, 0.5 * x, t), jnp.float32(0.3), TRIGFLOW, x, sigma
    )
    expected = edm_denoiser(gaussian_denoiser, jnp.float32(0.3), EDM, x, sigma)
    np.testing.assert_allclose(as_trigflow, expected, rtol=1e-4, atol=1e-5)
    # sampling with the scheduler is the same preconditioning
    state = TRIGFLOW.set_timesteps(timesteps=[1.2])
    noisy = jnp.cos(1.2) * x
    output = trigflow_gaussian(0.49, TRIGFLOW.scale_input(state, noisy), jnp.full(5, 1.2))
    level = jnp.full(5, 0.5 * np.tan(1.2), jnp.float32)
    np.testing.assert_allclose(
        TRIGFLOW.denoise(state, output, noisy),
        consistency_function(trigflow_gaussian, 0.49, TRIGFLOW, x, level),
        rtol=1e-4,
    )


def test_discrete_training_tends_to_the_continuous_loss():
    """N - 1 times the gradient of CT on N levels tends to the gradient of the continuous loss."""
    params = {"a": jnp.float32(0.7), "b": jnp.array([0.1]), "c": jnp.float32(0.2)}

    def network(params, x, t):
        return (
            jnp.tanh(params["a"] * x + params["b"][None]) + params["c"] * t[:, None] / 1000
        )

    scheduler = cmjax.CMStochasticIterativeScheduler(clip_denoised=False, sigma_max=10.0)

    def gradient(loss):
        batch = gaussian_batch(400_000, 1)
        grads = jax.jit(jax.grad(lambda p: value(loss, network, p, batch, target=params)))(
            params
        )
        return np.concatenate([np.ravel(g) for g in jax.tree.leaves(grads)])

    limit = gradient(losses.ContinuousConsistencyTraining(scheduler))
    errors = []
    for n in (5, 20, 320):
        discrete = losses.ConsistencyTraining(scheduler, 1, n, n, metric=losses.L2())
        difference = (n - 1) * gradient(discrete) - limit
        errors.append(np.linalg.norm(difference) / np.linalg.norm(limit))
    assert errors[0] > 2 * errors[1] and errors[2] < 0.03, errors


def test_continuous_distillation_vanishes_at_the_exact_consistency_function():
    network, params, teacher = gaussian(EDM)
    loss = losses.ContinuousConsistencyDistillation(EDM, teacher_fn=teacher)

    @jax.jit
    def at(scale):
        variance = scale * jnp.float32(STD**2)
        return value(loss, network, params, gaussian_batch(512), teacher=variance)

    assert at(1.0) < 1e-5 * at(1.5)


def test_adaptive_weights_settle_where_every_level_counts_the_same():
    """exp(w) e - w is least at w = -log e, where exp(w) e = 1."""
    sigma = jnp.exp(jnp.linspace(-3, 3, 50))
    error = 0.2 + 0.1 * jnp.cos(jnp.log(sigma) / 4)
    weight = losses.with_level_weight(None).level_weight
    np.testing.assert_array_equal(
        losses.weigh_levels(weight, error, sigma), error
    )  # w starts at 0
    gradient = jax.jit(jax.grad(lambda w: losses.weigh_levels(w, error, sigma).mean()))
    for _ in range(2000):
        weight -= 0.05 * gradient(weight)
    weighted = losses.weigh_levels(weight, error, sigma)
    np.testing.assert_allclose(weighted, 1 + jnp.log(error), atol=0.01)


def test_an_adaptive_weighting_is_part_of_the_parameters():
    loss = Training(TRIGFLOW, adaptive_weight=True)
    trained = loss.prepare_params({"a": 1})
    assert isinstance(trained, losses.WeightedParams) and loss.network_params(trained) == {
        "a": 1
    }
    assert Training(TRIGFLOW).prepare_params({"a": 1}) == {"a": 1}
    with pytest.raises(ValueError, match="adaptive_weight=True .*loss.prepare_params"):
        value(loss, tiny, tiny_params(8), gaussian_batch(8))

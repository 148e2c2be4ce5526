"""Losses of infinitely close levels: tangents against finite differences, fixed points, and the limit of CT."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cmjax
from cmjax import testing
from cmjax.parametrization import consistency_function, edm_denoiser, trigflow_network
from cmjax.schedulers import SCMScheduler
from cmjax.training import losses

EDM = cmjax.CMStochasticIterativeScheduler(clip_denoised=False)
TRIGFLOW = SCMScheduler()
KEY = jax.random.key(0)
STD = 0.7


def data(count, dimension=3):
    return {"data": STD * jax.random.normal(jax.random.key(5), (count, dimension))}


def trigflow_gaussian(variance, x, t):
    """F of the consistency function for N(0, variance): x0 = sqrt(variance / (variance + sigma^2)) x / cos t."""
    cos, sin, x = jnp.cos(t)[:, None], jnp.sin(t)[:, None], 0.5 * x
    shrink = jnp.sqrt(variance / (variance * cos**2 + 0.25 * sin**2))
    return (cos - shrink) * x / (0.5 * sin)


def trigflow_gaussian_teacher(variance, x, t):
    """F of the denoiser: x0 = variance / (variance + sigma^2) x / cos t."""
    cos, sin, x = jnp.cos(t)[:, None], jnp.sin(t)[:, None], 0.5 * x
    return (cos - variance * cos / (variance * cos**2 + 0.25 * sin**2)) * x / (0.5 * sin)


def edm_gaussian_teacher(variance, x, t):
    sigma = jnp.exp(t / 250)[:, None]
    noisy = x / EDM.get_input_scaling(sigma)
    c_skip, c_out = EDM.get_scalings(sigma)
    return (variance / (variance + jnp.square(sigma)) - c_skip) * noisy / c_out


def tiny(params, x, t, xp=jnp):
    return (
        xp.tanh(params["a"] * x + params["b"][None] + 0.3 * xp.sin(2 * t)[:, None] * x[:, ::-1])
        + params["shift"]
    )


def tiny_params(count):
    return {"a": jnp.float32(0.7), "b": jnp.array([0.1, -0.2, 0.3]), "shift": jnp.zeros((count, 3))}


def reference_tangents(step, config, teacher=None):
    """Normalised tangents f64[B, 3] of `tiny` by central differences (Lu & Song 2024, Algorithm 1), and |g|."""
    params = {name: np.asarray(value, np.float64) for name, value in tiny_params(8).items()}
    level_key, noise_key = jax.random.split(KEY)
    sigma = np.asarray(losses.draw_levels(level_key, 8, config), np.float64)
    noise = 0.5 * np.asarray(jax.random.normal(noise_key, (8, 3)), np.float64)
    t, x0 = np.arctan(sigma / 0.5), np.asarray(data(8)["data"], np.float64)
    cos, sin = np.cos(t)[:, None], np.sin(t)[:, None]
    x = cos * x0 + sin * noise
    dx = cos * noise - sin * x0 if teacher is None else 0.5 * teacher(x / 0.5, t)

    def F(x, t):
        return tiny(params, x / 0.5, t, np)

    h = 1e-5
    dF = (F(x + h * dx, t + h) - F(x - h * dx, t - h)) / (2 * h)
    warmup = min(1, step / config.tangent_warmup)
    g = -(cos**2) * (0.5 * F(x, t) - dx) - warmup * cos * sin * (x + 0.5 * dF)
    norm = np.linalg.norm(g, axis=-1, keepdims=True)
    return g / (norm + config.tangent_c), norm


@pytest.mark.parametrize("step", [0, 30, 500])
@pytest.mark.parametrize("teacher", [False, True])
def test_scm_tangents_equal_finite_differences(step, teacher):
    """The gradient by a shift of every output is -2/(B D) of the normalised tangent: all of it is compared."""
    config = losses.LossConfig(TRIGFLOW, 1000, p_mean=-1.0, p_std=1.4, tangent_warmup=100)
    params, loss = tiny_params(8), losses.scm_training_loss
    fixed, reference = params, None
    if teacher:
        loss, fixed = losses.scm_distillation_loss, (params, jnp.float32(0.9))
        config = dataclasses.replace(config, teacher_fn=lambda p, x, t: jnp.sin(p * x))
        reference = lambda x, t: np.sin(0.9 * x)  # noqa: E731
    (value, metrics), gradient = jax.value_and_grad(
        lambda p: loss(KEY, tiny, p, fixed, data(8), jnp.int32(step), config), has_aux=True
    )(params)
    expected, norm = reference_tangents(step, config, reference)
    np.testing.assert_allclose(-gradient["shift"] * 8 * 3 / 2, expected, rtol=1e-4, atol=1e-4)
    assert metrics["tangent_norm"] == pytest.approx(norm.mean(), rel=1e-4)
    assert value == pytest.approx(np.mean(expected**2), rel=1e-4)


def gaussian(scheduler):
    """The exact student, its parameters, the exact teacher and its parameters, for N(0, STD^2)."""
    if scheduler is TRIGFLOW:
        return (
            trigflow_gaussian,
            jnp.float32(STD**2),
            trigflow_gaussian_teacher,
            jnp.float32(STD**2),
        )
    return (
        *testing.gaussian_consistency_model(EDM, 0.0, STD),
        edm_gaussian_teacher,
        jnp.float32(STD**2),
    )


@pytest.mark.parametrize("scheduler", [EDM, TRIGFLOW])
def test_scm_distillation_vanishes_at_the_exact_consistency_function(scheduler):
    network, params, teacher, teacher_params = gaussian(scheduler)
    config = losses.LossConfig(
        scheduler, 1000, p_mean=0.0, p_std=1.5, tangent_warmup=1, teacher_fn=teacher
    )

    def loss(params, scale):
        args = (
            KEY,
            network,
            params,
            (params, scale * teacher_params),
            data(512),
            jnp.int32(9),
            config,
        )
        return losses.scm_distillation_loss(*args)[0]

    value, gradient = jax.value_and_grad(loss)(params, 1.0)
    wrong, wrong_gradient = jax.value_and_grad(loss)(params, 1.2)  # the teacher of other data
    assert value < 1e-7 and wrong > 1e-2
    size = lambda tree: max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(tree))  # noqa: E731
    assert size(gradient) < 1e-3 * size(wrong_gradient)


@pytest.mark.parametrize("scheduler", [EDM, TRIGFLOW])
def test_scm_training_is_stationary_at_the_exact_consistency_function(scheduler):
    """Without a teacher the tangent is right on average alone; not normalised, so that averages are kept."""
    network, params, *_ = gaussian(scheduler)
    config = losses.LossConfig(
        scheduler, 1000, p_mean=0.0, p_std=1.0, tangent_warmup=1, tangent_c=1e6
    )

    def gradient(std):
        moved = jax.tree.map(lambda p: p, params)
        if scheduler is TRIGFLOW:
            moved = jnp.float32(std**2)
        else:
            moved = {**moved, "std": jnp.float32(std)}
        f = jax.jit(
            jax.grad(
                lambda p: losses.scm_training_loss(
                    KEY, network, p, moved, data(200_000, 1), jnp.int32(9), config
                )[0]
            )
        )
        return 1e6 * float(f(moved) if scheduler is TRIGFLOW else f(moved)["std"])

    low, exact, high = gradient(0.9 * STD), gradient(STD), gradient(1.1 * STD)
    # Measured: the slopes beside it are 20 to 50 times as large and point at it.
    assert low < 0 < high and abs(exact) < 0.1 * min(-low, high)


def test_the_closed_form_has_no_tangent_along_its_path():
    """d/dt of f(x_t, t) along the ODE is zero: by jvp of TrigFlow's F, as sCM takes it."""
    network, params, teacher, teacher_params = gaussian(EDM)
    f = trigflow_network(network, EDM)
    slope = trigflow_network(teacher, EDM, edm_denoiser)
    t, x = jnp.linspace(0.1, 1.5, 12), jax.random.normal(KEY, (12, 3))
    dx = 0.5 * slope(teacher_params, x, t)
    value, tangent = jax.jvp(lambda x, t: f(params, x, t), (x, t), (dx, jnp.ones(12)))
    cos, sin = jnp.cos(t)[:, None], jnp.sin(t)[:, None]
    total = -cos * (0.5 * value - dx) - sin * (x + 0.5 * tangent)
    np.testing.assert_allclose(total, 0, atol=1e-4)


def test_trigflow_and_edm_are_the_same_function():
    x, sigma = jax.random.normal(KEY, (5, 3)), jnp.array([0.01, 0.2, 1.0, 10.0, 70.0])
    network = trigflow_network(edm_gaussian_teacher, EDM, edm_denoiser)
    as_trigflow = edm_denoiser(
        lambda p, x, t: network(p, 0.5 * x, t), jnp.float32(0.3), TRIGFLOW, x, sigma
    )
    expected = edm_denoiser(edm_gaussian_teacher, jnp.float32(0.3), EDM, x, sigma)
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
        return jnp.tanh(params["a"] * x + params["b"][None]) + params["c"] * t[:, None] / 1000

    scheduler = cmjax.CMStochasticIterativeScheduler(clip_denoised=False, sigma_max=10.0)

    def gradient(loss, scales=2):
        config = losses.LossConfig(scheduler, 1, metric="l2", s0=scales, s1=scales)
        grads = jax.jit(
            jax.grad(
                lambda p: loss(KEY, network, p, params, data(400_000, 1), jnp.int32(0), config)[0]
            )
        )(params)
        return np.concatenate([np.ravel(g) for g in jax.tree.leaves(grads)])

    limit = gradient(losses.continuous_training_loss)
    errors = [
        np.linalg.norm((n - 1) * gradient(losses.consistency_training_loss, n) - limit)
        / np.linalg.norm(limit)
        for n in (5, 20, 320)
    ]
    assert errors[0] > 2 * errors[1] and errors[2] < 0.03, errors


def test_continuous_distillation_vanishes_at_the_exact_consistency_function():
    network, params, teacher, teacher_params = gaussian(EDM)
    config = losses.LossConfig(EDM, 1000, metric="l2", teacher_fn=teacher)

    def loss(scale):
        fixed = (params, scale * teacher_params)
        return losses.continuous_distillation_loss(
            KEY, network, params, fixed, data(512), jnp.int32(0), config
        )[0]

    assert loss(1.0) < 1e-5 * loss(1.5)


def test_adaptive_weights_settle_where_every_level_counts_the_same():
    """exp(w) e - w is least at w = -log e, where exp(w) e = 1."""
    from cmjax.training.losses.base import weigh_levels

    sigma = jnp.exp(jnp.linspace(-3, 3, 50))
    error = 0.2 + 0.1 * jnp.cos(jnp.log(sigma) / 4)
    params = losses.with_level_weight(None)
    np.testing.assert_array_equal(weigh_levels(params, error, sigma), error)  # w starts at 0
    weight = params.level_weight
    gradient = jax.jit(
        jax.grad(lambda w: weigh_levels(losses.Weighted(None, w), error, sigma).mean())
    )
    for _ in range(2000):
        weight -= 0.05 * gradient(weight)
    weighted = weigh_levels(losses.Weighted(None, weight), error, sigma)
    np.testing.assert_allclose(weighted, 1 + jnp.log(error), atol=0.01)
    assert losses.unweighted(losses.Weighted({"a": 1}, weight)) == {"a": 1}

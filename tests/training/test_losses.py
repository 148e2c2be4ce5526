"""Losses on data whose answers are known in closed form, and how losses are found by name."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmjax import random, testing
from cmjax.guidance import autoguidance
from cmjax.parametrization import consistency_function, edm_denoiser
from cmjax.schedulers import LCMScheduler, SCMScheduler
from cmjax.training import losses
from tests.support.flow_maps import CTM, SCHEDULERS
from tests.support.training import EDM, KEY, STD, gaussian_batch, gaussian_denoiser, value

CT = losses.ConsistencyTraining(EDM, total_steps=1000)
ECT = losses.EasyConsistencyTuning(EDM, total_steps=1000)


def test_denoising_loss_is_least_at_the_exact_denoiser():
    batch = gaussian_batch(100_000)
    at = jax.jit(partial(value, losses.Denoising(EDM), gaussian_denoiser, batch=batch))
    low, exact, high = (float(at(params=jnp.float32(s * STD**2))) for s in (0.9, 1.0, 1.1))
    assert exact < low and exact < high


def test_denoising_weight_makes_the_untrained_loss_one():
    # D = c_skip x has weighted error 1 at every level when the data's standard deviation is
    # sigma_data (Karras et al., appendix B.6).
    batch = {"data": 0.5 * jax.random.normal(jax.random.key(5), (50_000, 4))}
    loss = value(losses.Denoising(EDM), lambda p, x, t: 0 * x, None, batch)
    # Six standard errors of sqrt(2 / 200,000): a false alarm in 5e8.
    assert loss == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("loss", [CT, ECT], ids=["ct", "ect"])
def test_consistency_losses_vanish_at_the_consistency_function_as_levels_close_in(loss):
    """With one datum the exact f is that datum everywhere, and only there the losses vanish."""
    datum = jnp.array([[0.3, -0.8]])
    batch = {"data": jnp.repeat(datum, 4096, 0)}

    network = testing.network_of(
        EDM.parametrization, lambda params, x, sigma: params * datum[0]
    )

    at = jax.jit(partial(value, loss, network, batch=batch, target=jnp.float32(1)))
    for step in (0, 500, 1000):
        exact = at(params=jnp.float32(1), step=step)
        wrong = at(params=jnp.float32(1.5), step=step)
        assert np.isfinite(exact) and exact < 0.05 * wrong


def test_distillation_is_at_its_fixed_point_for_the_exact_consistency_function():
    """Exact teacher and student on Gaussian data: Heun's error is left, falling as 1/N^2."""
    student, params = testing.gaussian_consistency_model(EDM, 0.0, STD)

    def at(num_levels):
        loss = losses.ConsistencyDistillation(
            EDM, num_levels, metric=losses.PseudoHuber(0.0), teacher_fn=gaussian_denoiser
        )
        return float(value(loss, student, params, gaussian_batch(4096), teacher=STD**2))

    coarse, middle, fine = at(10), at(20), at(40)
    assert coarse < 0.2
    # Order 2 over the whole grid is order 3 a step.
    assert coarse / middle > 4 and middle / fine > 4


def test_guidance_extrapolates_the_denoised_images():
    x = gaussian_batch(8)["data"]
    sigma = jnp.linspace(0.1, 40, 8)
    good, weak = (
        edm_denoiser(gaussian_denoiser, jnp.float32(p), EDM, x, sigma) for p in (0.5, 0.3)
    )
    for scale in (1, 2, 3.5):
        network = autoguidance(gaussian_denoiser, scale)
        both = edm_denoiser(network, (jnp.float32(0.5), jnp.float32(0.3)), EDM, x, sigma)
        np.testing.assert_allclose(both, weak + scale * (good - weak), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "loss",
    [CT, ECT, losses.ConsistencyTrajectory(CTM, denoising_weight=0.0)],
    ids=["ct", "ect", "ctm"],
)
def test_the_target_gets_no_gradient(loss):
    def at(target):
        network = lambda params, x, *times: params * jnp.tanh(x)  # noqa: E731
        batch = gaussian_batch(64)
        teacher = jnp.float32(0.5)
        return value(
            loss, network, jnp.float32(0.3), batch, target=target, teacher=teacher, step=500
        )

    assert jax.grad(at)(jnp.float32(0.4)) == 0
    assert abs(at(jnp.float32(0.4)) - at(jnp.float32(0.9))) > 1e-4  # though it matters


@pytest.mark.parametrize(
    "loss", [losses.Denoising(EDM), CT, ECT], ids=["denoising", "ct", "ect"]
)
def test_conditioning_reaches_the_network(loss):
    def network(params, x, t, class_labels):
        return x * class_labels[:, None].astype(x.dtype)

    batch = {**gaussian_batch(8), "class_labels": jnp.arange(8)}
    other = {**batch, "class_labels": jnp.zeros(8, jnp.int32)}
    assert value(loss, network, None, batch, step=3) != value(
        loss, network, None, other, step=3
    )


def test_levels_are_lognormal_or_uniform_on_the_karras_grid():
    # Standard errors are 0.0038, 0.0027 and at most 0.0016: six or more, a false alarm in 5e8.
    log_sigma = np.log(losses.draw_sigmas(KEY, 100_000, EDM, -1.2, 1.2))
    assert log_sigma.mean() == pytest.approx(-1.2, abs=0.03)
    assert log_sigma.std() == pytest.approx(1.2, abs=0.03)

    uniform = losses.draw_sigmas(KEY, 100_000, EDM, -1.2, 1.2, uniform_fraction=1.0)
    sigma = np.asarray(uniform, np.float64)
    ramp = (sigma ** (1 / 7) - 80 ** (1 / 7)) / (0.002 ** (1 / 7) - 80 ** (1 / 7))
    np.testing.assert_allclose(
        np.quantile(ramp, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.01
    )
    assert sigma.min() > 0.002 and sigma.max() <= 80.001


def test_metrics():
    a = jnp.array([[1.0, 2.0], [0.0, 0.0]])
    b = jnp.array([[0.0, 4.0], [0.0, 0.0]])
    np.testing.assert_allclose(losses.L1()(a, b), [1.5, 0])
    np.testing.assert_allclose(losses.L2()(a, b), [2.5, 0])
    np.testing.assert_allclose(losses.PseudoHuber(0.0)(a, b), [5**0.5, 0])


def test_pseudo_huber_is_quadratic_near_zero_and_the_norm_far_away():
    zero = jnp.zeros((1, 2))
    error = jnp.array([[3.0, 4.0]])
    assert losses.PseudoHuber(0.0)(error, zero)[0] == pytest.approx(5)
    near = losses.PseudoHuber(1.0)(1e-3 * error, zero)[0]
    assert near == pytest.approx(25e-6 / (2 * 2**0.5), rel=0.02)
    for c in (0.01, 0.0):
        gradient = jax.grad(lambda a, c=c: losses.PseudoHuber(c)(a, zero).sum())(zero)
        np.testing.assert_array_equal(gradient, [[0, 0]])


def test_easy_consistency_stays_finite_when_levels_meet():
    loss = losses.EasyConsistencyTuning(EDM, total_steps=1000, shrink_factor=256.0)

    def at(params):
        network = lambda p, x, t: p * jnp.tanh(x)  # noqa: E731
        return value(
            loss, network, params, gaussian_batch(64), target=jnp.float32(0.3), step=1000
        )

    found, gradient = jax.value_and_grad(at)(jnp.float32(0.3))
    assert np.isfinite(found) and np.isfinite(gradient) and gradient != 0


@pytest.mark.parametrize("estimate", [consistency_function, edm_denoiser])
def test_easy_consistency_compares_with_the_data_where_the_gap_reaches_it(estimate):
    """With q near 1 the gap covers all levels: r = 0. With the scalings of samplers or EDM's."""
    loss = losses.EasyConsistencyTuning(
        EDM,
        total_steps=1000,
        shrink_factor=1.000002,
        whole_stages=True,
        least_sigma=0.0,
        edm_scalings=estimate is edm_denoiser,
        metric=losses.L2(),
    )
    data = gaussian_batch(16)["data"]

    def network(p, x, t):
        return p * jnp.tanh(x)

    # The same levels and noise: |f(x0 + t z) - x0|^2 / t.
    level_key, noise_key = random.split(KEY)
    t = losses.draw_sigmas(level_key, 16, EDM, loss.p_mean, loss.p_std)
    noisy = data + t[:, None] * random.normal(noise_key, data.shape)
    x0 = estimate(network, jnp.float32(0.7), EDM, noisy, t)
    expected = jnp.mean(jnp.sum((x0 - data) ** 2, -1) / data.shape[-1] / t)

    found = value(loss, network, jnp.float32(0.7), {"data": data}, key=KEY, step=0)
    assert np.isfinite(found)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize("f", [consistency_function, edm_denoiser])
def test_losses_and_sampling_share_one_preconditioning(f):
    """The function that training sees is what scale_input and denoise make of the same network."""

    def network(p, x, t):
        return jnp.tanh(x) + 1e-3 * t[:, None]

    x = jax.random.normal(KEY, (3, 4))
    state = EDM.set_timesteps(timesteps=[22, 5])
    output = network(None, EDM.scale_input(state, x), state.timesteps[:1].repeat(3))
    sampled = EDM.denoise(state, output, x)
    trained = f(network, None, EDM, x, state.sigmas[:1].repeat(3))
    # EDM's scalings differ from the boundary condition's by sigma_min / sigma.
    tolerance = 1e-5 if f is consistency_function else 3 * 0.002 / float(state.sigma)
    np.testing.assert_allclose(trained, sampled, rtol=tolerance, atol=tolerance)


def test_defaults_are_the_papers():
    """As the papers print them for CIFAR-10, but for sCM's p_std and weighting."""
    make = partial(losses.make, scheduler=EDM, total_steps=100)
    assert make("ict") == losses.ImprovedConsistencyTraining(EDM, 100, 10, 1280, -1.1, 2.0)
    assert make("ct") == losses.ConsistencyTraining(EDM, 100, 2, 150, 0.9)
    assert make("cd") == losses.ConsistencyDistillation(EDM, 18, 0.0, "heun")
    assert make("sct") == losses.SimplifiedConsistencyTraining(
        EDM, -1.0, 1.8, 0.0, 10_000, 0.1, "norm", False
    )
    assert make("ect").metric == losses.PseudoHuber(0.0)
    for name in losses.LOSSES:
        scheduler = SCHEDULERS.get(name, EDM)
        assert hash(make(name, scheduler=scheduler)) == hash(
            make(name, scheduler=scheduler)
        )


def test_what_trains_and_what_is_previewed():

    def make(name, **options):
        scheduler = SCHEDULERS.get(name, EDM)
        return losses.make(name, scheduler, total_steps=100, **options)

    distillations = {name for name in losses.LOSSES if make(name).needs_teacher}
    assert distillations == {"progressive", "cd", "scd", "continuous_cd", "ctm", "dmd"}
    step = jnp.int32(0)
    averaged = {
        name for name in losses.LOSSES if make(name).target_decay_at(step) is not None
    }
    assert averaged == {"cd", "ct", "shortcut", "ctm"}
    assert float(make("cd", target_decay=0.95).target_decay_at(step)) == pytest.approx(0.95)
    assert float(make("ct").target_decay_at(step)) == pytest.approx(0.9, rel=1e-6)
    assert make("progressive", student_steps=7).preview.num_inference_steps == (7,)
    assert make("cd").preview == losses.Preview((1, 2, 4), None)


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"metric": "l1"}, losses.L1()),
        ({"metric": "l2"}, losses.L2()),
        ({"metric": "pseudo_huber"}, losses.PseudoHuber(0.0)),  # the loss's own default
        ({"huber_c": 0.03}, losses.PseudoHuber(0.03)),
        ({"metric": "pseudo_huber", "huber_c": 0.03}, losses.PseudoHuber(0.03)),
        ({"metric": losses.L2()}, losses.L2()),
    ],
)
def test_a_configuration_names_its_metric(options, expected):
    assert losses.make("ect", EDM, total_steps=100, **options).metric == expected


class Doubled(losses.Denoising):
    """Somebody's own loss."""


def own_function(key, apply_fn, params, frozen, batch, step):
    """Somebody's own loss, as a function."""
    return jnp.float32(step), {}


def test_losses_of_the_users_own_are_found_by_module_and_name():
    loss = losses.make(f"{__name__}:Doubled", EDM, total_steps=100, p_std=2.0)
    assert type(loss) is Doubled and loss.p_std == 2.0
    function = losses.make(f"{__name__}:own_function", EDM, total_steps=100)
    assert value(function, None, None, None, step=3) == 3


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("itc", {}, "no loss 'itc'; did you mean 'ict'"),
        (
            "ct",
            {"num_levels": 3},
            "ConsistencyTraining has no option 'num_levels'; known are",
        ),
        ("cd", {"metric": "lpips"}, "metric is 'lpips'; known are l1, l2, pseudo_huber"),
        ("cd", {"metric": "l2", "huber_c": 0.1}, "huber_c=0.1 is the constant of metric"),
        ("cd", {"metric": 3}, "metric must be a function .* got 3"),
        ("cd", {"huber_c": -1.0}, "c must be a number from 0"),
        ("cd", {"solver": "dpm"}, "solver must be 'heun' or 'euler', got 'dpm'"),
        ("cd", {"num_levels": 1}, "num_levels must be an integer from 2"),
        ("ect", {"p_std": -1.0}, "p_std must be a number from 1e-06 to 50, got -1.0"),
        (
            "ct",
            {"initial_levels": 20, "final_levels": 10},
            "final_levels must be at least initial",
        ),
        (
            "ict",
            {"initial_intervals": 20, "final_intervals": 10},
            "final_intervals must be at",
        ),
        ("sct", {"adaptive_weight": 1}, "adaptive_weight must be true or false"),
        ("nowhere.at:all", {}, "loss 'nowhere.at:all'"),
        (f"{__name__}:absent", {}, "has no 'absent'"),
        (f"{__name__}:KEY", {}, "must be a class or a function"),
        (f"{__name__}:own_function", {"p_std": 1}, "is a function without options"),
    ],
)
def test_wrong_losses_are_named(name, options, message):
    with pytest.raises(ValueError, match=message):
        losses.make(name, EDM, total_steps=100, **options)


def test_a_run_has_steps():
    with pytest.raises(
        ValueError, match="total_steps must be an integer of at least 1, got 0"
    ):
        losses.EasyConsistencyTuning(EDM, total_steps=0)


def test_schedulers_that_a_loss_cannot_use_are_named():
    with pytest.raises(
        ValueError, match="scheduler must have sigma_data.*LCMScheduler has not"
    ):
        losses.Denoising(LCMScheduler())
    for name in ("progressive", "cd", "ct", "ict", "ect", "continuous_cd", "continuous_ct"):
        with pytest.raises(ValueError, match="sigma_max.*SCMScheduler has not"):
            losses.make(name, SCMScheduler(), total_steps=100)


def test_a_loss_without_a_computation_is_refused():
    class Empty(losses.Loss):
        pass

    with pytest.raises(TypeError, match="__call__"):
        Empty()

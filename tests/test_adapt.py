"""Networks of EDM levels under other samplers: what is adapted, what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cmjax
from cmjax import testing
from cmjax.parametrization import adapt, edm_denoiser, trigflow_network
from cmjax.schedulers import (
    SCHEDULERS,
    CTMScheduler,
    EDMEulerScheduler,
    EDMHeunScheduler,
    LCMScheduler,
    SCMScheduler,
)
from cmjax.testing import gaussian_consistency_model
from tests.support import networks

MEAN, STD = 0.3, 0.5
EDM = cmjax.CMStochasticIterativeScheduler(clip_denoised=False)
TWO_TIMES = ("CTMScheduler", "FlowMapEulerDiscreteScheduler")
TARGETS = [
    name
    for name in SCHEDULERS
    if name not in (*TWO_TIMES, "CMStochasticIterativeScheduler")
]


def exact_denoiser(params, x, sigma):
    """The mean of x0 given x, for data distributed N(MEAN, STD^2)."""
    return (STD**2 * x + sigma**2 * MEAN) / (STD**2 + sigma**2)


denoiser_network = testing.network_of(
    EDM.parametrization.without_boundary(), exact_denoiser
)


@pytest.mark.parametrize("name", TARGETS)
def test_every_sampler_gets_the_x0_of_the_denoiser(name):
    options = {"clip_sample": False} if name == "DDIMScheduler" else {}
    target = SCHEDULERS[name](**options)
    network = adapt(denoiser_network, EDM, target, edm_denoiser)
    state = target.set_timesteps(4)
    for step in range(state.num_steps):
        state = state.replace(step_index=jnp.int32(step))
        alpha = float(state.alpha)
        sigma = float(state.sigma)
        if sigma / max(alpha, 1e-9) > EDM.sigma_max:
            continue  # beyond the levels of the network

        # A sample of that level, and the x0 estimate of the adapted network.
        variance = alpha**2 * STD**2 + sigma**2
        unit = jax.random.normal(jax.random.key(step), (5, 3))
        x = alpha * MEAN + variance**0.5 * unit
        x0 = target.estimate(state, target.predict(network, None, state, x), x)

        # E[x0 | alpha x0 + sigma z = x], with no detour over EDM.
        expected = MEAN + alpha * STD**2 / variance * (x - alpha * MEAN)
        np.testing.assert_allclose(x0, expected, atol=2e-4)


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize(
    "scheduler", [SCMScheduler(), LCMScheduler(), SCHEDULERS["FlowMatchLCMScheduler"]()]
)
def test_a_consistency_model_has_the_right_moments_under_other_consistency_samplers(
    scheduler, steps
):
    apply_fn, params = gaussian_consistency_model(EDM, MEAN, STD)
    network = adapt(apply_fn, EDM, scheduler)
    samples = cmjax.sample(
        jax.random.key(1),
        network,
        params,
        scheduler,
        (20_000, 1),
        num_inference_steps=steps,
    )
    # Five standard errors: a false alarm in a million. LCM's noise starts at sigma / alpha = 14.6,
    # without the data's share, which shifts a single step by MEAN STD / 14.6.
    bias = MEAN * STD / 14.6 if isinstance(scheduler, LCMScheduler) and steps == 1 else 0
    assert abs(float(samples.mean()) - MEAN) < bias + 5 * STD / 20_000**0.5
    assert abs(float(samples.std()) - STD) < 0.002 + 5 * STD / (2 * 20_000) ** 0.5


def test_a_scheduler_of_the_same_parametrization_is_saved(tmp_path):
    trained = networks.model(scheduler=cmjax.DDPMScheduler())
    model = trained.with_scheduler(cmjax.DDIMScheduler(clip_sample=False))
    assert model.apply_fn is trained.apply_fn and model.trained_for is None
    cmjax.save(tmp_path / "ddim", model)
    loaded = cmjax.load(tmp_path / "ddim")
    assert loaded.scheduler == model.scheduler

    # The same as by way of x0.
    adapted = adapt(trained.apply_fn, trained.scheduler, model.scheduler)
    by_x0 = dataclasses.replace(model, apply_fn=adapted)
    samples = [
        each.sample(jax.random.key(0), 2, num_inference_steps=3) for each in (loaded, by_x0)
    ]
    np.testing.assert_allclose(*samples, atol=1e-4)


def test_with_scheduler_keeps_the_network_of_the_same_kind():
    model = cmjax.load()
    other = model.with_scheduler(cmjax.CMStochasticIterativeScheduler(sigma_max=40.0))
    assert other.apply_fn is model.apply_fn and other.scheduler.sigma_max == 40
    assert model.with_scheduler(EDMHeunScheduler()).apply_fn is not model.apply_fn


class UsersOwnSolver(EDMHeunScheduler):
    """A solver that somebody derived, under a name of their own."""


def test_a_subclass_of_a_solver_takes_the_network_as_a_denoiser_too():
    model = cmjax.load()
    cond = {"class_labels": jnp.arange(2)}

    def draw(scheduler):
        adapted = model.with_scheduler(scheduler)
        options = {"num_inference_steps": 2, "cond": cond}
        return cmjax.sample(
            jax.random.key(0),
            adapted.apply_fn,
            model.params,
            scheduler,
            (2, 28, 28, 1),
            **options,
        )

    np.testing.assert_array_equal(draw(UsersOwnSolver()), draw(EDMHeunScheduler()))


@pytest.mark.parametrize("name", [*TARGETS, "CMStochasticIterativeScheduler"])
def test_a_network_of_any_kind_is_adapted(name):
    source = SCHEDULERS[name]()
    network = testing.network_of(source.parametrization.without_boundary(), exact_denoiser)
    target = EDMEulerScheduler()
    adapted = adapt(network, source, target, edm_denoiser)
    x = jnp.linspace(-2, 2, 6).reshape(2, 3)
    for sigma in (0.3, 1.0, 5.0):
        levels = jnp.full(2, sigma)
        x0 = edm_denoiser(adapted, None, target, x, levels)
        np.testing.assert_allclose(x0, exact_denoiser(None, x, sigma), atol=3e-3)


@pytest.mark.parametrize("name", TWO_TIMES)
def test_a_network_told_one_time_is_not_adapted_to_two(name):
    with pytest.raises(
        ValueError, match=f"scheduler is a {name}, to which the network of a CM.* cannot be"
    ):
        cmjax.load().with_scheduler(SCHEDULERS[name]())


def test_a_flow_network_is_no_flow_map():
    # Both read the output in the same way, and the flow map's network takes a second time.
    flow = cmjax.FlowMatchEulerDiscreteScheduler()
    flow_map = cmjax.FlowMapEulerDiscreteScheduler()
    assert flow.parametrization == flow_map.parametrization
    for own, other in ((flow, flow_map), (flow_map, flow)):
        model = networks.model(scheduler=own)
        with pytest.raises(ValueError, match="two times are trained for their own sched"):
            model.with_scheduler(other)


def test_a_network_told_two_times_is_not_adapted():
    with pytest.raises(ValueError, match="source is a CTMScheduler"):
        adapt(denoiser_network, CTMScheduler(), LCMScheduler())


def test_an_adapted_model_is_not_saved_as_what_it_is_not(tmp_path):
    with pytest.raises(
        ValueError,
        match="adapted to LCMScheduler, .* save the CMStochasticIterativeScheduler model",
    ):
        cmjax.save(
            tmp_path / "model", cmjax.load().with_scheduler(SCHEDULERS["LCMScheduler"]())
        )
    assert not (tmp_path / "model").exists()


def test_one_adaptation_is_not_made_on_top_of_another():
    model = cmjax.load()
    other = EDMEulerScheduler(sigma_data=1.0)
    direct = model.with_scheduler(other)
    detour = model.with_scheduler(EDMEulerScheduler()).with_scheduler(LCMScheduler())
    detour = detour.with_scheduler(other)
    assert detour.trained_for == direct.trained_for == model.scheduler
    options = {"labels": 3, "num_inference_steps": 2}
    np.testing.assert_array_equal(
        detour.sample(jax.random.key(0), 2, **options),
        direct.sample(jax.random.key(0), 2, **options),
    )
    assert model.with_scheduler(other).apply_fn is direct.apply_fn  # and so compiled once
    back = detour.with_scheduler(model.scheduler)
    assert back.apply_fn is model.apply_fn and back.trained_for is None


@pytest.mark.parametrize("sigma_min", [0.002, 0.00218, 0.0371])
def test_where_the_output_does_not_matter_it_is_finite(sigma_min):
    # At sigma_min a consistency model's c_out is 0, or a rounding error beside it.
    target = cmjax.CMStochasticIterativeScheduler(sigma_min=sigma_min)
    network = adapt(denoiser_network, EDM, target, edm_denoiser)
    t = target.sigma_to_t(jnp.full(2, sigma_min))
    assert np.all(np.isfinite(network(None, jnp.ones((2, 3)), t)))


@pytest.mark.parametrize("scheduler", ["LCMScheduler", LCMScheduler, None])
def test_what_is_no_scheduler_is_not_adapted_to(scheduler):
    with pytest.raises(ValueError, match="scheduler must be a scheduler, such as"):
        cmjax.load().with_scheduler(scheduler)


def test_what_a_conversion_reads_of_a_scheduler_is_named():
    class Bare:
        parametrization = EDM.parametrization

    bare = Bare()
    with pytest.raises(ValueError, match="source must have sigma_range"):
        adapt(denoiser_network, bare, EDM)
    assert callable(adapt(denoiser_network, EDM, bare))
    with pytest.raises(ValueError, match="scheduler must have sigma_data, got .*; adapt"):
        trigflow_network(denoiser_network, cmjax.DDIMScheduler())


def test_predicted_noise_at_the_pure_noise_of_flows_is_refused():
    # Samples of it had a standard deviation of 17 where the data have 0.5.
    options = {"use_flow_sigmas": True, "prediction_type": "epsilon"}
    target = cmjax.UniPCMultistepScheduler(**options)
    with pytest.raises(ValueError, match="set prediction_type='flow_prediction'"):
        adapt(denoiser_network, EDM, target, edm_denoiser)

    # The others begin a little below it.
    adapt(denoiser_network, EDM, cmjax.DPMSolverMultistepScheduler(**options), edm_denoiser)

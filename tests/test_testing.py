"""The contract, over every registered scheduler; every check fails on one that breaks it."""

import ast
import dataclasses
from pathlib import Path
from typing import ClassVar

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cmjax
from cmjax import testing
from cmjax.arrays import scaled, weighted_sum
from cmjax.schedulers import SCHEDULERS
from tests.support.tiers import every_scheduler

Base = cmjax.CMStochasticIterativeScheduler


@every_scheduler
def test_every_scheduler_keeps_the_contract(name):
    testing.assert_scheduler_contract(SCHEDULERS[name]())


@every_scheduler
def test_a_single_step_keeps_what_it_may_break_of_the_contract(name):
    # First and last at once. Keys, threads, dtypes and configs do not depend on the number.
    for check in (
        testing.assert_clean_end,
        testing.assert_jit_equals_eager,
        testing.assert_step_equals_sample,
        testing.assert_differentiable,
    ):
        check(SCHEDULERS[name](), 1)


def network(params, x, *times):
    return jnp.tanh(x)


def broken(**methods):
    """A registered scheduler of the same fields with some methods replaced."""
    cls = jax.tree_util.register_static(
        dataclasses.dataclass(frozen=True)(type("Broken", (Base,), methods))
    )
    return cls()


def noisy_end(self, state, sample, denoised, noise):
    state, x = Base.advance(self, state, sample, denoised, noise)
    return state, x + 1e-6 * noise


def neighbours(self, state, model_output, sample):
    return Base.denoise(self, state, model_output, sample) + sample.mean(0, keepdims=True)


def upcasts(self, state, model_output, sample):
    return Base.denoise(
        self, state, model_output.astype(jnp.float32), sample.astype(jnp.float32)
    )


def looks_at_values(self, state, model_output, sample):
    if isinstance(state.step_index, jax.core.Tracer):
        return Base.denoise(self, state, model_output, sample) * 0.9
    return Base.denoise(self, state, model_output, sample)


def ignores_key(self, key, *args, **options):
    return Base.step(self, jax.random.key(9), *args, **options)


def ignores_the_constraint(self, *args, constrain=None):
    del constrain
    return Base.step(self, *args)


def returns_another_x0(self, *args, **options):
    state, output = Base.step(self, *args, **options)
    return state, output._replace(denoised=output.prev_sample)


def changes_a_dtype(self, state, sample, denoised, noise):
    state, x = Base.advance(self, state, sample, denoised, noise)
    return state.replace(step_index=state.step_index.astype(jnp.int16)), x


class _Shared:
    index = 0


def remembers(self, state, sample):
    _Shared.index += 1
    return Base.scale_input(self, state, sample) * (1 + _Shared.index / 100)


def nan_gradient(self, state, sample):
    zero = state.sigmas[-1] - state.sigmas[-1]
    return Base.scale_input(self, state, sample) + jnp.sqrt(zero)


def test_an_option_that_is_no_field_is_found():
    @jax.tree_util.register_static
    class Forgotten(Base):
        eta: float = 0.5

    with pytest.raises(AssertionError, match="Forgotten.eta is no field; decorate the cla"):
        testing.assert_config_round_trip(Forgotten())

    @jax.tree_util.register_static
    @dataclasses.dataclass(frozen=True)
    class Declared(Base):
        _: dataclasses.KW_ONLY
        eta: float = 0.5
        kind: ClassVar[str] = "no option"

    testing.assert_config_round_trip(Declared())


def test_the_noise_of_the_last_step_is_called_that():
    with pytest.raises(AssertionError, match="the last step adds noise: 1e-06 times"):
        testing.assert_clean_end(broken(advance=noisy_end))


def test_moments_of_other_samplers_are_not_those_of_consistency_sampling():
    with pytest.raises(
        ValueError, match="got EDMEulerScheduler; for another sampler, draw"
    ):
        testing.assert_gaussian_moments(cmjax.EDMEulerScheduler())


@pytest.mark.parametrize(
    ("check", "methods"),
    [
        (testing.assert_clean_end, {"advance": noisy_end}),
        (testing.assert_dtype_kept, {"denoise": upcasts}),
        (testing.assert_jit_equals_eager, {"denoise": looks_at_values}),
        (testing.assert_step_equals_sample, {"step": ignores_key}),
        (testing.assert_step_equals_sample, {"step": ignores_the_constraint}),
        (testing.assert_step_equals_sample, {"step": returns_another_x0}),
        (testing.assert_threads_agree, {"scale_input": remembers}),
        (testing.assert_differentiable, {"scale_input": nan_gradient}),
        (testing.assert_vmap_equals_loop, {"denoise": looks_at_values}),
        (testing.assert_compiles_once, {"advance": changes_a_dtype}),
    ],
)
def test_checks_catch_what_they_are_for(check, methods):
    with pytest.raises(AssertionError):
        check(broken(**methods))


def test_a_gradient_that_is_not_finite_is_not_called_the_levels():
    scheduler = broken(scale_input=nan_gradient)
    with pytest.raises(AssertionError, match=r"gradient by state.sigmas.* is not finite"):
        testing.assert_differentiable(scheduler)


def test_batch_invariance_check_catches_neighbours():
    with pytest.raises(AssertionError):
        testing.assert_batch_invariant(network, None, broken(denoise=neighbours), (3, 2))


def test_config_check_catches_a_lost_option():
    def to_config(self):
        return {"_class_name": "CMStochasticIterativeScheduler"}

    scheduler = broken(to_config=to_config)
    with pytest.raises(AssertionError):
        testing.assert_config_round_trip(scheduler)


def test_schedulers_of_ones_own_need_no_registry():
    testing.assert_scheduler_contract(broken())
    testing.assert_scheduler_contract(Halving())


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Halving(cmjax.schedulers.Scheduler):
    """A sampler from nothing but the protocol.

    The network returns x0, and every step takes half of the noise away.
    """

    start: float = 8.0

    @property
    def init_noise_sigma(self):
        return self.start

    def set_timesteps(self, num_inference_steps=None, *, timesteps=None, sigmas=None):
        sigmas = self.start * 0.5 ** jnp.arange(num_inference_steps + 1, dtype=jnp.float32)
        return cmjax.schedulers.SchedulerState(
            sigmas.at[-1].set(0), jnp.log(sigmas[:-1]), jnp.int32(0)
        )

    def scale_input(self, state, sample):
        return scaled(1 / (1 + state.sigma), sample)

    def denoise(self, state, model_output, sample):
        return model_output

    def advance(self, state, sample, denoised, noise):
        x = weighted_sum((1, denoised), (state.next_sigma, noise))
        return state.replace(step_index=state.step_index + 1), x

    def add_noise(self, state, original, noise):
        return weighted_sum((1, original), (state.sigma, noise))


def test_device_check_catches_a_difference_and_asks_for_devices():
    traces = []

    def another_each_time(params, x, t):
        traces.append(1)
        return x * len(traces)

    with pytest.raises(AssertionError):
        testing.assert_device_invariant(
            another_each_time, None, Base(clip_denoised=False), (8, 2)
        )
    with pytest.raises(ValueError, match="divide a batch of 1; on a CPU set XLA_FLAGS"):
        testing.assert_device_invariant(network, None, Base(), (1, 2))


def test_moments_check_catches_a_wrong_mean_and_a_wrong_spread():
    scheduler = Base(clip_denoised=False)
    for methods in ({"denoise": shifted}, {"denoise": widened}):
        with pytest.raises(AssertionError, match="is off by"):
            testing.assert_gaussian_moments(
                dataclasses.replace(broken(**methods), clip_denoised=False)
            )
    testing.assert_gaussian_moments(scheduler)


def shifted(self, state, model_output, sample):
    return Base.denoise(self, state, model_output, sample) + 0.02


def widened(self, state, model_output, sample):
    return Base.denoise(self, state, model_output, sample) * 1.03 - 0.009


def test_boundary_check_catches_plain_edm_scalings():
    plain = property(lambda self: Base.parametrization.fget(self).without_boundary())
    scheduler = broken(parametrization=plain)
    with pytest.raises(AssertionError):
        testing.assert_boundary_condition(network, None, scheduler, (3, 2))
    testing.assert_boundary_condition(network, None, Base(), (3, 2))


def test_compile_check_catches_values_in_the_trace():
    def scale_input(self, state, sample):
        if float(state.sigma) > 1:  # needs the value: cannot be traced at all
            return sample
        return sample

    with pytest.raises(jax.errors.ConcretizationTypeError):
        testing.assert_compiles_once(broken(scale_input=scale_input))


def test_checks_cannot_be_switched_off():
    # chex's switch is one for the whole program; users of other libraries turn it.
    chex.disable_asserts()
    try:
        with pytest.raises(AssertionError):
            testing.assert_batch_invariant(
                network, None, broken(denoise=neighbours), (3, 2)
            )
        for check, methods in (
            (testing.assert_clean_end, {"advance": noisy_end}),
            (testing.assert_dtype_kept, {"denoise": upcasts}),
            (testing.assert_differentiable, {"scale_input": nan_gradient}),
        ):
            with pytest.raises(AssertionError):
                check(broken(**methods), 1)
        with pytest.raises(ValueError, match=r"model_output \(2, 1\), sample \(2, 3\)"):
            cmjax.sample(jax.random.key(0), lambda p, x, t: x[:, :1], None, Base(), (2, 3))
        with pytest.raises(ValueError, match="the constraint must return x0 in the shape"):
            cmjax.sample(
                jax.random.key(0),
                network,
                None,
                Base(),
                (2, 3),
                constrain=lambda x0: x0[:1],
            )
    finally:
        chex.enable_asserts()


def test_no_check_is_one_that_can_be_switched_off():
    # `python -O` leaves out `assert`, and chex has a switch.
    for path in Path(cmjax.__file__).parent.rglob("*.py"):
        names = set()
        for node in ast.walk(ast.parse(path.read_text())):
            names.add(node.id if isinstance(node, ast.Name) else type(node).__name__)
        assert "chex" not in names, path
        assert path.parent.name != "testing" or "Assert" not in names, path


@pytest.mark.parametrize(
    ("name", "levels", "expected"),
    [
        ("EDMDPM2Scheduler", [70.0, 5.0, 0.5], [-2.04e-5, -0.01418, 1.3196]),
        ("KDPM2DiscreteScheduler", [12.0, 5.0, 0.5], [-2.2793, 1.5172, 3.3273]),
    ],
)
def test_gradients_by_levels_of_the_midpoint_solvers(name, levels, expected):
    # By differences. They were NaN: the root of the last level's 0 has no gradient.
    def bounded(params, x, t):
        time = 0.1 * jnp.sin(t / 100)
        return 0.1 * jnp.tanh(x) + time[:, None]

    def total(levels):
        key = jax.random.key(0)
        return cmjax.sample(
            key, bounded, None, SCHEDULERS[name](), (2, 3), sigmas=levels
        ).sum()

    gradient = jax.grad(total)(jnp.asarray(levels))
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-5)


def test_gradient_check_catches_a_level_that_is_cut_off():
    def weights(self, levels):
        fixed = levels._replace(sigmas=jax.lax.stop_gradient(levels.sigmas))
        return Base.weights(self, fixed)

    with pytest.raises(AssertionError, match=r"the gradient by sigmas\[1\] = .* by diff"):
        testing.assert_differentiable(broken(weights=weights))


@pytest.mark.parametrize(
    "scheduler",
    [
        cmjax.FlowMatchEulerDiscreteScheduler(),
        cmjax.DDIMScheduler(
            rescale_betas_zero_snr=True,
            timestep_spacing="trailing",
            prediction_type="v_prediction",
            clip_sample=False,
        ),
    ],
)
def test_an_exact_network_begins_with_pure_noise(scheduler):
    # The exact denoiser of N(0.6, 0.3^2). At pure noise the signal is 0.
    def denoiser(params, x, sigma):
        del params
        return 0.6 + 0.09 / (0.09 + sigma**2) * (x - 0.6)

    network = testing.network_of(scheduler.parametrization, denoiser)
    samples = cmjax.sample(
        jax.random.key(0), network, None, scheduler, (1000,), num_inference_steps=30
    )
    assert abs(np.mean(samples) - 0.6) < 0.05

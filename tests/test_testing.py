"""The contract, over every registered scheduler; and each check fails on a scheduler that breaks it."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

import cmjax
from cmjax import testing
from cmjax.schedulers import SCHEDULERS

Base = cmjax.CMStochasticIterativeScheduler


@pytest.mark.parametrize("num_steps", [1, 3])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_keeps_the_contract(name, num_steps):
    testing.assert_scheduler_contract(SCHEDULERS[name](), num_steps)


def broken(**methods):
    """A registered scheduler of the same fields with some methods replaced."""
    cls = jax.tree_util.register_static(dataclasses.dataclass(frozen=True)(type("Broken", (Base,), methods)))
    return cls()


def noisy_end(self, state, sample, denoised, noise):
    state, x = Base.advance(self, state, sample, denoised, noise)
    return state, x + 1e-6 * noise


def neighbours(self, state, model_output, sample):
    return Base.denoise(self, state, model_output, sample) + sample.mean(0, keepdims=True)


def upcasts(self, state, model_output, sample):
    return Base.denoise(self, state, model_output.astype(jnp.float32), sample.astype(jnp.float32))


def looks_at_values(self, state, model_output, sample):
    if isinstance(state.step_index, jax.core.Tracer):
        return Base.denoise(self, state, model_output, sample) * 0.9
    return Base.denoise(self, state, model_output, sample)


def ignores_key(self, key, state, model_output, sample):
    return Base.step(self, jax.random.key(9), state, model_output, sample)


class _Shared:
    index = 0


def remembers(self, state, sample):
    _Shared.index += 1
    return Base.scale_input(self, state, sample) * (1 + _Shared.index / 100)


def nan_gradient(self, state, sample):
    zero = state.sigmas[-1] - state.sigmas[-1]
    return Base.scale_input(self, state, sample) + jnp.sqrt(zero)


@pytest.mark.parametrize(
    ("check", "methods"),
    [
        (testing.assert_clean_end, {"advance": noisy_end}),
        (testing.assert_dtype_kept, {"denoise": upcasts}),
        (testing.assert_jit_equals_eager, {"denoise": looks_at_values}),
        (testing.assert_step_equals_sample, {"step": ignores_key}),
        (testing.assert_threads_agree, {"scale_input": remembers}),
        (testing.assert_differentiable, {"scale_input": nan_gradient}),
    ],
)
def test_checks_catch_what_they_are_for(check, methods):
    with pytest.raises(AssertionError):
        check(broken(**methods))


def test_batch_invariance_check_catches_neighbours():
    with pytest.raises(AssertionError):
        testing.assert_batch_invariant(testing._network, None, broken(denoise=neighbours), (3, 2))


def test_config_check_catches_a_lost_option():
    def to_config(self):
        return {"_class_name": "CMStochasticIterativeScheduler"}

    scheduler = broken(to_config=to_config)
    with pytest.raises(AssertionError):
        testing.assert_config_round_trip(scheduler)


def test_boundary_check_catches_plain_edm_scalings():
    scheduler = broken(get_scalings_for_boundary_condition=Base.get_scalings)
    with pytest.raises(AssertionError):
        testing.assert_boundary_condition(testing._network, None, scheduler, (3, 2))
    testing.assert_boundary_condition(testing._network, None, Base(), (3, 2))


def test_compile_check_catches_values_in_the_trace():
    def scale_input(self, state, sample):
        if float(state.sigma) > 1:  # needs the value: cannot be traced at all
            return sample
        return sample

    with pytest.raises(jax.errors.ConcretizationTypeError):
        testing.assert_compiles_once(broken(scale_input=scale_input))

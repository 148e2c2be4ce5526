"""Options of XLA's compiler for training steps."""

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

import cmjax
from cmjax.training import compiling, losses
from cmjax.training.trainer import make_train_step


@pytest.fixture(autouse=True)
def forget_what_is_known():
    compiling.options_for_gradients.cache_clear()
    yield
    compiling.options_for_gradients.cache_clear()


def network(params, x, t):
    return params * x


def trained(steps=2):
    """The state after a few steps, each called as users call it."""
    train_step = make_train_step(
        losses.Denoising(cmjax.CMStochasticIterativeScheduler()), network, optax.sgd(0.1)
    )
    state = train_step.init(jax.random.key(0), jnp.float32(0.5))
    for _ in range(steps):
        state, _ = train_step(state, {"data": jnp.ones((4, 2))})
    return state


def test_options_are_for_cpus_only():
    assert compiling.options_for_gradients("gpu") is None
    assert compiling.options_for_gradients("tpu") is None


def test_options_that_jaxlib_does_not_know_are_left_out(monkeypatch):
    expected = trained()
    monkeypatch.setattr(compiling, "FOR_GRADIENTS_ON_CPUS", {"xla_cpu_no_such": "yes"})
    compiling.options_for_gradients.cache_clear()
    assert compiling.options_for_gradients("cpu") is None
    chex.assert_trees_all_close(trained(), expected)


def test_a_step_is_part_of_the_callers_program():
    # Only the outermost jit may have options of the compiler.
    train_step = make_train_step(
        losses.Denoising(cmjax.CMStochasticIterativeScheduler()), network, optax.sgd(0.1)
    )
    start = train_step.init(jax.random.key(0), jnp.float32(0.5))

    @jax.jit
    def run(state):
        def step(state, _):
            return train_step(state, {"data": jnp.ones((4, 2))})

        return jax.lax.scan(step, state, length=2)[0]

    chex.assert_trees_all_close(run(start), trained(2), rtol=1e-6)

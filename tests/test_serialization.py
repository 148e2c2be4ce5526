"""`jax.export` serializes functions that take and return pytrees of cmjax."""

import dataclasses
import subprocess
import sys
from typing import ClassVar

import chex
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cmjax
from cmjax import testing
from cmjax.constraints import compose, inpaint
from cmjax.editing import edit
from cmjax.schedulers import SCHEDULERS
from cmjax.training import losses, trainer


def read_again(function, *arguments):
    """Serializes a function, reads it, and compares its results with the function's own."""
    exported = jax.export.export(jax.jit(function))(*arguments)
    again = jax.export.deserialize(exported.serialize())
    expected = jax.jit(function)(*arguments)
    actual = again.call(*arguments)
    chex.assert_trees_all_equal(actual, expected)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_states_of_every_scheduler(name):
    scheduler = SCHEDULERS[name]()
    state = scheduler.set_timesteps(3)
    state, _ = scheduler.init(jax.random.key(0), state, (2, 4, 4, 3))
    read_again(lambda state: state.replace(step_index=state.step_index + 1), state)


def test_states_of_categories():
    scheduler = cmjax.VQDiffusionScheduler(num_vec_classes=5)
    read_again(lambda state: state, scheduler.set_timesteps(3))


def test_a_step_under_a_constraint():
    scheduler = cmjax.CMStochasticIterativeScheduler()
    key = jax.random.key(0)
    state, x = scheduler.init(key, scheduler.set_timesteps(3), (2, 4, 4, 3))
    half = inpaint(jnp.zeros((4, 4, 3)), np.arange(4)[:, None, None] < 2)

    def step(key, state, model_output, x, constraint):
        return scheduler.step(key, state, model_output, x, constrain=constraint)

    read_again(step, key, state, jnp.ones_like(x), x, compose(half, half))


def test_steps_of_the_posterior():
    scheduler = cmjax.CMStochasticIterativeScheduler()
    apply_fn, params = testing.gaussian_consistency_model(scheduler)
    known = inpaint(jnp.zeros(3), jnp.array([1.0, 0.0, 0.0]))

    def edited(params):
        options = {"method": "posterior", "sigmas": (80.0, 1.0), "return_trajectory": True}
        key = jax.random.key(0)
        return edit(key, apply_fn, params, scheduler, known, (2, 3), **options)

    read_again(edited, params)


def test_states_of_training():
    def apply_fn(params, x, t):
        return params * x

    loss = losses.SimplifiedConsistencyTraining(cmjax.SCMScheduler(), adaptive_weight=True)
    train_step = trainer.make_train_step(loss, apply_fn, optax.identity())
    state = train_step.init(jax.random.key(0), jnp.float32(0.5))

    # Classes of the optimizer's own are for optax, or the user, to register.
    state = dataclasses.replace(state, opt_state=())
    read_again(lambda state: dataclasses.replace(state, step=state.step + 1), state)


def test_noise_levels_and_scalings():
    parametrization = cmjax.DDIMScheduler().parametrization

    def at(ratio):
        level = parametrization.level(ratio)
        return level, parametrization.scalings(level.alpha, level.sigma)

    read_again(at, jnp.ones(2))


def test_a_scheduler_that_the_file_could_not_name():
    @jax.tree_util.register_static
    @dataclasses.dataclass(frozen=True)
    class Mine(cmjax.DDIMScheduler):
        _domains: ClassVar = {}

    state = Mine().set_timesteps(2)
    exported = jax.export.export(jax.jit(lambda state: state.sigma))(state)
    with pytest.raises(ValueError, match=r"Mine cannot be serialized.*cmjax\.register"):
        exported.serialize()


def test_modules_can_be_imported_again():
    # In a process of its own: the new classes are others than those that have been imported here.
    program = (
        "import importlib, cmjax.constraints.inpainting, cmjax.schedulers.weights\n"
        "importlib.reload(cmjax.constraints.inpainting)\n"
        "importlib.reload(cmjax.schedulers.weights)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)

"""Schedulers where numbers are large or small, or float64 is on: finite tables, in float32."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cmjax
from cmjax.schedulers import SCHEDULERS
from cmjax.schedulers.levels import karras_sigmas
from tests.support.tiers import every_scheduler
from tests.support.variations import variations

ENDS = ("sigma_min", "sigma_max")
WITH_ENDS = [
    name for name, cls in SCHEDULERS.items() if all(hasattr(cls, option) for option in ENDS)
]
EXTREMES = [(1e-18, 80.0), (0.002, 1e18), (1e-18, 1e18), (1e17, 1e18), (1e-18, 1e-17)]


def extreme(cls):
    """Schedulers of a class with extreme levels, of every curvature."""
    rhos = (0.1, 7.0, 1000.0) if hasattr(cls, "rho") else (None,)
    for (low, high), rho in itertools.product(EXTREMES, rhos):
        options = {"sigma_min": low, "sigma_max": high}
        if rho is not None:
            options["rho"] = rho
        yield cls(**options)


@pytest.mark.parametrize("name", WITH_ENDS)
def test_tables_of_extreme_levels_are_finite(name):
    for scheduler in extreme(SCHEDULERS[name]):
        state = scheduler.set_timesteps(4)
        for path, column in jax.tree.leaves_with_path(state):
            assert np.isfinite(column).all(), (scheduler, path, column)
        assert np.all(np.asarray(state.sigmas[:-1]) > 0), scheduler
        assert np.all(np.diff(state.sigmas) <= 0), scheduler


def test_karras_levels_end_at_sigma_min_whatever_rho():
    for low, high in EXTREMES:
        for rho in (0.1, 0.5, 7.0, 1000.0):
            scheduler = cmjax.EDMEulerScheduler(sigma_min=low, sigma_max=high, rho=rho)
            sigmas = scheduler.set_timesteps(4).sigmas
            np.testing.assert_allclose(sigmas[0], high, rtol=1e-6)
            np.testing.assert_allclose(sigmas[3], low, rtol=1e-6)

            # In float32, as training draws them.
            drawn = karras_sigmas(jnp.linspace(0, 1, 4), low, high, rho)
            assert np.isfinite(drawn).all()
            np.testing.assert_allclose(drawn[jnp.array([0, 3])], [high, low], rtol=2e-4)


def dtypes_of_a_run(scheduler, key):
    """The states of a run at its start and after a step, as shapes and dtypes."""
    mu = {"mu": 1.0} if getattr(scheduler, "use_dynamic_shifting", False) else {}

    # Predicted noise does not determine x0 at pure noise.
    if getattr(scheduler, "rescale_betas_zero_snr", False):
        scheduler = dataclasses.replace(scheduler, prediction_type="v_prediction")

    def run(key):
        state, x = scheduler.init(key, scheduler.set_timesteps(4, **mu), (1, 4))
        output = jnp.ones(scheduler.output_shape(x.shape), x.dtype)
        after, _ = scheduler.step(key, state, output, x)
        return state, after

    return jax.eval_shape(run, key)


@every_scheduler
def test_states_are_float32_under_x64(name):
    cls = SCHEDULERS[name]
    with jax.enable_x64(True):
        key = jax.random.key(0)
        for scheduler in (cls(), *dict(variations(cls)).values()):
            for state in dtypes_of_a_run(scheduler, key):
                assert state.step_index.dtype == jnp.int32, scheduler
                leaves = jax.tree.leaves(state.replace(step_index=None))
                assert {str(leaf.dtype) for leaf in leaves} == {"float32"}, scheduler


def test_states_of_categories_are_float32_under_x64():
    with jax.enable_x64(True):
        scheduler = cmjax.VQDiffusionScheduler(num_vec_classes=3)
        leaves = jax.tree.leaves(jax.eval_shape(lambda: scheduler.set_timesteps(4)))
    assert {str(leaf.dtype) for leaf in leaves} == {"float32", "int32"}

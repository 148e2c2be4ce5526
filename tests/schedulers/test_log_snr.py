"""Solvers in log(alpha / sigma): what their steps integrate, their gradients, and their options."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmjax.schedulers import SCHEDULERS, Levels
from cmjax.schedulers.differences import polynomial_weights
from cmjax.schedulers.exponential import exponential_moments
from cmjax.schedulers.log_snr import LogSNRScheduler
from tests.support.tiers import each

LOG_SNR = [name for name, cls in SCHEDULERS.items() if issubclass(cls, LogSNRScheduler)]


def test_moments_are_the_integrals_that_they_say():
    # By the trapezoidal rule on a fine grid, for steps of both directions and any length.
    u = np.linspace(0, 1, 20_001)
    for h in (-14.0, -2.0, -1.0, -0.9, -1e-3, 1e-6, 0.01, 0.99, 1.0, 3.0, 20.0):
        moments = exponential_moments(jnp.full(1, h))
        for k, moment in enumerate(moments):
            expected = h * np.trapezoid(np.exp(-h * (1 - u)) * u**k, u)
            np.testing.assert_allclose(moment[0], expected, rtol=3e-6)


def test_the_weights_integrate_every_polynomial_through_their_nodes():
    nodes = [-0.7, -1.9, 1.0]
    moments = tuple(jnp.full(1, 1 / (k + 1)) for k in range(4))
    for count in (1, 2, 3):
        chosen = [jnp.full(1, node) for node in nodes[:count]]
        weights = polynomial_weights(chosen, moments)
        for power in range(1, count + 1):
            total = sum(w[0] * node**power for w, node in zip(weights, nodes, strict=False))
            assert total == pytest.approx(1 / (power + 1), rel=1e-5)


def tables(cls):
    """Options of every form of a solver's table, of the highest order."""
    forms = [{}]
    for name, values in {
        "algorithm_type": ("dpmsolver++", "dpmsolver", "sde-dpmsolver++", "sde-dpmsolver"),
        "solver_type": ("midpoint", "heun", "bh1", "bh2"),
        "predict_x0": (True, False),
    }.items():
        kept = []
        for form in forms:
            for value in values:
                try:
                    cls(**form, **{name: value})
                    kept.append({**form, name: value})
                except (TypeError, ValueError):
                    continue
        forms = kept or forms
    return forms


@pytest.mark.parametrize("name", each(LOG_SNR))
def test_tables_and_their_gradients_are_finite_also_at_the_end(name):
    # To sigma = 0 by high orders, where diffusers has NaN in places; and a step of no length.
    cls = SCHEDULERS[name]
    alphas = jnp.array([1e-6, 0.2, 0.5, 0.5, 0.8, 0.95, 1.0])
    sigmas = jnp.array([1.0, 0.98, 0.87, 0.87, 0.6, 0.31, 0.0])
    times = jnp.arange(6.0)
    for form in tables(cls):
        scheduler = cls(solver_order=3, lower_order_final=False, **form)

        @jax.jit
        def table(alphas, sigmas, scheduler=scheduler):
            columns = jax.tree.leaves(scheduler.weights(Levels(times, alphas, sigmas)))
            return sum(jnp.sum(jnp.square(column)) for column in columns)

        numbers = jax.value_and_grad(table, argnums=(0, 1))(alphas, sigmas)
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(numbers)), form


@pytest.mark.parametrize("name", LOG_SNR)
def test_a_predicted_variance_is_not_used(name):
    scheduler = SCHEDULERS[name](variance_type="learned_range")
    without = SCHEDULERS[name]()
    x = jnp.linspace(-1, 1, 6).reshape(1, 2, 3)
    state = scheduler.set_timesteps(2)
    both = jnp.concatenate([2 * x, jnp.full_like(x, jnp.nan)], axis=-1)
    x0 = scheduler.denoise(state, both, x)
    np.testing.assert_array_equal(x0, without.denoise(without.set_timesteps(2), 2 * x, x))
    with pytest.raises(ValueError, match="; set another variance_type for a network"):
        scheduler.denoise(state, x, x)


def test_the_inverse_takes_a_sample_to_where_the_solver_brings_it_back_from():
    # The exact denoiser of a normal distribution: the errors are those of the two solvers.
    options = {
        "solver_order": 2,
        "prediction_type": "sample",
        "algorithm_type": "dpmsolver",
    }
    forth = SCHEDULERS["DPMSolverMultistepInverseScheduler"](**options)
    back = SCHEDULERS["DPMSolverMultistepScheduler"](
        **options, final_sigmas_type="sigma_min"
    )
    start = jnp.linspace(-1, 1, 5)[None]

    def run(scheduler, x, n):
        state = scheduler.prepare(scheduler.set_timesteps(n), x)

        def step(carry, _):
            state, x = carry
            variance = jnp.square(0.5 * state.alpha) + jnp.square(state.sigma)
            x0 = 0.25 * state.alpha / variance * x
            return scheduler.advance(state, x, x0, jnp.zeros_like(x)), None

        (_, end), _ = jax.lax.scan(step, (state, x), length=state.num_steps)
        return end

    errors = []
    for n in (25, 50, 100):
        there_and_back = jax.jit(lambda x, n=n: run(back, run(forth, x, n), n))(start)
        errors.append(float(jnp.max(jnp.abs(there_and_back - start))))

    # Of second order: twice the steps, a fourth of the error.
    assert errors[0] < 0.05
    assert errors[0] / errors[1] > 3
    assert errors[1] / errors[2] > 3


def test_singlestep_orders_are_those_of_diffusers_docstring():
    def orders(n, **options):
        cls = SCHEDULERS["DPMSolverSinglestepScheduler"]
        return cls(solver_order=3, **options)._orders(n).tolist()

    to_level = {"final_sigmas_type": "sigma_min"}
    assert orders(6, **to_level) == [1, 2, 3, 1, 2, 3]
    assert orders(6, **to_level, lower_order_final=True) == [1, 2, 3, 1, 2, 1]
    assert orders(5, **to_level) == [1, 2, 3, 1, 2]
    assert orders(5) == [1, 2, 3, 1, 1]
    assert orders(4) == [1, 2, 3, 1]


@pytest.mark.parametrize("name", LOG_SNR)
def test_the_highest_exponential_level_is_told_as_the_last_training_time(name):
    # The logarithm of its exponential is a rounding error below: it is not cut to 998.
    options = {"use_exponential_sigmas": True, "beta_schedule": "scaled_linear"}
    scheduler = SCHEDULERS[name](beta_start=0.00085, beta_end=0.012, **options)
    times = np.asarray(scheduler.set_timesteps(20).timesteps)
    assert times.max() == 999


def test_times_that_begin_lower_end_at_the_first_training_time():
    # Of 20 times the highest are left out; 8 steps from the 18th end at the time 0.5 - 1.
    scheduler = SCHEDULERS["DPMSolverMultistepScheduler"](
        num_train_timesteps=20,
        beta_start=0.02,
        beta_end=0.06,
        timestep_spacing="trailing",
        lambda_min_clipped=-0.0323,
    )
    state = scheduler.set_timesteps(8)
    assert state.timesteps[-1] == 0
    assert np.all(np.diff(state.timesteps) < 0)
    assert np.all(np.diff(state.sigmas) < 0)

"""Samples in bfloat16: what is rounded is the samples, and nothing that a step magnifies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cmjax
from cmjax import testing

MEAN = 0.3
STD = 0.5
SHAPE = (500, 2)
KEY = jax.random.key(0)


def draw(scheduler, dtype, num_steps, **options):
    """Samples of data N(MEAN, STD^2) by a network without errors, of samples of any dtype."""

    def denoised(params, x, sigma):
        return (STD**2 * x + sigma**2 * MEAN) / (STD**2 + sigma**2)

    exact = testing.network_of(scheduler.parametrization, denoised)

    def network(params, x, t):
        return exact(params, x.astype(jnp.float32), t)

    options |= {"num_inference_steps": num_steps, "dtype": dtype}
    return cmjax.sample(KEY, network, None, scheduler, SHAPE, **options)


# At low levels eps is a difference of nearly equal numbers, and these give it a large weight.
@pytest.mark.parametrize(
    "scheduler, num_steps",
    [
        (cmjax.FlowMatchHeunDiscreteScheduler(), 2),
        (cmjax.FlowMatchHeunDiscreteScheduler(), 8),
        (cmjax.ScoreSdeVpScheduler(), 2),
        (cmjax.ScoreSdeVpScheduler(), 8),
        (cmjax.PNDMScheduler(), 2),
    ],
)
def test_samples_in_bfloat16_are_those_in_float32_rounded(scheduler, num_steps):
    expected = np.asarray(draw(scheduler, jnp.float32, num_steps))
    half = draw(scheduler, jnp.bfloat16, num_steps)
    assert half.dtype == jnp.bfloat16
    error = np.asarray(half, np.float32) - expected
    assert np.sqrt(np.mean(error**2)) < 0.01 * expected.std()


def test_a_constraint_that_changes_nothing_loses_no_digits():
    scheduler = cmjax.FlowMatchHeunDiscreteScheduler()
    free = draw(scheduler, jnp.bfloat16, 4)
    held = draw(scheduler, jnp.bfloat16, 4, constrain=lambda x0: x0)
    np.testing.assert_array_equal(held, free)


def test_what_a_constraint_knows_is_kept_exactly():
    known = jnp.linspace(-1, 1, SHAPE[0]).astype(jnp.bfloat16)
    dtypes = []

    def constrain(x0):
        dtypes.append(x0.dtype)
        return x0.at[:, 0].set(known)

    scheduler = cmjax.FlowMatchHeunDiscreteScheduler()
    samples = draw(scheduler, jnp.bfloat16, 4, constrain=constrain)
    assert set(dtypes) == {jnp.dtype(jnp.bfloat16)}
    np.testing.assert_array_equal(samples[:, 0], known)

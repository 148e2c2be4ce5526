"""Losses of data in half precision and in float64, and of networks that return NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cmjax
from cmjax.training import losses
from tests.support.flow_maps import SCHEDULERS
from tests.support.training import EDM, evaluate

DATA = np.linspace(-1, 1, 24, dtype=np.float32).reshape(8, 3)
PARAMS = {"gain": jnp.float32(0.5), "bias": jnp.full(3, 0.1)}
TEACHER = {"gain": jnp.float32(0.4), "bias": jnp.zeros(3)}
LOSSES = {
    name: losses.make(name, SCHEDULERS.get(name, EDM), total_steps=100)
    for name in losses.LOSSES
}
LOSSES["dmd"] = losses.DistributionMatching(EDM, fake_steps=1)
LOSSES["sct of angles"] = losses.SimplifiedConsistencyTraining(cmjax.SCMScheduler())
LOSSES["adversarial"] = losses.Adversarial(
    EDM, lambda gain, x: jnp.tanh(gain.astype(x.dtype) * x).sum(-1)
)
# Steps of these losses may be as small as the rounding of noisy samples to bfloat16.
COARSE = {"progressive": 0.4, "imm": 0.4, "scd": 0.2, "continuous_cd": 0.2, "ctm": 0.3}


def network(params, x, *times):
    gain = params["gain"].astype(x.dtype)
    return jnp.tanh(gain * x + params["bias"].astype(x.dtype)[None])


def gradient(loss, apply_fn, data, params=PARAMS):
    """Returns (loss, metrics, gradient) of a batch."""
    if isinstance(loss, losses.Adversarial):
        params = losses.AdversarialParams(params, jnp.float32(0.5))
    params = loss.prepare_params(params)
    teacher = TEACHER if loss.needs_teacher else None

    def objective(params):
        batch = {"data": jnp.asarray(data)}
        return evaluate(loss, apply_fn, params, batch, teacher=teacher, step=3)

    (value, metrics), grads = jax.value_and_grad(objective, has_aux=True)(params)
    return value, metrics, jnp.concatenate([g.ravel() for g in jax.tree.leaves(grads)])


@pytest.mark.parametrize("name", LOSSES)
def test_data_of_other_dtypes_have_the_same_loss(name):
    """The network may return samples of their dtype, or float32."""
    loss = LOSSES[name]
    tolerance = COARSE.get(name, 0.05)
    expected, _, expected_gradient = gradient(loss, network, DATA)
    for returned in (None, jnp.float32):

        def apply_fn(params, x, *times, dtype=returned):
            return network(params, x, *times).astype(dtype or x.dtype)

        found, metrics, found_gradient = gradient(loss, apply_fn, DATA.astype(jnp.bfloat16))
        assert found.dtype == metrics["loss"].dtype == jnp.float32
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=0.02)
        largest = max(np.abs(expected_gradient).max(), 0.1)
        np.testing.assert_allclose(
            found_gradient, expected_gradient, atol=tolerance * largest
        )


@pytest.mark.parametrize("name", LOSSES)
def test_float64_data(name):
    expected, _, _ = gradient(LOSSES[name], network, DATA)
    with jax.enable_x64(True):
        found, metrics, _ = gradient(LOSSES[name], network, DATA.astype(np.float64))
    assert found.dtype == metrics["loss"].dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-3)


@pytest.mark.parametrize("name", LOSSES)
def test_networks_that_return_nan_have_no_small_loss(name):
    def broken(params, x, *times):
        return network(params, x, *times) * jnp.nan

    value, metrics, _ = gradient(LOSSES[name], broken, DATA)
    assert np.isnan(value) and np.isnan(metrics["loss"])


def test_many_small_steps_of_progressive_distillation():
    """A teacher that knows the one datum is best replaced by itself, however small the steps."""
    loss = losses.ProgressiveDistillation(EDM, student_steps=10_000)
    network = cmjax.testing.network_of(
        EDM.parametrization.without_boundary(), lambda datum, x, sigma: datum + 0 * x
    )
    batch = {"data": jnp.full((64, 3), 0.5)}
    value, _ = evaluate(loss, network, jnp.float32(0.5), batch, teacher=jnp.float32(0.5))
    assert value < 1e-9

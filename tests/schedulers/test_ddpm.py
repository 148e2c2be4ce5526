"""DDPM's variances: the paper's, and what a network that learned them says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cmjax
from cmjax.schedulers import DDPMScheduler

KEY = jax.random.key(0)
SHAPE = (4, 3, 2)


def deviations(variance_type, spread):
    """The standard deviation of the noise of each step, by what the network says, `spread`."""
    scheduler = DDPMScheduler(variance_type=variance_type)
    state = scheduler.set_timesteps(4)
    x = jnp.ones((1, 1))
    output = jnp.full((1, 1 if spread is None else 2), spread or 0.0)
    made = []
    for step in range(4):
        row = state.replace(step_index=jnp.int32(step))
        noise = scheduler.step_noise(row, output, x)
        _, low = scheduler.advance(row, x, x, jnp.zeros_like(x))
        _, high = scheduler.advance(row, x, x, noise)
        made.append(float((high - low)[0, 0]))
    return np.array(made)


def test_the_range_of_a_learned_variance_is_from_the_small_to_the_large_one():
    # Ho et al. 2020, section 3.2, of a run's own steps.
    state = DDPMScheduler().set_timesteps(4)
    alphas = np.float64(state.alphas)
    sigmas = np.float64(state.sigmas)
    beta = 1 - (alphas[:-1] / alphas[1:]) ** 2
    large = np.append(beta[:-1] ** 0.5, 0)  # the last step adds none
    small = large * sigmas[1:] / sigmas[:-1]

    for name in ("fixed_small", "fixed_small_log"):
        np.testing.assert_allclose(deviations(name, None), small, atol=1e-5)
    for name in ("fixed_large", "fixed_large_log"):
        np.testing.assert_allclose(deviations(name, None), large, atol=1e-5)
    for spread, expected in ((-1.0, small), (1.0, large), (0.0, (small * large) ** 0.5)):
        learned = deviations("learned_range", spread)
        np.testing.assert_allclose(learned, expected, atol=1e-5)
    np.testing.assert_allclose(deviations("learned", 0.25), [0.5, 0.5, 0.5, 0], atol=1e-5)
    np.testing.assert_allclose(deviations("learned", -1.0), 0, atol=1e-6)


@pytest.mark.parametrize("variance_type", ["learned", "learned_range"])
def test_learned_variances_run_in_the_loop_and_at_half_precision(variance_type):
    scheduler = DDPMScheduler(variance_type=variance_type)

    def apply_fn(params, x, t):
        return jnp.concatenate([jnp.tanh(x), jnp.tanh(x) ** 2], axis=-1)

    def draw(first_index, batch, dtype=jnp.float32):
        return cmjax.sample(
            KEY,
            apply_fn,
            None,
            scheduler,
            (batch, *SHAPE[1:]),
            num_inference_steps=3,
            first_index=first_index,
            dtype=dtype,
        )

    x = draw(0, 4)
    np.testing.assert_allclose(x[2:], draw(2, 2), rtol=1e-5, atol=1e-6)
    half = draw(0, 4, jnp.bfloat16)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(half), x, atol=0.1)


def test_a_learned_variance_of_a_wrong_shape_says_what_is_expected():
    x = jnp.ones(SHAPE)
    scheduler = DDPMScheduler(variance_type="learned_range")
    state = scheduler.set_timesteps(2)
    with pytest.raises(ValueError, match=r"model_output.*\(4, 3, 4\).*got \(4, 3, 2\)"):
        scheduler.step(KEY, state, x, x)
    with pytest.raises(ValueError, match="samples need a last axis of channels"):
        scheduler.step(KEY, state, x[:, 0, 0], x[:, 0, 0])


def test_a_learned_variance_has_a_gradient_also_where_it_is_none():
    scheduler = DDPMScheduler(variance_type="learned")
    state = scheduler.set_timesteps(2)
    noise = jnp.array([[1.0, 2.0]])

    def total(variance):
        output = jnp.concatenate([noise, variance], axis=-1)
        return jnp.sum(scheduler.step_noise(state, output, noise))

    # d sqrt(v) z / dv = z / (2 sqrt(v)), and no slope where there is no noise.
    gradient = jax.grad(total)(jnp.array([[4.0, 0.0]]))
    np.testing.assert_allclose(gradient, [[0.25, 0.0]])

"""VQ-Diffusion against diffusers' class: the same posteriors, and draws by the same noise."""

import json
from unittest import mock

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cmjax import VQDiffusionScheduler
from tests.support.draws import draws


def drawn_config(data):
    def between(low, high):
        return low + (high - low) * data.draw(st.integers(0, 1000)) / 1000

    # Of what is not masked a share is kept, at the end a smaller one.
    gamma_start = between(1e-5, 0.2)
    gamma_end = between(gamma_start + 0.1, 0.99999)
    share = between(0.5, 0.99999)
    return {
        "num_vec_classes": data.draw(st.sampled_from([2, 5, 9])),
        "num_train_timesteps": data.draw(st.sampled_from([2, 5, 12])),
        "alpha_cum_start": share * (1 - gamma_start),
        "alpha_cum_end": between(0.01, 0.999) * share * (1 - gamma_end),
        "gamma_cum_start": gamma_start,
        "gamma_cum_end": gamma_end,
    }


@settings(max_examples=draws(100))
@given(data=st.data())
def test_every_step_equals_that_of_diffusers(data):
    config = drawn_config(data) if data.draw(st.booleans()) else {"num_vec_classes": 5}
    theirs = diffusers.VQDiffusionScheduler(**config)
    ours = VQDiffusionScheduler.from_config(json.loads(theirs.to_json_string()))
    again = diffusers.VQDiffusionScheduler.from_config(ours.to_config())
    assert again.to_json_string() == theirs.to_json_string()

    # One step of a whole run, at any time.
    total = ours.num_train_timesteps
    theirs.set_timesteps(total)
    state = ours.set_timesteps(total)
    np.testing.assert_array_equal(state.timesteps, theirs.timesteps)
    state = state.replace(step_index=jnp.int32(data.draw(st.integers(0, total - 1))))
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    t = int(state.timesteps[state.step_index])

    classes = ours.num_vec_classes
    sample = rng.integers(0, classes, (2, 3))
    logits = 3 * rng.standard_normal((2, 3, classes - 1)).astype(np.float32)
    log_x0 = ours.denoise(state, jnp.asarray(logits), jnp.asarray(sample))
    given_x0 = torch.from_numpy(np.array(log_x0)).movedim(-1, 1)
    posterior = ours.log_posterior(state, jnp.asarray(sample), log_x0)
    if t > 0:
        expected = theirs.q_posterior(given_x0, torch.from_numpy(sample), t)
        expected = expected.movedim(1, -1).numpy()

        # What is not masked has never been: 0, in place of which diffusers has 1e-30.
        possible = np.ones_like(expected, bool)
        possible[..., -1] = sample == classes - 1
        difference = np.abs(posterior - expected)[possible]
        assert np.all(difference <= 1e-5 * (1 + np.abs(expected[possible])))
        assert np.all(posterior[~possible] == -np.inf)

    # The draw, by the same uniform numbers; the last one has no mask to draw.
    shape = (2, classes if t > 0 else classes - 1, 3)
    uniform = torch.from_numpy(rng.uniform(1e-4, 1 - 1e-4, shape).astype(np.float32))
    with mock.patch.object(torch, "rand", lambda *args, **kwargs: uniform):
        drawn = theirs.step(given_x0, t, torch.from_numpy(sample)).prev_sample.numpy()
    noise = -np.log(-np.log(uniform.movedim(1, -1).numpy()))
    noise = np.concatenate([noise, np.zeros((2, 3, 1), np.float32)], axis=-1)
    noise = noise[..., :classes]
    _, result = ours.advance(state, jnp.asarray(sample), log_x0, jnp.asarray(noise))
    best = np.sort(np.asarray(posterior) + noise, axis=-1)
    is_clear = best[..., -1] - best[..., -2] > 1e-3
    np.testing.assert_array_equal(result[is_clear], drawn[is_clear])


def test_few_steps_start_at_the_last_time_where_diffusers_starts_at_a_low_one():
    theirs = diffusers.VQDiffusionScheduler(num_vec_classes=5)
    ours = VQDiffusionScheduler(num_vec_classes=5)
    theirs.set_timesteps(4)
    assert theirs.timesteps.tolist() == [3, 2, 1, 0]
    state = ours.set_timesteps(4)
    assert state.timesteps.tolist() == [99, 74, 49, 24]

    # Both begin with all entries masked: nearly none are at the time where diffusers begins.
    assert theirs.log_cumprod_ct[3].exp() < 0.04
    assert np.exp(state.from_data.mask[0]) > 0.9999


def test_what_is_kept_for_certain_stays_where_diffusers_draws_it_again():
    # Nothing is replaced, so an entry that is not masked is that of x0. Ends that are powers of 2.
    options = {"alpha_cum_start": 0.75, "alpha_cum_end": 0.25}
    options |= {"gamma_cum_start": 0.25, "gamma_cum_end": 0.75, "num_train_timesteps": 3}
    theirs = diffusers.VQDiffusionScheduler(num_vec_classes=4, **options)
    ours = VQDiffusionScheduler(num_vec_classes=4, **options)
    log_x0 = np.log([[[0.5, 0.3, 0.2]]]).astype(np.float32)
    sample = np.array([[1]])
    state = ours.set_timesteps(3)
    posterior = ours.log_posterior(state, jnp.asarray(sample), jnp.asarray(log_x0))
    np.testing.assert_allclose(jax.nn.softmax(posterior[0, 0]), [0, 1, 0, 0], atol=1e-6)
    given_x0 = torch.from_numpy(log_x0).movedim(-1, 1)
    result = theirs.q_posterior(given_x0, torch.from_numpy(sample), 2)[0, :, 0].exp()
    assert not np.allclose(result / result.sum(), [0, 1, 0, 0], atol=0.1)

"""The other samplers against stored runs of diffusers, and churn against the paper.

tests/golden/make_sampler_goldens.py made the runs; tests/support/goldens.py says what is compared.
"""

import collections
import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmjax.schedulers import SCHEDULERS
from tests.support.draws import draws
from tests.support.goldens import (
    FLOAT32,
    assert_close,
    assert_sampler_case_reproduced,
    load_goldens,
)
from tests.support.tiers import thorough


def cases():
    """All stored runs; of each scheduler `pytest` alone repeats the first three."""
    params = []
    seen = collections.Counter()
    for case in load_goldens("samplers"):
        seen[case["name"]] += 1
        kind = pytest.param if seen[case["name"]] <= 3 else thorough
        params.append(kind(case, id=case["name"]))
    return params


@pytest.mark.parametrize("case", cases())
def test_every_quantity_equals_the_stored_one(case):
    assert_sampler_case_reproduced(case)


def algorithm_2(denoiser, sigmas, x, noise, s_churn, s_tmin, s_tmax, s_noise, corrected):
    """Karras et al. 2022, Algorithm 2, in float64; without the correction if so asked.

    Returns the first x hat, which is what cmjax's runs start from, and the end.
    """
    n = len(sigmas) - 1
    first = None
    for i, (t, t_next) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        # Lines 4 to 6: noise raises the level from t to t_hat.
        gamma = min(s_churn / n, math.sqrt(2) - 1) if s_tmin <= t <= s_tmax else 0
        t_hat = t + gamma * t
        x_hat = x + math.sqrt(t_hat**2 - t**2) * s_noise * noise[i]
        if first is None:
            first = x_hat

        # Lines 7 and 8: an Euler step.
        d = (x_hat - denoiser(x_hat, t_hat)) / t_hat
        x = x_hat + (t_next - t_hat) * d

        # Lines 9 to 11: the slope at its end corrects it.
        if corrected and t_next > 0:
            d_next = (x - denoiser(x, t_next)) / t_next
            x = x_hat + (t_next - t_hat) * (d + d_next) / 2
    return first, x


def denoiser(x, sigma):
    return x / (1 + sigma**2) + 0.3 * np.sin(x / np.sqrt(1 + sigma**2))


# diffusers raises the level after the network was called, so that the paper is what churn is
# compared with.
@pytest.mark.parametrize(
    ("name", "calls"),
    [("EDMEulerScheduler", 1), ("EDMHeunScheduler", 2), ("EulerDiscreteScheduler", 1)],
)
@settings(max_examples=draws(50))
@given(data=st.data())
def test_churn_is_that_of_the_paper(name, calls, data):
    # Far less churn than 0.1 a step is not a float32 apart from none.
    ranges = {
        "s_churn": (0.5, 10),
        "s_tmin": (0, 1),
        "s_tmax": (0.5, 100),
        "s_noise": (0, 1.5),
    }
    options = {key: data.draw(st.floats(*ends)) for key, ends in ranges.items()}
    n = data.draw(st.sampled_from([1, 2, 3, 5]))
    sigmas = np.float64(SCHEDULERS[name]().set_timesteps(n).sigmas)
    sigmas = np.append(sigmas[:-1:calls], sigmas[-1])
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    unit, *noise = rng.standard_normal((calls * n + 2, 2, 3), np.float32)
    x = unit * sigmas[0]
    # Only the first call of each step takes noise.
    first, expected = algorithm_2(
        denoiser, sigmas, x, noise[::calls], **options, corrected=calls == 2
    )

    scheduler = SCHEDULERS[name](**options)
    x = jnp.asarray(first, jnp.float32)
    state = scheduler.prepare(scheduler.set_timesteps(n), x)
    for call in range(state.num_steps):
        x0 = jnp.asarray(denoiser(np.float64(x), np.float64(state.sigma)), jnp.float32)
        state, x = scheduler.advance(state, x, x0, jnp.asarray(noise[call + 1]))
    # Heun's second call is a difference of terms as large as the sample that its step began at.
    rounding = 4 * FLOAT32 * np.abs(first).max()
    assert_close(x, expected, 1 + np.abs(expected), "the end of the run", atol=rounding)

"""Truth of the grids of noise levels that several samplers share."""

import numpy as np
import pytest
import scipy.stats

from cmjax.schedulers import SCHEDULERS
from cmjax.schedulers.grids import beta_quantiles


@pytest.mark.parametrize("shape", [0.05, 0.6, 1.0])
def test_quantiles_of_the_beta_distribution_are_those_of_scipy(shape):
    small = np.geomspace(1e-12, 0.5, 50)
    probabilities = np.concatenate([[0, 1], small, 1 - small, np.linspace(0, 1, 101)])
    expected = scipy.stats.beta.ppf(probabilities, shape, shape)
    actual = beta_quantiles(probabilities, shape)
    np.testing.assert_allclose(actual, expected, rtol=1e-13)


@pytest.mark.parametrize("n", [1, 2, 3, 12])
def test_beta_levels_keep_the_ends_and_lie_close_together_there(n):
    beta = SCHEDULERS["HeunDiscreteScheduler"](use_beta_sigmas=True)
    ends = np.array(beta.sigma_range[::-1])[: min(n, 2)]
    sigmas = np.float64(beta.set_timesteps(n).sigmas[:-1:2])
    np.testing.assert_allclose(sigmas[[0, -1]][: len(ends)], ends, rtol=1e-6)
    steps = -np.diff(sigmas)
    assert np.all(steps > 0)
    assert np.all(np.diff(steps[: n // 2]) > 0)
    np.testing.assert_allclose(steps, steps[::-1], rtol=1e-4)

"""Schedules against the papers' printed formulas and values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmjax.training import discretization as d


def test_number_of_levels_grows_from_s0_to_s1():
    # Song et al. 2023, Appendix C: s0 = 2, s1 = 150 on CIFAR-10 over 800,000 steps.
    total = 800_000
    n = jax.vmap(lambda k: d.consistency_num_scales(k, total))(jnp.arange(0, total + 1, 1000))
    assert n[0] == 2 and n[-1] == 151
    assert np.all(np.diff(n) >= 0)
    k = 400_000
    expected = np.ceil(np.sqrt(k / total * (151**2 - 4) + 4) - 1) + 1
    assert int(d.consistency_num_scales(jnp.int32(k), total)) == expected == 107


def test_target_decay_is_mu0_at_the_start_and_tends_to_one():
    assert d.consistency_ema_decay(jnp.int32(2), 2, 0.9) == pytest.approx(0.9, rel=1e-6)
    assert d.consistency_ema_decay(jnp.int32(150), 2, 0.9) == pytest.approx(np.exp(2 * np.log(0.9) / 150), rel=1e-6)


def test_adjacent_levels_are_neighbours_on_the_grid():
    from cmjax import CMStochasticIterativeScheduler

    grid = CMStochasticIterativeScheduler(num_train_timesteps=18).grid()
    higher, lower = d.adjacent_levels(jnp.arange(17), jnp.int32(18), 0.002, 80.0, 7.0)
    np.testing.assert_allclose(higher, grid[:-1], rtol=2e-5)
    np.testing.assert_allclose(lower, grid[1:], rtol=2e-5)


def test_easy_ratio_follows_its_equation_and_closes_the_gap():
    t = jnp.array([0.01, 0.5, 1.0, 10.0, 80.0])
    for step, stage in ((0, 1.0), (100, 2.0), (150, 2.5), (700, 8.0)):
        n = 1 + 8 / (1 + np.exp(np.asarray(t, np.float64)))
        expected = np.asarray(t) * np.clip(1 - n / 2**stage, 0, 1)
        np.testing.assert_allclose(d.easy_consistency_level(t, jnp.int32(step), 100), expected, rtol=1e-4, atol=1e-6)
    ratios = [float(d.easy_consistency_level(t, jnp.int32(k), 100)[3] / t[3]) for k in (0, 100, 300, 1500)]
    assert ratios == sorted(ratios) and ratios[0] == pytest.approx(0.5, abs=1e-3) and ratios[-1] > 0.9999
    # at the first stage low noise is compared with the data itself
    assert d.easy_consistency_level(t, jnp.int32(0), 100)[0] == 0

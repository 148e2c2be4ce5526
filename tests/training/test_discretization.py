"""Schedules against the papers' printed formulas and values."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmjax.schedulers.levels import karras_sigmas
from cmjax.training import discretization as d
from tests.support.training import karras_grid


def test_number_of_levels_grows_from_first_to_last():
    # Song et al. 2023, Appendix C: s0 = 2, s1 = 150 on CIFAR-10 over 800,000 steps.
    total = 800_000
    n = jax.vmap(lambda k: d.growing_num_levels(k, total))(jnp.arange(0, total + 1, 1000))
    assert n[0] == 2 and n[-1] == 151
    assert np.all(np.diff(n) >= 0)
    k = 400_000
    expected = np.ceil(np.sqrt(k / total * (151**2 - 4) + 4) - 1) + 1
    assert int(d.growing_num_levels(jnp.int32(k), total)) == expected == 107


def test_improved_training_doubles_its_levels():
    # Song & Dhariwal 2023, section 3.4: s0 = 10, s1 = 1280 over 400,000 steps, doubling every
    # 50,000.
    total = 400_000
    n = jax.vmap(lambda k: d.doubling_num_levels(k, total))(jnp.arange(0, total + 1, 1000))
    assert sorted(set(n.tolist())) == [11, 21, 41, 81, 161, 321, 641, 1281]
    assert (
        n[49] == 11 and n[50] == 21 and n[349] == 641 and n[350] == 1281 and n[-1] == 1281
    )
    # not a power of two: the last doubling is cut short
    assert int(d.doubling_num_levels(jnp.int32(10**9), 1000, 10, 150)) == 151


def test_improved_training_draws_levels_by_the_mass_between_them():
    # Song & Dhariwal 2023, section 3.5: differences of erf over the grid, p_mean = -1.1, p_std = 2.
    n, draws = 11, 400_000
    grid = karras_sigmas(np.arange(n) / (n - 1), 0.002, 80.0, 7.0)
    erf = np.array([math.erf((math.log(sigma) + 1.1) / (2**0.5 * 2.0)) for sigma in grid])
    expected = -np.diff(erf) / (erf[0] - erf[-1])
    index = d.lognormal_index(
        jax.random.key(0), draws, -1.1, 2.0, jnp.int32(n), 0.002, 80.0, 7.0
    )
    found = np.bincount(index, minlength=n - 1) / draws
    # Five standard deviations: one false alarm in a million draws of the seed.
    assert np.all(np.abs(found - expected) < 5 * np.sqrt(expected / draws) + 1e-6)


def test_tangents_warm_up_linearly():
    # Lu & Song 2024, section 4.2: r = min(1, k / H), H = 10,000.
    shares = [float(d.tangent_warmup(jnp.int32(k))) for k in (0, 2500, 10_000, 50_000)]
    assert shares == [0, 0.25, 1, 1]


def test_target_decay_is_its_first_at_the_start_and_tends_to_one():
    assert d.growing_target_decay(jnp.int32(2), 2, 0.9) == pytest.approx(0.9, rel=1e-6)
    assert d.growing_target_decay(jnp.int32(150), 2, 0.9) == pytest.approx(
        np.exp(2 * np.log(0.9) / 150), rel=1e-6
    )


def test_the_edges_of_the_schedules():
    # One interval at the start still is two levels; no moving average is a decay of exactly zero.
    assert int(d.growing_num_levels(jnp.int32(0), 100, 1, 10)) == 2
    assert float(d.growing_target_decay(jnp.int32(7), 2, 0.0)) == 0


def test_adjacent_levels_are_neighbours_on_the_grid():
    grid = karras_grid(18)
    higher, lower = d.adjacent_levels(jnp.arange(17), jnp.int32(18), 0.002, 80.0, 7.0)
    np.testing.assert_allclose(higher, grid[:-1], rtol=2e-5)
    np.testing.assert_allclose(lower, grid[1:], rtol=2e-5)


def test_easy_ratio_follows_its_equation_and_closes_the_gap():
    t = jnp.array([0.01, 0.5, 1.0, 10.0, 80.0])
    for step, stage in ((0, 1.0), (100, 2.0), (150, 2.5), (700, 8.0)):
        n = 1 + 8 / (1 + np.exp(np.asarray(t, np.float64)))
        expected = np.asarray(t) * np.clip(1 - n / 2**stage, 0, 1)
        np.testing.assert_allclose(
            d.easy_consistency_level(t, jnp.int32(step), 100),
            expected,
            rtol=1e-4,
            atol=1e-6,
        )
    ratios = [
        float(d.easy_consistency_level(t, jnp.int32(k), 100)[3] / t[3])
        for k in (0, 100, 300, 1500)
    ]
    assert ratios == sorted(ratios)
    assert ratios[0] == pytest.approx(0.5, abs=1e-3) and ratios[-1] > 0.9999
    # Whole stages stay at what they began with.
    for step, first in ((199, 100), (200, 200)):
        np.testing.assert_allclose(
            d.easy_consistency_level(t, jnp.int32(step), 100, whole_stages=True),
            d.easy_consistency_level(t, jnp.int32(first), 100),
            rtol=1e-6,
        )
    # at the first stage low noise is compared with the data itself
    assert d.easy_consistency_level(t, jnp.int32(0), 100)[0] == 0

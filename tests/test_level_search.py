"""The search for noise levels finds minima, keeps its budget and goes on where it stopped."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cmjax
from cmjax.evaluation import search_sigmas

BEST = (80.0, 5.0, 0.7)


def bowl(sigmas):
    """A smooth objective whose minimum is at BEST, with a valley along the diagonal."""
    a = math.log(sigmas[1] / BEST[1])
    b = math.log(sigmas[2] / BEST[2])
    return a**2 + b**2 + 0.5 * a * b


def counted(objective):
    calls = []

    def call(sigmas):
        calls.append(sigmas)
        return objective(sigmas)

    return call, calls


def test_it_finds_the_minimum():
    found = search_sigmas(bowl, (80.0, 20.0, 2.0), num_trials=200)
    np.testing.assert_allclose(found.sigmas, BEST, rtol=0.02)
    assert found.sigmas[0] == 80
    assert found.score == bowl(found.sigmas) == min(trial.score for trial in found.trials)


def test_it_takes_one_evaluation_for_a_section_and_none_twice():
    objective, calls = counted(bowl)
    search_sigmas(objective, (80.0, 20.0, 2.0), num_trials=200)
    assert len(set(calls)) == len(calls)

    # One level: log(80 / 0.002) = 10.6 shrinks to 0.02 in 14 sections, after the first two.
    objective, calls = counted(lambda sigmas: (math.log(sigmas[1]) - 0.3) ** 2)
    found = search_sigmas(objective, (80.0, 0.5), num_trials=16)
    assert len(calls) == 16
    assert abs(math.log(found.sigmas[1]) - 0.3) < 0.02


@pytest.mark.parametrize("num_trials", [1, 2, 7, 20])
def test_it_keeps_its_budget_and_is_never_worse_than_its_start(num_trials):
    objective, calls = counted(lambda sigmas: math.sin(9 * sigmas[1]) + math.cos(sigmas[2]))
    start = (80.0, 20.0, 2.0)
    found = search_sigmas(objective, start, num_trials=num_trials)
    assert len(calls) == len(found.trials) == num_trials
    assert calls[0] == start and found.trials[0].sigmas == start
    assert found.score <= found.trials[0].score


def test_a_search_that_was_cut_short_goes_on():
    whole = search_sigmas(bowl, (80.0, 20.0, 2.0), num_trials=25)
    part = search_sigmas(bowl, (80.0, 20.0, 2.0), num_trials=10)
    stored = json.loads(json.dumps(part.trials))  # as a file would keep them
    objective, calls = counted(bowl)
    resumed = search_sigmas(objective, (80.0, 20.0, 2.0), num_trials=25, trials=stored)
    assert resumed == whole
    assert len(calls) == 15


@pytest.mark.parametrize("dtype", [np.uint8, jnp.bfloat16])
def test_levels_of_any_dtype(dtype):
    # Differences of unsigned integers are never negative.
    levels = jnp.asarray([80, 20, 2], dtype)
    found = search_sigmas(bowl, levels, num_trials=3)
    assert found == search_sigmas(bowl, (80.0, 20.0, 2.0), num_trials=3)


def test_levels_that_are_traced_are_refused():
    with pytest.raises(ValueError, match="sigmas must be numbers that are known"):
        jax.jit(lambda sigmas: search_sigmas(bowl, sigmas))(jnp.array([80.0, 20.0, 2.0]))


def test_levels_of_samples():
    # With a network of zeros, x0 = c_skip x: two-step samples have the deviation
    # 0.25 sigma / (sigma^2 + 0.25), which is 0.2 for sigma = 1 and 1 / 4.
    scheduler = cmjax.CMStochasticIterativeScheduler()

    def apply_fn(params, x, t):
        return jnp.zeros_like(x)

    @jax.jit
    def objective(sigmas):
        key = jax.random.key(0)
        x = cmjax.sample(key, apply_fn, None, scheduler, (20_000, 1), sigmas=sigmas)
        return jnp.abs(jnp.std(x) - 0.2)

    found = search_sigmas(
        lambda sigmas: objective(np.float32(sigmas)), (80.0, 5.0), num_trials=16
    )
    assert min(abs(found.sigmas[1] / sigma - 1) for sigma in (1, 0.25)) < 0.05


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sigmas": (80.0,)}, "sigmas must be at least two levels"),
        ({"sigmas": (1.0, 2.0)}, "sigmas must descend and be at least lowest=0.002"),
        ({"sigmas": (80.0, math.nan)}, "sigmas must be at least two levels"),
        ({"sigmas": (True, False)}, "sigmas must be real numbers, got bool"),
        ({"sigmas": (80.0, 0.001)}, "sigmas must descend and be at least lowest=0.002"),
        ({"objective": None}, "objective must be a function of levels, got None"),
        ({"objective": lambda s: math.nan}, "finite number, got .*; where samples fail"),
        ({"objective": lambda s: [1, 2]}, "objective must return a finite number, got"),
        ({"num_trials": 0}, "num_trials must be an integer of at least 1, got 0"),
        ({"num_trials": True}, "num_trials must be an integer of at least 1, got True"),
        ({"lowest": 0.0}, "lowest must be a positive number, got 0.0"),
        ({"tolerance": 0.0}, "tolerance must be from 1e-4 to 1, got 0.0"),
        ({"trials": [1]}, "trials must be pairs of levels and a score"),
        ({"trials": [((80.0, 5.0), 10**400)]}, "trials must be pairs of levels and a"),
        ({"trials": [((80.0, 5.0), math.nan)]}, "trials must have finite scores, got nan"),
    ],
)
def test_misuse(changes, message):
    arguments = {"objective": bowl, "sigmas": (80.0, 20.0, 2.0), **changes}
    with pytest.raises(ValueError, match=message):
        search_sigmas(**arguments)

"""Training at whole times: noised data and velocities, for networks of every discrete sampler."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmjax.arrays import weighted_sum
from cmjax.schedulers import SCHEDULERS
from cmjax.schedulers.discrete import DiscreteScheduler
from cmjax.schedulers.discrete_sigmas import DiscreteSigmasScheduler

KINDS = (DiscreteScheduler, DiscreteSigmasScheduler)
DISCRETE = [name for name, cls in SCHEDULERS.items() if issubclass(cls, KINDS)]
TIMES = jnp.array([0, 400, 999])
X0 = jnp.linspace(-1, 1, 12).reshape(3, 2, 2)
NOISE = jnp.cos(5 * X0)


@pytest.mark.parametrize("name", DISCRETE)
def test_a_network_of_the_velocity_denoises_exactly_what_was_noised(name):
    scheduler = SCHEDULERS[name](prediction_type="v_prediction")
    parametrization = scheduler.parametrization

    @jax.jit
    def train(times):
        noisy = parametrization.add_noise(times, X0, NOISE)
        velocity = parametrization.velocity(times, X0, NOISE)
        alpha, sigma = parametrization.path(times)
        _, c_skip, c_out = parametrization.scalings(alpha, sigma)
        return weighted_sum((c_skip, noisy), (c_out, velocity))

    np.testing.assert_allclose(train(TIMES), X0, atol=1e-4)


def test_one_time_for_all_and_half_precision():
    parametrization = SCHEDULERS["DDPMScheduler"]().parametrization
    each = parametrization.add_noise(jnp.full(3, 400), X0, NOISE)
    np.testing.assert_array_equal(parametrization.add_noise(400, X0, NOISE), each)
    half = [array.astype(jnp.bfloat16) for array in (X0, NOISE)]
    for method in (parametrization.add_noise, parametrization.velocity):
        assert method(TIMES, *half).dtype == jnp.bfloat16
        np.testing.assert_allclose(
            np.float32(method(TIMES, *half)), method(TIMES, X0, NOISE), atol=0.02
        )


@pytest.mark.parametrize(
    ("time", "message"),
    [
        (1000, "time must be integers from 0 to 999, got 1000"),
        ([0, -1, 5], r"time must be integers from 0 to 999, got \[0, -1, 5\]"),
        (0.5, "time must be integers from 0 to 999, got 0.5"),
        ([1, 2], r"time must be one for each sample, \(3,\), or one for all, got \(2,\)"),
    ],
)
@pytest.mark.parametrize("name", ["DDPMScheduler", "HeunDiscreteScheduler"])
def test_wrong_training_times_are_named_in_one_line(name, time, message):
    parametrization = SCHEDULERS[name]().parametrization
    for method in (parametrization.add_noise, parametrization.velocity):
        with pytest.raises(ValueError, match=message):
            method(time, X0, NOISE)


@pytest.mark.parametrize("name", ["DDPMScheduler", "FlowMatchEulerDiscreteScheduler"])
def test_noising_takes_floats_only(name):
    # Whole numbers would come out rounded, and bytes are not in [-1, 1].
    parametrization = SCHEDULERS[name]().parametrization
    for data in (np.uint8(X0), jnp.ones_like(X0, int)):
        with pytest.raises(ValueError, match="original must hold floats, got u?int"):
            parametrization.add_noise(1, data, NOISE)
    with pytest.raises(ValueError, match="noise must hold floats, got complex64"):
        parametrization.add_noise(1, X0, NOISE.astype(complex))


def test_noising_takes_lists():
    parametrization = SCHEDULERS["DDPMScheduler"]().parametrization
    lists = parametrization.add_noise([0, 400, 999], X0.tolist(), NOISE.tolist())
    np.testing.assert_array_equal(lists, parametrization.add_noise(TIMES, X0, NOISE))


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("FlowMatchEulerDiscreteScheduler", "1000"),
        ("ScoreSdeVpScheduler", "999"),
        ("ScoreSdeVeScheduler", "inf"),
        ("KarrasVeScheduler", "inf"),
        ("SCMScheduler", "1.5708"),
        ("IPNDMScheduler", "1"),
    ],
)
def test_times_that_a_network_does_not_know_are_errors(name, last):
    parametrization = SCHEDULERS[name]().parametrization
    for time in (-0.5, float("nan"), float("inf")):
        message = f"time must be finite numbers from 0 to {last}, got {time}"
        with pytest.raises(ValueError, match=message):
            parametrization.add_noise(time, X0, NOISE)
    with pytest.raises(ValueError, match="time must be numbers, got 'last'"):
        parametrization.add_noise("last", X0, NOISE)

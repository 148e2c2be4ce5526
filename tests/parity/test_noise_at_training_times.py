"""Noised data and velocities at training times, against diffusers' `add_noise` and `get_velocity`.

The schedulers are found through the registry: all that diffusers has too, and that have betas.
"""

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from cmjax.schedulers import SCHEDULERS
from tests.support.reference_schedulers import reference_class

# diffusers hands tensors to NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

OPTIONS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
TIMES = np.array([0, 1, 17, 500, 998, 999], np.int32)  # i32[B], some at each end
X0 = np.random.default_rng(0).normal(size=(6, 2, 3)).astype(np.float32)
NOISE = np.random.default_rng(1).normal(size=(6, 2, 3)).astype(np.float32)

# Until `set_timesteps` is called, these hold their levels in ascending and their timesteps in
# descending order, and look up the one at the place of the other: at t they noise as at N - 1 - t.
REVERSED = (
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "UniPCMultistepScheduler",
)


def with_method(method):
    """The schedulers with betas whose class in diffusers has a method of training times."""
    return [
        name
        for name, cls in SCHEDULERS.items()
        if "beta_start" in cls.__dataclass_fields__
        and hasattr(diffusers, name)
        and hasattr(reference_class(name), method)
        and name != "RePaintScheduler"  # has it, and raises: "use DDPMScheduler.add_noise"
    ]


@pytest.mark.parametrize("name", with_method("add_noise"))
def test_noised_data_are_those_of_diffusers(name):
    times = 999 - TIMES if name in REVERSED else TIMES
    theirs = reference_class(name)(**OPTIONS)
    expected = theirs.add_noise(*map(torch.tensor, (X0, NOISE, times.astype(np.int64))))
    expected = expected.numpy()

    # As training does: a time for each sample, traced.
    parametrization = SCHEDULERS[name](**OPTIONS).parametrization
    noised = jax.jit(parametrization.add_noise)(jnp.asarray(TIMES), X0, NOISE)
    scale = np.abs(expected).max(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(noised / scale, expected / scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", with_method("get_velocity"))
def test_velocities_are_those_of_diffusers(name):
    theirs = reference_class(name)(**OPTIONS)
    times = torch.tensor(TIMES.astype(np.int64))

    # This one refuses integers, and looks up the levels of floats in the wrong order.
    if name == "EulerDiscreteScheduler":
        times = 999.0 - times
    expected = theirs.get_velocity(torch.tensor(X0), torch.tensor(NOISE), times)

    parametrization = SCHEDULERS[name](**OPTIONS).parametrization
    velocity = jax.jit(parametrization.velocity)(jnp.asarray(TIMES), X0, NOISE)
    np.testing.assert_allclose(velocity, expected.numpy(), rtol=0, atol=1e-5)


def test_flow_matching_at_the_times_of_its_levels():
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)

    # diffusers looks up the level of one of its timesteps; here the time itself says it.
    times = theirs.timesteps[[0, 3, 100, 700, 998, 999]]
    expected = theirs.scale_noise(torch.tensor(X0), times, torch.tensor(NOISE))
    parametrization = SCHEDULERS["FlowMatchEulerDiscreteScheduler"](
        shift=3.0
    ).parametrization
    noised = jax.jit(parametrization.add_noise)(jnp.asarray(times.numpy()), X0, NOISE)
    np.testing.assert_allclose(noised, expected.numpy(), rtol=0, atol=1e-5)


def test_the_classes_that_training_code_used_are_among_them():
    used = {
        "DDIMScheduler",
        "DDPMScheduler",
        "EulerDiscreteScheduler",
        "LMSDiscreteScheduler",
    }
    assert used <= set(with_method("add_noise"))
    assert used & set(with_method("get_velocity")) == used - {"LMSDiscreteScheduler"}

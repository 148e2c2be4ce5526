"""The files of well-known public models give the times that diffusers makes of them."""

import diffusers
import numpy as np
import pytest

import cmjax
from cmjax.schedulers import SCHEDULERS
from tests.support import published

# diffusers hands tensors to NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

# Of these diffusers' timesteps are not what the network is given, or there is no noise at all.
OTHER_TIMES = ("ScoreSdeVeScheduler", "VQDiffusionScheduler")


def class_of(model):
    return published.FILES[model]["_class_name"].removeprefix("Flax")


COMPARED = [
    model
    for model in published.FILES
    if class_of(model) in SCHEDULERS
    and class_of(model) not in OTHER_TIMES
    and model not in published.OTHER_OPTIONS
]


@pytest.mark.parametrize("model", COMPARED)
def test_the_times_are_those_of_diffusers(model):
    config = published.FILES[model]
    steps = published.steps_of(config)
    ours = cmjax.scheduler_from_config(config).set_timesteps(**steps)

    theirs = getattr(diffusers, class_of(model)).from_config(dict(config))
    if class_of(model) == "SCMScheduler":
        steps["intermediate_timesteps"] = None  # its default is for two steps
    theirs.set_timesteps(**steps)

    # Of these, diffusers lists the end of the run too.
    times = np.array(theirs.timesteps)
    if class_of(model) == "SCMScheduler":
        times = times[:-1]

    # diffusers cuts pi/2 to four decimals.
    np.testing.assert_allclose(ours.timesteps, times, rtol=1e-5, atol=1e-5)

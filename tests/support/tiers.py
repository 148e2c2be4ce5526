"""The cases of parametrized tests, of which `pytest` alone runs some and CI all."""

import pytest

from cmjax.schedulers import SCHEDULERS

# Each has a relative of the same base, options and kind of step that `pytest` runs. What holds for
# one rarely fails for the other: they are left to CI. A new sampler is run by both.
RELATIVES = {
    "CTMScheduler",
    "TCDScheduler",
    "DDIMInverseScheduler",
    "EDMEulerScheduler",
    "EDMEulerAncestralScheduler",
    "EDMDPM2Scheduler",
    "EDMDPMSolverMultistepScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler",
    "IPNDMScheduler",
    "UniPCMultistepScheduler",
    "DEISMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "DPMSolverMultistepInverseScheduler",
    "DPMSolverSDEScheduler",
    "KarrasVeScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "ScoreSdeVpScheduler",
    "RePaintScheduler",
}


def thorough(*values, **options):
    """Returns a case of a parametrized test that only CI runs."""
    return pytest.param(*values, marks=pytest.mark.thorough, **options)


def slow(*values, **options):
    """Returns a case of a parametrized test that is run by hand, before a release."""
    return pytest.param(*values, marks=pytest.mark.slow, **options)


def each(names):
    """Returns the cases of a test that is parametrized by names of schedulers."""
    return [thorough(name) if name in RELATIVES else name for name in names]


every_scheduler = pytest.mark.parametrize("name", each(SCHEDULERS))

"""Scheduler configs as diffusers writes them, with options of those that they were made from."""

import ast
import json
from pathlib import Path

import diffusers
import numpy as np
import pytest

from cmjax.schedulers import SCHEDULERS, diffusers_names, scheduler_from_config
from tests.support.reference_schedulers import reference_class

# diffusers hands tensors to NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

# From each of these a user makes the others.
SOURCES = (
    "DPMSolverMultistepScheduler",
    "EulerDiscreteScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
)
# What would move the levels of a class that had these options, and must not where it has not.
MOVING = {"use_karras_sigmas": True, "timestep_spacing": "trailing"}
# The classes here that take the same networks.
OF_DISCRETE_TIMES = [
    name
    for name, cls in SCHEDULERS.items()
    if hasattr(diffusers, name) and "beta_start" in cls.__dataclass_fields__
]


def signatures():
    """Maps each scheduler class in diffusers' source to the parameters of its `__init__`."""
    found = {}
    for path in (Path(diffusers.__file__).parent / "schedulers").rglob("*.py"):
        for cls in ast.parse(path.read_text()).body:
            for method in getattr(cls, "body", ()):
                decorated = "register_to_config" in ast.dump(method)
                if getattr(method, "name", "") == "__init__" and decorated:
                    found[cls.name] = [argument.arg for argument in method.args.args[1:]]
    return found


def test_the_tables_of_names_hold_all_that_diffusers_has():
    found = signatures()
    assert len(found) > 40
    assert set(found) <= diffusers_names.SCHEDULERS
    assert {option for options in found.values() for option in options} <= (
        diffusers_names.OPTIONS
    )


def test_sibling_options_are_those_that_the_class_of_this_name_lacks():
    # Options that are arguments of `step` there, and never in a file.
    of_step = {"eta", "s_churn", "s_noise"}
    for name, options in signatures().items():
        if name in SCHEDULERS:
            cls = SCHEDULERS[name]
            known = diffusers_names.OPTIONS & cls.__dataclass_fields__.keys()
            assert cls._sibling_options == known - set(options) - of_step, name


@pytest.mark.parametrize("name", OF_DISCRETE_TIMES)
@pytest.mark.parametrize("source", SOURCES)
def test_what_from_config_made_opens_with_the_same_levels(source, name, tmp_path):
    given = {**reference_class(source)().config, **MOVING}
    given = {key: value for key, value in given.items() if not key.startswith("_")}
    theirs = reference_class(name).from_config({"_class_name": source, **given})
    theirs.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "scheduler_config.json").read_text())

    # The times follow from the levels. Half a time is what diffusers rounds by in KDPM2; another
    # grid of levels is further off.
    ours = scheduler_from_config(written)
    theirs.set_timesteps(5)
    timesteps = ours.set_timesteps(5).timesteps
    np.testing.assert_allclose(timesteps, theirs.timesteps, rtol=0, atol=0.5)

    # All of diffusers' options are written again, and diffusers makes the same scheduler of them.
    again = ours.to_config()
    assert {key for key in written if not key.startswith("_")} <= again.keys()
    read = reference_class(name).from_config(again)
    read.set_timesteps(5)
    np.testing.assert_array_equal(read.timesteps, theirs.timesteps)


# As published for Stable Diffusion 1.5, without the spacing of the times and other options.
LEAVES_OUT = {
    "_diffusers_version": "0.6.0",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "clip_sample": False,
}


@pytest.mark.parametrize("name", OF_DISCRETE_TIMES)
@pytest.mark.parametrize("source", SOURCES)
def test_what_a_file_leaves_out_is_left_to_the_class_that_is_made_from_it(source, name):
    # Neither from the config of diffusers' scheduler nor from ours the source's defaults come.
    config = {"_class_name": source, **LEAVES_OUT}
    maker = reference_class(source).from_config(config)
    theirs = reference_class(name).from_config(maker.config)
    for given in (maker.config, scheduler_from_config(config).to_config()):
        ours = SCHEDULERS[name].from_config(given)
        for option in reference_class(name)._get_init_keys(reference_class(name)):
            # diffusers changes `lower_order_final` by itself.
            if hasattr(ours, option) and option != "lower_order_final":
                value = getattr(ours, option)
                assert value == theirs.config[option] or value == (), option

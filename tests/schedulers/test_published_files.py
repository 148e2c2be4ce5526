"""The files of well-known public models open, or are refused for the reason that is right."""

import json

import pytest

import cmjax
from cmjax.checkpoints.json_files import read_scheduler, write_json
from cmjax.schedulers import SCHEDULERS
from tests.support import published

REFUSED = published.OTHER_ALGORITHMS | published.OTHER_OPTIONS
OPEN = [model for model in published.FILES if model not in REFUSED]


def class_of(model):
    return published.FILES[model]["_class_name"].removeprefix("Flax")


@pytest.mark.parametrize("model", OPEN)
def test_it_opens_runs_and_is_written_again(model, tmp_path):
    config = published.FILES[model]
    if class_of(model) not in SCHEDULERS:
        with pytest.raises(ValueError, match=f"{class_of(model)} samples categories"):
            cmjax.scheduler_from_config(config)
        return

    # As a file, since some hold what other readers of JSON refuse: -Infinity.
    path = tmp_path / "scheduler_config.json"
    path.write_text(json.dumps(config))
    scheduler = read_scheduler(path)
    assert type(scheduler).__name__ == class_of(model)
    assert scheduler.set_timesteps(**published.steps_of(config)).num_steps >= 4

    # Every option is written again, with its value.
    written = scheduler.to_config()
    for name, value in config.items():
        if not name.startswith("_"):
            kept = (
                list(written[name]) if isinstance(written[name], tuple) else written[name]
            )
            assert kept == value, name
    write_json(path, written)
    assert read_scheduler(path) == scheduler


@pytest.mark.parametrize("model", published.OTHER_ALGORITHMS)
def test_another_algorithm_is_refused_by_name(model):
    name = published.OTHER_ALGORITHMS[model]
    assert class_of(model) == name
    with pytest.raises(
        ValueError, match=f"{name} is a scheduler of diffusers that cmjax does"
    ):
        cmjax.scheduler_from_config(published.FILES[model])


@pytest.mark.parametrize("model", published.OTHER_OPTIONS)
def test_an_option_of_its_own_is_refused_by_name(model):
    option = published.OTHER_OPTIONS[model]
    with pytest.raises(ValueError, match=f"{class_of(model)} has no option '{option}'"):
        cmjax.scheduler_from_config(published.FILES[model])


def test_there_are_many_of_many_kinds():
    assert len(OPEN) >= 20
    assert len({class_of(model) for model in OPEN}) >= 10

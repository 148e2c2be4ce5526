"""`cmjax schedulers`: the list, one sampler's options, and both as JSON."""

import dataclasses
import json

import pytest
from click.testing import CliRunner

import cmjax
from cmjax.cli import main
from cmjax.schedulers import SCHEDULERS
from tests.support.cli import assert_one_line, succeeded


def schedulers(*args):
    return succeeded(CliRunner().invoke(main, ["schedulers", *args])).stdout


def test_the_list_has_every_sampler_with_its_paper():
    heading, *lines = schedulers().splitlines()
    assert heading.split() == ["name", "order", "paper", "calls"]
    assert [line.split()[0] for line in lines] == list(SCHEDULERS)
    (heun,) = [line for line in lines if line.startswith("EDMHeunScheduler ")]
    assert heun.split() == ["EDMHeunScheduler", "2", "Karras", "et", "al.", "2022", "2"]


def test_the_list_as_json_holds_all_facts():
    listed = json.loads(schedulers("--json"))
    assert [entry["name"] for entry in listed] == list(SCHEDULERS)
    names = ["name", "predicts", "levels", "order", "calls", "memory", "noise", "paper"]
    assert list(listed[0]) == names


@pytest.mark.parametrize("name", ["CMStochasticIterativeScheduler", "EDMHeunScheduler"])
def test_one_sampler_shows_its_options(name):
    text = schedulers(name)
    scheduler = SCHEDULERS[name]()
    for field in dataclasses.fields(scheduler):
        value = json.dumps(getattr(scheduler, field.name))
        assert f"\n  {field.name}={value}\n      " in text
    assert max(map(len, text.splitlines())) <= 100


# Other tests register schedulers of their own, so the list is taken while it is cmjax's.
@pytest.mark.parametrize("name", list(SCHEDULERS))
def test_every_option_is_explained_and_its_default_is_that_of_the_class(name):
    described = json.loads(schedulers(name, "--json"))
    assert described["description"]
    assert all(option["explanation"] for option in described["options"])
    defaults = {option["name"]: option["default"] for option in described["options"]}
    made = cmjax.schedulers.scheduler_from_config({"_class_name": name, **defaults})
    assert made == SCHEDULERS[name]()


def test_the_description_comes_from_the_docstring():
    described = json.loads(schedulers("EDMHeunScheduler", "--json"))
    assert described["description"].startswith("EDM's own sampler (Karras et al. 2022")
    options = {option["name"]: option for option in described["options"]}
    expected = "total amount of noise added before steps; 0 is the deterministic solver."
    assert options["s_churn"]["explanation"] == expected
    assert "`" not in schedulers("EDMHeunScheduler")


def test_a_misspelt_name_is_one_line():
    result = CliRunner().invoke(main, ["schedulers", "EDMHeun"])
    assert_one_line(result, "did you mean 'EDMHeunScheduler'?")


def test_what_a_class_of_the_users_does_not_say_is_not_claimed(tmp_path, monkeypatch):
    (tmp_path / "my_sampler.py").write_text(
        "import jax\n"
        "from cmjax.schedulers import EDMScheduler, Weights\n"
        "@jax.tree_util.register_static\n"
        "class Plain(EDMScheduler):\n"
        '    """A sampler."""\n'
        "    def weights(self, levels):\n"
        "        return Weights(x0=1.0, eps=levels.sigmas[1:])\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    lines = schedulers("my_sampler:Plain").splitlines()
    assert "predicts  EDM's F" in lines
    assert "noise     not given" in lines

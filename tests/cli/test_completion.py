"""What a shell completes, and that the page on the command line has every command."""

import pytest
from click.shell_completion import ShellComplete

from cmjax.cli import main
from cmjax.schedulers import SCHEDULERS
from cmjax.training.presets import preset_names
from tests.support.pages import ROOT


def completed(*words):
    *before, incomplete = words
    complete = ShellComplete(main, {}, "cmjax", "_CMJAX_COMPLETE")
    return complete.get_completions(before, incomplete)


@pytest.mark.parametrize(
    ("words", "values"),
    [
        (["ev"], ["evaluate"]),
        (["sample", "--scheduler", "EDMH"], ["EDMHeunScheduler"]),
        (["schedulers", "LC"], ["LCMScheduler"]),
        (["sample", "--dtype", "b"], ["bfloat16"]),
        (
            ["train", "digits_"],
            ["digits_distilled", "digits_mean_flow", "digits_pixel_mean_flow", "digits_"],
        ),
    ],
)
def test_names_are_completed(words, values):
    assert [item.value for item in completed(*words)] == values


def test_every_sampler_and_every_preset_is_completed():
    samplers = {item.value for item in completed("sample", "--scheduler", "")}
    assert samplers == set(SCHEDULERS)

    # The last is the beginning of a file's name.
    presets = {item.value for item in completed("train", "")[:-1]}
    assert presets == set(preset_names())


@pytest.mark.parametrize(
    "words",
    [
        ["sample", "--model", "r"],
        ["edit", "inpaint", "--model", "r"],
        ["info", "r"],
        ["train", "--data", "r"],
        ["evaluate", "r"],
    ],
)
def test_files_are_left_to_the_shell(words):
    (item,) = completed(*words)
    assert item.type == "file"


@pytest.mark.parametrize("name", sorted(main.commands))
def test_every_command_is_on_the_page(name):
    page = (ROOT / "docs" / "command_line.md").read_text()
    assert f"| `cmjax {name}" in page

"""What the command line says of misspelt options, of groups without a task, and of losses."""

import pytest
from click.testing import CliRunner

import cmjax
from cmjax.checkpoints import BUNDLED
from cmjax.cli import main
from cmjax.training import losses
from tests.support.cli import assert_one_line, succeeded
from tests.support.networks import tiny_model


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (["train", "--num", "3"], "No such option '--num'. See main train --help."),
        (
            ["sample", "--lables", "3"],
            "No such option '--lables'. Did you mean '--labels'?",
        ),
        (["sampel"], "No such command 'sampel'. Did you mean 'sample'?"),
        (["trace"], "No such command 'trace'. See main --help."),
        (["train", "cifar10_kt"], "Error: cifar10_kt is neither a .toml file nor a preset"),
        (
            ["sample", "--scheduler", "SASolverScheduler"],
            "SASolverScheduler is a scheduler of diffusers that cmjax does not",
        ),
    ],
)
def test_only_close_spellings_are_offered(args, error):
    assert_one_line(CliRunner().invoke(main, args), error)


def test_edit_without_a_task_prints_help():
    result = succeeded(CliRunner().invoke(main, ["edit"]))
    assert result.stdout == CliRunner().invoke(main, ["edit", "--help"]).stdout
    assert "inpaint" in result.stdout


@pytest.mark.parametrize(("classes", "network"), [(10, "DiT"), (None, "UNet2D")])
def test_info_names_the_class_of_the_network(tmp_path, classes, network):
    source = BUNDLED
    if network == "DiT":
        source = tmp_path / "model"
        cmjax.save(source, tiny_model(classes))
    result = succeeded(CliRunner().invoke(main, ["info", str(source)]))
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("network")]
    assert line.split() == ["network", network]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "collections:OrderedDict",
            "loss 'collections:OrderedDict' must be a dataclass deri",
        ),
        (
            "cmjax.training.losses:Loss",
            "must be a dataclass derived from Loss, with a __call",
        ),
        ("math:pi", "must be a class or a function, got 3.14"),
        (losses.Denoising, "there is no loss <class .*Denoising.>; known are denoising"),
    ],
)
def test_an_unusable_class_of_a_loss_is_named(name, message):
    with pytest.raises(ValueError, match=message):
        losses.make(name, cmjax.EDMHeunScheduler(), total_steps=3)

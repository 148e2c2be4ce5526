"""What the command line says of misspelt options, of groups without a task, and of losses."""

import importlib.metadata

import numpy as np
import pytest
from click.testing import CliRunner

import cmjax
from cmjax.checkpoints import BUNDLED
from cmjax.cli import main, option_types
from cmjax.training import losses
from tests.support.cli import assert_one_line, succeeded
from tests.support.networks import tiny_model

VERSION = tuple(map(int, importlib.metadata.version("click").split(".")[:2]))
needs_suggestions = pytest.mark.skipif(VERSION < (8, 4), reason="before click 8.4")


@pytest.mark.parametrize(
    ("args", "error"),
    [
        pytest.param(
            ["train", "--num", "3"],
            "No such option '--num'. See main train --help.",
            marks=needs_suggestions,
        ),
        pytest.param(
            ["sample", "--lables", "3"],
            "No such option '--lables'. Did you mean '--labels'?",
            marks=needs_suggestions,
        ),
        pytest.param(
            ["sampel"],
            "No such command 'sampel'. Did you mean 'sample'?",
            marks=needs_suggestions,
        ),
        (["trace"], "No such command 'trace'. See main --help."),
        (["train", "cifar10_kt"], "Error: cifar10_kt is neither a .toml file nor a preset"),
        (
            ["sample", "--scheduler", "SASolverScheduler"],
            "SASolverScheduler is a scheduler of diffusers that cmjax does not",
        ),
        (["sample", "--steps", "two"], "'--steps' / '-s': 'two' is not a whole number.\n"),
        (["edit", "inpaint", "--guidance", "x"], "'--guidance': 'x' is not a number.\n"),
        (["convert"], "Missing argument 'SRC'. See main convert --help."),
        (["sample", "--model", "my.toml"], "folder of its run, such as runs/my"),
        (["sample", "--vae", "nowhere"], "--vae: "),
        (["sample", "--guidance", "2"], "network.null_class=true and run.label_dropout"),
        (["train", "nowhere.toml"], "cmjax train --init > nowhere.toml writes one"),
        (["sample", "7"], "unexpected extra argument (7). See main sample --help."),
    ],
)
def test_what_is_typed_wrong_is_answered_in_plain_words(args, error, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.toml").write_text("")
    assert_one_line(CliRunner().invoke(main, args), error)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--set", "data.source=empty"], "data.source: empty must hold pictures"),
        (["--set", "data.source=a.toml"], "give one of these, or a folder of pictures"),
        (
            ["--set", "network.attention_head_dim=5"],
            "network: attention_head_dim 5 does not",
        ),
        (
            ["--set", "network.class=UNet"],
            "there is no network 'UNet'; did you mean 'UNet2D'? (",
        ),
        (["--out", "a.toml"], "a.toml: a file is there, where a folder is wanted"),
        (
            ["--set", "run.batch_size=16"],
            "batch_size 16 is larger than the data set of 8 samples; t",
        ),
    ],
)
def test_what_is_wrong_with_a_run_has_a_way_out(options, error, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.toml").write_text(
        '[data]\nsource = "d.npz"\n[network]\nclass = "UNet2D"\nsample_size = 4\n'
        "in_channels = 1\nout_channels = 1\nblock_out_channels = [4]\nnorm_num_groups = 4\n"
        'attention_head_dim = 4\nlayers_per_block = 1\ndown_block_types = ["DownBlock2D"]\n'
        'up_block_types = ["UpBlock2D"]\n[loss]\nname = "denoising"\n[optimizer]\n'
        "learning_rate = 1e-3\n[run]\nsteps = 1\nbatch_size = 8\n"
    )
    np.savez("d.npz", images=np.zeros((8, 4, 4), np.uint8))
    assert_one_line(CliRunner().invoke(main, ["train", "a.toml", *options]), error)


def test_a_file_that_is_no_model_names_what_is_one(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    path = str(tmp_path / "text.png")
    error = "File is not a zip file; give a whole one, or the folder of a model"
    assert_one_line(CliRunner().invoke(main, ["sample", "--model", path]), error)
    error = "text.png is not a picture that can be read; give a PNG, JPEG or WebP file"
    assert_one_line(CliRunner().invoke(main, ["edit", "superres", path, "-l", "7"]), error)


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


def commands(group, path=()):
    """The paths of a group and of all commands in it."""
    yield path
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, (*path, name))


@pytest.mark.parametrize("path", list(commands(main)), ids=" ".join)
def test_help_fits_a_terminal(path):
    result = succeeded(CliRunner(env={"COLUMNS": "80"}).invoke(main, [*path, "--help"]))
    assert max(map(len, result.stdout.splitlines())) <= 80


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("false", False),
        ("False", False),
        ("None", None),
        ("[1, 2]", [1, 2]),
        ("sde", "sde"),
    ],
)
def test_settings_are_read_as_json_or_as_python_spells_it(text, value):
    assert option_types.Setting().convert(f"x={text}", None, None) == ("x", value)

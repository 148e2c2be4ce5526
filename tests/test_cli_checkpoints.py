"""`cmjax info` and `cmjax convert`."""

import re

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file

import cmjax
from cmjax import cli
from cmjax.models import UNet2DConfig
from tests.support import networks

CONFIG = UNet2DConfig(
    sample_size=4,
    block_out_channels=(8, 8),
    layers_per_block=1,
    attention_head_dim=4,
    norm_num_groups=4,
    num_class_embeds=3,
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scheduler = cmjax.CMStochasticIterativeScheduler(
        num_train_timesteps=18, timestep_spacing="leading"
    )
    cmjax.save("model", networks.model(CONFIG, scheduler))
    return tmp_path / "model"


def run(*args):
    return CliRunner().invoke(cli.main, list(map(str, args)))


def ok(*args):
    result = run(*args)
    assert result.exit_code == 0, result.stderr
    return result


def test_info_says_what_a_model_is(folder):
    said = ok("info", folder).stdout
    tensors = load_file(folder / "model.safetensors")
    count = sum(tensor.size for tensor in tensors.values())
    assert re.search(r"^network +UNet2D$", said, re.MULTILINE)
    for fragment in (
        "cmjax folder",
        "4x4x3, 3 classes",
        f"{count:,} parameters in {len(tensors)} tensors",
        f"{len(tensors)} x float32",
        "block_out_channels       8, 8",
        "num_train_timesteps      18",
        "sigma_max                80.0",
        f"{(folder / 'model.safetensors').stat().st_size / 1000:.4g} kB",
    ):
        assert fragment in said


def test_info_names_the_network(tmp_path):
    cmjax.save(tmp_path / "dit", networks.model(networks.DIT))
    said = ok("info", tmp_path / "dit").stdout
    assert re.search(r"^network +DiT$", said, re.MULTILINE)


def test_info_of_the_bundled_model():
    assert "28x28x1, 10 classes" in ok("info").stdout


def test_info_reads_no_tensors(folder):
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    weights.write_bytes(
        content[:header] + b"\xff" * (len(content) - header)
    )  # NaN throughout
    ok("info", folder)
    with pytest.raises(
        ValueError, match="model.safetensors: tensor .* has values that are not finite"
    ):
        cmjax.load(folder)


def test_there_and_back(folder):
    said = ok("convert", folder, "pipeline", "--to", "diffusers").stdout
    assert said.startswith("pipeline: ") and said.endswith(f"from cmjax folder {folder}\n")
    assert "diffusers pipeline" in ok("info", "pipeline").stdout
    result = ok("convert", "pipeline/unet", "alone")
    assert "Note: the folder names no scheduler" in result.stderr
    assert "num_train_timesteps      40" in ok("info", "alone").stdout
    assert ok("convert", "pipeline", "back", "--quiet").output == ""
    for name in ("config.json", "scheduler_config.json", "model.safetensors"):
        assert (folder.parent / "back" / name).read_bytes() == (folder / name).read_bytes()


def test_in_another_dtype(folder):
    ok("convert", folder, "half", "--dtype", "float16")
    whole, half = (
        load_file(folder / "model.safetensors"),
        load_file("half/model.safetensors"),
    )
    for name, tensor in half.items():
        assert tensor.dtype == np.float16
        np.testing.assert_array_equal(tensor, whole[name].astype(np.float16))
    ok("convert", "half", "again")  # as they are
    assert {
        tensor.dtype.name for tensor in load_file("again/model.safetensors").values()
    } == {"float16"}


@pytest.mark.parametrize(
    ("args", "fragment"),
    [
        (["info", "nowhere"], "'nowhere' is not there"),
        (["info", "model", "--config", "imagenet64"], "config is for single files"),
        (["convert", "model"], "Missing argument 'DST'"),
        (
            ["convert", "model", "x", "--to", "onnx"],
            "'onnx' is not one of 'cmjax', 'diffusers'",
        ),
        (["convert", "model", "x", "--dtype", "int8"], "'int8' is not one of"),
        (["convert", "model", "model/config.json"], "is a file; give the name of a folder"),
        (["convert", "model", "."], "which cmjax did not write"),
    ],
)
def test_misuse_is_one_line(folder, args, fragment):
    result = run(*args)
    assert result.exit_code == 2 and result.stdout == ""
    assert result.stderr.count("\n") == 1 and fragment in result.stderr, result.stderr


def test_what_diffusers_cannot_hold(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("convert", cmjax.checkpoints.BUNDLED, "x", "--to", "diffusers")
    assert result.exit_code == 2 and "time_scale 0.01 is cmjax's own" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["info", "convert"])
def test_help_teaches_by_example(command):
    lines = ok(command, "--help").stdout.splitlines()
    examples = lines[lines.index("  Examples:") + 1 :]
    assert examples[0].startswith(f"    cmjax {command} ") and max(map(len, lines)) <= 100

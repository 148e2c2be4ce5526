"""MeanFlow's checkpoints: recognised by names and shapes, and whole or not read at all."""

import json
import re
import shutil

import jax
import numpy as np
import pytest
from click.testing import CliRunner

import cmjax
from cmjax.checkpoints import mean_flow, open_checkpoint
from cmjax.checkpoints.flax_names import as_torch
from cmjax.checkpoints.tensors import StoredTensor
from cmjax.cli import main
from cmjax.models import DiTConfig
from cmjax.models.registry import preset_name
from tests.support import autoencoders, flax_files, flax_networks
from tests.support.cli import assert_one_line, succeeded

# The authors' network MF-B/4, but for its depth, its width and the number of its classes.
SMALL = {
    "net.x_embedder.proj.kernel": (4, 4, 4, 384),
    "net.x_embedder.proj.bias": (384,),
    "net.y_embedder.embedding_table._flax_embedding.embedding": (4, 384),
}


def small_shapes():
    """The shapes of a network that can be recognised by names: one block of width 384."""
    shapes = {}
    for name, shape in flax_networks.shapes("mean_flow", "MF-B/4").items():
        if ".layers_" not in name or re.search(r"blocks\.layers_[1-9]", name) is None:
            shapes[name] = tuple(size // 2 if size % 768 == 0 else size for size in shape)
    return shapes | SMALL


@pytest.fixture(scope="module")
def tree():
    flat = flax_networks.drawn(small_shapes())
    params = flax_networks.nested(flat)
    return {"step": np.int32(3), "ema_params": params, "params": params, "opt_state": []}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tree):
    return flax_files.write_orbax(tmp_path_factory.mktemp("mf"), tree)


def unread(shapes):
    """Tensors of these shapes without values."""
    return as_torch(
        "x",
        {n: StoredTensor(tuple(s), np.dtype(np.float32), None) for n, s in shapes.items()},
    )


def test_names_and_shapes_tell_the_released_model(tmp_path):
    stored = unread(flax_networks.shapes("mean_flow", "MF-B/4"))
    checkpoint = mean_flow.from_tensors(tmp_path / "x", stored)
    assert preset_name(checkpoint.config) == "MF-B/4"
    assert checkpoint.scheduler == cmjax.FlowMapEulerDiscreteScheduler()
    assert checkpoint.note == ""
    checkpoint.check()


def test_every_way_of_writing_it_is_read_the_same(tmp_path, folder, tree):
    archive = shutil.make_archive(str(tmp_path / "mf"), "zip", folder)
    others = [
        archive,
        flax_files.write_orbax_0_4(tmp_path / "old", tree),
        flax_files.write_msgpack(tmp_path / "checkpoint_3", tree),
        flax_files.write_msgpack(tmp_path / "alone.msgpack", tree["params"]),
        flax_files.write_msgpack(tmp_path / "net.msgpack", tree["params"]["net"]),
    ]
    expected = cmjax.load(folder)
    for path in others:
        found = cmjax.load(path)
        assert found.config == expected.config
        jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)


def test_what_is_read_is_said(folder):
    said = succeeded(CliRunner().invoke(main, ["info", str(folder)])).stdout
    assert re.search(r"^network +DiT$", said, re.MULTILINE)
    assert re.search(r"^samples +32x32x4, 3 classes", said, re.MULTILINE)
    assert re.search(
        r"^note +ema_params, the moving average of the parameters, is used; ignored: params"
        r".* \(\d+ arrays\); no released model has this size; its samples are latents of "
        "stabilityai/sd-vae-ft-mse: --vae",
        said,
        re.MULTILINE,
    )


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    path = tmp_path_factory.mktemp("vae") / "tiny"
    cmjax.save_autoencoder(path, autoencoders.autoencoder(autoencoders.TINY))
    return path


def test_one_command_makes_a_picture(tmp_path, folder, vae):
    args = ["sample", "--model", str(folder), "--labels", "2", "-n", "1"]
    out = tmp_path / "one.png"
    assert_one_line(
        CliRunner().invoke(main, [*args, "--out", str(out)]),
        "autoencoder of a model of latents",
    )
    result = succeeded(
        CliRunner().invoke(main, [*args, "--vae", str(vae), "--out", str(out)])
    )
    assert out.read_bytes()[:4] == b"\x89PNG"
    assert "1 network call" in result.output
    assert "latents of" not in result.stderr


def test_an_autoencoder_stays_with_the_model(tmp_path, folder, vae):
    args = ["convert", str(folder), str(tmp_path / "mf"), "--vae", str(vae)]
    succeeded(CliRunner().invoke(main, args))
    model = cmjax.load(tmp_path / "mf")
    assert model.picture_shape == (64, 64, 3)
    expected = cmjax.load(folder)
    jax.tree.map(np.testing.assert_array_equal, model.params, expected.params)
    described = json.loads(
        succeeded(CliRunner().invoke(main, ["info", str(tmp_path / "mf"), "--json"])).stdout
    )
    assert described["autoencoder"]["class"] == "AutoencoderTiny"
    with pytest.raises(ValueError, match="nowhere"):
        open_checkpoint(folder, autoencoder=tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.pop("net.t_embedder.mlp.layers_0._flax_linear.bias"),
            "missing net.t_emb",
        ),
        (lambda s: s.update({"net.extra": (3,)}), r"unexpected net.extra \(3,\)"),
        (
            lambda s: s.update({"net.blocks.layers_0.mlp.fc1._flax_linear.kernel": (384,)}),
            "not those of MeanFlow's network",
        ),
        (
            lambda s: s.update({"net.x_embedder.proj.kernel": (4, 4, 4, 100)}),
            "heads of a network of width 100 is not known; pass its config",
        ),
    ],
)
def test_checkpoints_that_are_not_whole(tmp_path, change, message):
    shapes = small_shapes()
    change(shapes)
    path = tmp_path / "x"
    with pytest.raises(ValueError, match=message) as caught:
        mean_flow.from_tensors(path, unread(shapes)).check()
    assert str(path) in str(caught.value)


def test_configs_given(folder):
    with pytest.raises(ValueError, match="'lsun256' is not a preset of MeanFlow"):
        open_checkpoint(folder, config="lsun256")
    with pytest.raises(ValueError, match="must be a DiTConfig or the name of a preset"):
        open_checkpoint(folder, config=cmjax.models.PRESETS["lsun256"])
    with pytest.raises(ValueError, match="do not fit the network"):
        open_checkpoint(folder, config=DiTConfig()).check()

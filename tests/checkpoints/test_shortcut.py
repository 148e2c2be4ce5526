"""Shortcut models' training states: recognised by names and shapes, and rewritten for a `DiT`."""

import dataclasses
import re

import numpy as np
import pytest
from click.testing import CliRunner

import cmjax
from cmjax.checkpoints import open_checkpoint, shortcut
from cmjax.checkpoints.tensors import StoredTensor
from cmjax.cli import main
from cmjax.models import SHORTCUTS, DiTConfig
from cmjax.models.registry import preset_name
from tests.support import flax_files, flax_networks
from tests.support.cli import succeeded

NAMES = {"Shortcut-B/2-CelebA": "Shortcut-B/2 CelebA-HQ"}  # preset -> in the stored names
TOY = DiTConfig(
    sample_size=6,
    in_channels=4,
    out_channels=4,
    patch_size=2,
    num_layers=2,
    num_attention_heads=2,
    attention_head_dim=16,
    time_scale=0.001,
    second_time="log_steps",
)


def unread(shapes):
    """Tensors of these shapes without values."""
    float32 = np.dtype(np.float32)
    return {name: StoredTensor(tuple(s), float32, None) for name, s in shapes.items()}


@pytest.mark.parametrize("preset", SHORTCUTS)
def test_names_and_shapes_tell_which_model_it_is(tmp_path, preset):
    stored = unread(flax_networks.shapes("shortcut", NAMES.get(preset, preset)))
    checkpoint = shortcut.from_tensors(tmp_path / "x", stored)
    assert preset_name(checkpoint.config) == preset
    assert checkpoint.scheduler == cmjax.FlowMapEulerDiscreteScheduler()
    assert checkpoint.note == "ignored: Embed_0.embedding, which no sample depends on"
    if preset != "Shortcut-XL/2":
        checkpoint.check()


def drawn(**changes):
    """The toy's parameters, unread, with some in other shapes, or without those of shape None."""
    shapes = flax_networks.shapes("shortcut", "toy") | changes
    arrays = flax_networks.drawn({n: s for n, s in shapes.items() if s is not None})
    return {n: StoredTensor(a.shape, a.dtype, lambda a=a: a) for n, a in arrays.items()}


def test_a_model_without_classes_takes_none():
    # As one of a single class that is asked for none: the last row is added to all embeddings.
    tensors = drawn(**{shortcut.TABLE: (2, 32)})
    plain = shortcut.rewritten(tensors, TOY)
    one_class = dataclasses.replace(TOY, num_class_embeds=1, null_class=True)
    given = shortcut.rewritten(tensors, one_class)
    assert given.keys() - plain.keys() == {"class_embedding.embedding"}
    for name, tensor in plain.items():
        expected = given[name].read()
        if name == "time_embedding.linear_2.bias":
            expected = expected + given["class_embedding.embedding"].read()[1]
        np.testing.assert_allclose(tensor.read(), expected, rtol=1e-6)


def test_what_is_read_is_said(tmp_path):
    path = flax_files.write_pickle(tmp_path / "toy", "shortcut")
    with pytest.raises(ValueError, match="heads of a network of width 32 is not known"):
        open_checkpoint(path)

    # Of a width of the paper's, with one block.
    shapes = {
        name: tuple(
            384 * (size // 32) if size % 32 == 0 and size < 256 else size for size in s
        )
        for name, s in flax_networks.shapes("shortcut", "toy").items()
        if "DiTBlock_1" not in name
    }
    shapes["TimestepEmbedder_0.Dense_0.kernel"] = (256, 384)
    params = flax_networks.nested(flax_networks.drawn(shapes))
    path = flax_files.write_msgpack(tmp_path / "small", {"params_ema": params, "step": 3})
    said = succeeded(CliRunner().invoke(main, ["info", str(path)])).stdout
    assert re.search(r"^kind +shortcut model$", said, re.MULTILINE)
    assert re.search(r"^network +DiT$", said, re.MULTILINE)
    for words in (
        "params_ema, the moving average of the parameters, is used",
        "ignored: Embed_0.embedding, which no sample depends on",
        "no released model has this size",
        "its samples are latents of stabilityai/sd-vae-ft-mse",
    ):
        assert words in said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"DiTBlock_0.Dense_2.kernel": None}, "missing DiTBlock_0.Dense_2.kernel"),
        ({"DiTBlock_0.Dense_2.kernel": (3, 32)}, "queries, keys and values of shapes"),
        ({"DiTBlock_0.Dense_2.bias": (1, 32)}, "has the shape"),
        ({shortcut.FIRST: (4, 32)}, "PatchEmbed_0.Conv_0.kernel has the shape"),
        ({shortcut.TIME: (8, 32)}, "not 256 rows"),
        ({"extra": (3,)}, r"unexpected extra \(3,\)"),
        ({shortcut.TABLE: (9, 32)}, "misshapen class_embedding.embedding"),
    ],
)
def test_states_that_are_not_whole(tmp_path, changes, message):
    config = dataclasses.replace(TOY, num_class_embeds=5, null_class=True)
    path = tmp_path / "x"
    with pytest.raises(ValueError, match=message) as caught:
        shortcut.from_tensors(path, drawn(**changes), config).check()
    assert str(path) in str(caught.value)


def test_configs_given(tmp_path):
    path = flax_files.write_pickle(tmp_path / "toy", "shortcut")
    with pytest.raises(ValueError, match="'lsun256' is not a preset of shortcut models"):
        open_checkpoint(path, config="lsun256")
    with pytest.raises(ValueError, match="must be a DiTConfig or the name of a preset"):
        open_checkpoint(path, config=cmjax.models.PRESETS["lsun256"])

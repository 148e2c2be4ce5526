"""Files of autoencoders: every layout, and what is refused."""

import json
import shutil

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import cmjax
from cmjax.checkpoints import diffusers, diffusers_weights, open_autoencoder
from cmjax.checkpoints.weight_files import FLAX
from cmjax.cli import main
from tests.support import torch_zip
from tests.support.autoencoders import KL, TINY, autoencoder, edit, flax_tree
from tests.support.cli import assert_one_line, succeeded
from tests.support.draws import draws
from tests.support.mutations import mutations


@pytest.fixture
def folder(tmp_path):
    """The folder of a small autoencoder, as `save_autoencoder` writes it."""
    cmjax.save_autoencoder(tmp_path / "vae", autoencoder(KL))
    return tmp_path / "vae"


def assert_same(source, config=KL):
    loaded = cmjax.load_autoencoder(source)
    assert loaded.config == config
    expected = autoencoder(config).params
    jax.tree.map(np.testing.assert_array_equal, loaded.params, expected)


@pytest.mark.parametrize("config", [KL, TINY], ids=["kl", "tiny"])
def test_there_and_back(tmp_path, config):
    cmjax.save_autoencoder(tmp_path, autoencoder(config))
    assert_same(tmp_path, config)
    cmjax.save_autoencoder(tmp_path, autoencoder(config))  # it replaces what it wrote
    half = cmjax.load_autoencoder(tmp_path, dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(half.params)} == {jnp.dtype("bfloat16")}


def test_a_pickle_a_variant_a_single_file_and_a_pipeline(folder):
    weights = folder / diffusers_weights.SAFETENSORS
    tensors = load_file(weights)
    assert_same(weights)
    variant = weights.rename(folder / "diffusion_pytorch_model.fp16.safetensors")
    assert_same(folder)
    assert "variant 'fp16'" in open_autoencoder(folder).note
    assert_same(variant)
    variant.unlink()
    torch_zip.save(folder / diffusers_weights.TORCH, tensors)
    assert_same(folder)
    assert_same(folder.parent)  # which holds nothing but vae/
    (folder.parent / diffusers.INDEX).write_text(json.dumps({"_class_name": "Pipeline"}))
    assert_same(folder.parent)


def test_attention_under_its_old_names(folder):
    weights = folder / diffusers_weights.SAFETENSORS
    renamed = {}
    for name, tensor in load_file(weights).items():
        for old, new in diffusers_weights.OLD_NAMES.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
        renamed[name] = tensor
    assert "decoder.mid_block.attentions.0.proj_attn.weight" in renamed
    save_file(renamed, weights)
    assert_same(folder)


@pytest.mark.parametrize("above", [(), ("params",)], ids=["whole", "within params"])
def test_the_layout_of_the_flax_classes(folder, above):
    (folder / diffusers_weights.SAFETENSORS).unlink()
    edit(folder / "config.json", _class_name="FlaxAutoencoderKL")
    tree = flax_tree(autoencoder(KL).params)
    assert "proj_attn" in tree["encoder"]["mid_block"]["attentions_0"]
    assert "conv" in tree["decoder"]["up_blocks_0"]["upsamplers_0"]
    for name in above:
        tree = {name: tree}
    (folder / FLAX).write_bytes(flax.serialization.to_bytes(tree))
    assert_same(folder)
    assert_same(folder / FLAX)


def test_a_repository_of_the_hub_with_each_kind_of_weights(repository, tmp_path):
    remote, cache, asked = repository
    vae = remote / "vae"
    remote.mkdir()
    (remote / diffusers.INDEX).write_text("{}")
    cmjax.save_autoencoder(vae, autoencoder(KL))
    assert_same("owner/name")
    assert len(asked) == 1

    # Flax's file is asked for last.
    (vae / diffusers_weights.SAFETENSORS).unlink()
    (cache / "vae" / diffusers_weights.SAFETENSORS).unlink()
    tree = flax_tree(autoencoder(KL).params)
    (vae / FLAX).write_bytes(flax.serialization.to_bytes(tree))
    assert_same("owner/name")
    assert len(asked) == 1 + 4


def test_options_that_diffusers_leaves_out_have_its_defaults(folder):
    edit(folder / "config.json", force_upcast=None, layers_per_block=None)
    assert open_autoencoder(folder).config == KL
    edit(folder / "config.json", block_out_channels=None)
    with pytest.raises(ValueError, match="down_block_types must have one entry per entry"):
        open_autoencoder(folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"_class_name": "UNet2DModel"}, "'UNet2DModel'; cmjax reads the autoencoders"),
        ({"_class_name": ["x"]}, r"_class_name is \['x'\]"),
        ({"act_fn": "gelu"}, "act_fn 'gelu' is not supported, only 'silu'"),
        ({"latent_chanels": 4}, "no option 'latent_chanels'; did you mean"),
        ({"latent_channels": 8}, "tensors do not fit the network: misshapen"),
        ({"use_quant_conv": False}, "unexpected quant_conv"),
        ({"layers_per_block": 3}, "missing decoder.up_blocks.0.resnets.2.conv1.bias"),
    ],
)
def test_configs_that_do_not_fit_are_an_error_of_one_line(folder, changes, words):
    edit(folder / "config.json", **changes)
    with pytest.raises(ValueError, match=words) as caught:
        cmjax.load_autoencoder(folder)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def test_info_describes_a_folder_and_a_file(folder):
    for source in (folder, folder / diffusers_weights.SAFETENSORS):
        text = succeeded(CliRunner().invoke(main, ["info", str(source)])).stdout
        assert "4 channels, 1/2 of the height and width, scaled by 0.18215" in text
        assert "AutoencoderKL" in text and "norm_num_groups" in text
    command = ["info", "--json", str(folder)]
    described = json.loads(succeeded(CliRunner().invoke(main, command)).stdout)
    assert described["kind"] == "diffusers autoencoder" and described["stride"] == 2
    assert described["autoencoder"]["class"] == "AutoencoderKL"
    count = sum(leaf.size for leaf in jax.tree.leaves(autoencoder(KL).params))
    assert described["autoencoder"]["num_parameters"] == count
    assert [file["path"] for file in described["files"]] == [
        str(folder / diffusers_weights.SAFETENSORS)
    ]
    edit(folder / "config.json", latent_channels=3)
    assert_one_line(
        CliRunner().invoke(main, ["info", str(folder)]), "do not fit the network"
    )


def test_what_is_no_autoencoder_is_said_with_the_way_out(folder, tmp_path):
    with pytest.raises(ValueError, match="samples nothing; open it by cmjax.load_autoen"):
        cmjax.load(folder)
    with pytest.raises(ValueError, match="autoencoder must be a cmjax.Autoencoder, got"):
        cmjax.save_autoencoder(tmp_path / "x", cmjax.load())
    with pytest.raises(ValueError, match="path must be a path, got None"):
        cmjax.save_autoencoder(None, autoencoder(KL))
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes((folder / diffusers_weights.SAFETENSORS).read_bytes())
    with pytest.raises(ValueError, match="has no config.json next to it"):
        cmjax.load_autoencoder(alone)
    with pytest.raises(ValueError, match="source must be a folder, a file or a hub id"):
        cmjax.load_autoencoder(None)
    (folder / diffusers_weights.SAFETENSORS).unlink()
    with pytest.raises(ValueError, match="has no diffusion_pytorch_model.safetensors"):
        cmjax.load_autoencoder(folder)


def test_it_replaces_no_folder_that_it_did_not_write(folder, tmp_path):
    weights = folder / diffusers_weights.SAFETENSORS
    tensors = load_file(weights)
    save_file(tensors, weights, {"format": "pt"})  # as diffusers writes it
    with pytest.raises(ValueError, match="holds files that cmjax did not write"):
        cmjax.save_autoencoder(folder, autoencoder(KL))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match="holds notes.txt, which cmjax did not write"):
        cmjax.save_autoencoder(tmp_path / "mine", autoencoder(KL))


@settings(
    max_examples=draws(200),
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
@pytest.mark.parametrize("config", [KL, TINY], ids=["kl", "tiny"])
def test_mutated_configs_are_read_or_refused(tmp_path, config, data):
    folder = tmp_path / "vae"
    if not folder.exists():
        cmjax.save_autoencoder(folder, autoencoder(config))
        shutil.copy(folder / "config.json", tmp_path / "whole.json")
    whole = (tmp_path / "whole.json").read_bytes()
    (folder / "config.json").write_bytes(data.draw(mutations(whole)))
    try:
        open_autoencoder(folder).check()
    except ValueError as error:
        assert type(error) is ValueError, repr(error)
        assert str(folder) in str(error) and len(str(error)) < 10**4, error


def test_names_of_several_lines_are_shown_in_one(folder):
    weights = folder / diffusers_weights.SAFETENSORS
    save_file({**load_file(weights), "a\nb": np.zeros(1, np.float32)}, weights)
    with pytest.raises(ValueError, match="unexpected a b"):
        cmjax.load_autoencoder(folder)


@pytest.mark.parametrize(
    ("config", "change"),
    [(KL, {"act_fn": "SiLU"}), (TINY, {"act_fn": "ReLU", "shift_factor": None})],
    ids=["kl", "tiny"],
)
def test_what_diffusers_takes_in_capitals_and_as_null(tmp_path, config, change):
    cmjax.save_autoencoder(tmp_path, autoencoder(config))
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert_same(tmp_path, config)

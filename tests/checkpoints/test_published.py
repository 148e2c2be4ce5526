"""Files as they are published: variants, other spellings, a file in place of its folder."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import cmjax
from cmjax.checkpoints import diffusers_weights, open_checkpoint
from cmjax.checkpoints.unet_config_files import config_from_diffusers, config_to_diffusers
from tests.support import checkpoints


@pytest.fixture
def folder(tmp_path):
    cmjax.save(tmp_path / "pipeline", checkpoints.model(), to="diffusers")
    return tmp_path / "pipeline"


def take_weights(folder):
    """Removes the weights of a pipeline, and returns them as float16."""
    path = folder / "unet" / diffusers_weights.SAFETENSORS
    tensors = {name: value.astype(np.float16) for name, value in load_file(path).items()}
    path.unlink()
    return tensors


def assert_read(folder):
    """The weights are those of the model, rounded to float16."""
    expected = jax.tree.map(
        lambda leaf: leaf.astype(np.float16), checkpoints.model().params
    )
    loaded = cmjax.load(folder, dtype=np.float16).params
    jax.tree.map(np.testing.assert_array_equal, loaded, expected)


def test_a_folder_that_has_only_a_variant_opens_with_a_note(folder):
    save_file(take_weights(folder), folder / "unet" / f"{STEM}.fp16.safetensors")
    assert_read(folder)
    assert "only the variant 'fp16'" in open_checkpoint(folder).note
    assert "only the variant 'fp16'" in open_checkpoint(folder / "unet").note

    # Two variants may be other weights altogether.
    (folder / "unet" / f"{STEM}.ema.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="several variants.*ema.bin and .*fp16.safe.*keep"):
        cmjax.load(folder)


STEM = "diffusion_pytorch_model"


@pytest.mark.parametrize(
    "index",
    [f"{STEM}.safetensors.index.fp16.json", f"{STEM}.fp16.safetensors.index.json"],
)
def test_a_variant_in_shards(folder, index):
    tensors = take_weights(folder)
    weight_map = {}
    for i in range(2):
        shard = f"{STEM}.fp16-0000{i + 1}-of-00002.safetensors"
        part = dict(list(tensors.items())[i::2])
        save_file(part, folder / "unet" / shard)
        weight_map.update(dict.fromkeys(part, shard))
    (folder / "unet" / index).write_text(json.dumps({"weight_map": weight_map}))
    assert_read(folder)


def test_the_weights_themselves_are_read_where_a_variant_is_beside_them(folder):
    (folder / "unet" / f"{STEM}.fp16.safetensors").write_bytes(b"another program's")
    jax.tree.map(
        np.testing.assert_array_equal, cmjax.load(folder).params, checkpoints.model().params
    )
    assert open_checkpoint(folder).note == ""


@pytest.mark.parametrize(
    "change",
    [
        {"act_fn": "SiLU"},
        {"act_fn": "Swish"},
        {"upsample_type": None, "downsample_type": None},
        {"center_input_sample": None},
        {"num_train_timesteps": 1000},
        {"time_embedding_dim": 8},
        {"an_option_of_a_later_version": None},
        {"down_block_types": ["UNetResDownBlock2D"], "sample_size": [4, 4]},
    ],
)
def test_other_spellings_of_the_same_network(change):
    written = config_to_diffusers(checkpoints.CONFIG)
    assert config_from_diffusers({**written, **change}) == checkpoints.CONFIG


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"act_fn": "Mish"}, "act_fn 'mish' is not supported, only 'silu'"),
        ({"act_fn": None}, "act_fn None is not supported"),
        ({"time_embedding_dim": 16}, "time_embedding_dim 16 is not supported, only 8"),
        ({"an_option_of_a_later_version": 1}, "no option 'an_option_of_a_later_version'"),
        ({"norm_num_groups": None}, "norm_num_groups must be"),
    ],
)
def test_another_network_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        config_from_diffusers({**config_to_diffusers(checkpoints.CONFIG), **change})


def test_one_file_of_a_model_says_which_folder_to_give(folder, tmp_path):
    for name in (diffusers_weights.SAFETENSORS, "config.json"):
        with pytest.raises(ValueError, match=f"give the folder it lies in, {folder}$"):
            cmjax.load(folder / "unet" / name)
    with pytest.raises(ValueError, match=f"in, {folder}$"):
        cmjax.load(folder / "model_index.json")
    (folder / "unet" / diffusers_weights.TORCH).write_bytes(b"")
    with pytest.raises(ValueError, match=f"in, {folder}$"):
        cmjax.load(folder / "unet" / diffusers_weights.TORCH)
    cmjax.save(tmp_path / "own", checkpoints.model())
    with pytest.raises(ValueError, match=f"in, {tmp_path / 'own'}$"):
        cmjax.load(tmp_path / "own" / "model.safetensors")

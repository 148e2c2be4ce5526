"""diffusers' folders without diffusers: their configs, what is refused, shards, the hub."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import cmjax
from cmjax.checkpoints import (
    diffusers_weights,
    open_checkpoint,
    unet_config_files,
)
from cmjax.models import PRESETS, DiTTransformer2DConfig, UNet2DConfig
from tests.support import networks

CONFIG = UNet2DConfig(
    sample_size=4,
    block_out_channels=(8, 16),
    layers_per_block=1,
    attention_head_dim=4,
    norm_num_groups=4,
    downsample_type="resnet",
    resnet_time_scale_shift="scale_shift",
    num_class_embeds=3,
)
SCHEDULER = cmjax.CMStochasticIterativeScheduler(
    num_train_timesteps=201, timestep_spacing="leading"
)


def model(config=CONFIG):
    return networks.model(config, SCHEDULER)


@pytest.fixture
def folder(tmp_path):
    cmjax.save(tmp_path / "pipeline", model(), to="diffusers")
    return tmp_path / "pipeline"


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_pipeline_loads_equal(folder):
    loaded = cmjax.load(folder)
    assert (loaded.scheduler, loaded.config) == (SCHEDULER, CONFIG)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, model().params)


def test_a_network_alone_has_the_default_scheduler_and_says_so(folder):
    checkpoint = open_checkpoint(folder / "unet")
    assert checkpoint.kind == "diffusers UNet" and checkpoint.config == CONFIG
    assert checkpoint.scheduler.num_train_timesteps == 40
    assert "names no scheduler" in checkpoint.note


def test_tensors_are_stored_as_pytorch_has_them(folder):
    tensors = load_file(folder / "unet" / diffusers_weights.SAFETENSORS)
    params = model().params
    np.testing.assert_array_equal(
        tensors["conv_in.weight"], params["conv_in"]["kernel"][...].transpose(3, 2, 0, 1)
    )
    attention = "down_blocks.1.attentions.0"
    np.testing.assert_array_equal(
        tensors[f"{attention}.to_out.0.weight"],
        params["down_blocks"][1]["attentions"][0]["to_out"][0]["kernel"][...].T,
    )
    assert {
        f"{attention}.group_norm.weight",
        "class_embedding.weight",
        "mid_block.resnets.1.conv2.bias",
    } <= set(tensors)
    assert (
        "mid_block.attentions.0.group_norm.weight" not in tensors
    )  # "scale_shift" without attn_norm_num_groups


def test_shards_that_an_index_lists(folder):
    unet = folder / "unet"
    tensors = load_file(unet / diffusers_weights.SAFETENSORS)
    (unet / diffusers_weights.SAFETENSORS).unlink()
    names = sorted(tensors)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in halves.items():
        save_file({name: tensors[name] for name in part}, unet / file)
    weight_map = {name: file for file, part in halves.items() for name in part}
    index = unet / f"{diffusers_weights.SAFETENSORS}.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    jax.tree.map(np.testing.assert_array_equal, cmjax.load(folder).params, model().params)
    assert [file.name for file in open_checkpoint(folder).files] == [
        "a.safetensors",
        "b.safetensors",
    ]
    index.write_text(json.dumps({"weight_map": {"x": "../../secret"}}))
    with pytest.raises(ValueError, match="weight_map must map.*in the folder"):
        cmjax.load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"dropout": 0.1},
            "config.json: dropout 0.1 is not supported, only 0; for sampling set it to 0",
        ),
        (
            {"time_embedding_type": "fourier"},
            "time_embedding_type 'fourier' is not supported",
        ),
        ({"mid_block_type": None}, "mid_block_type None is not supported"),
        ({"mid_block_scale_factor": 1.4}, "mid_block_scale_factor"),
        ({"downsample_padding": 0}, "downsample_padding 0"),
        ({"act_fn": "gelu"}, "act_fn 'gelu'"),
        ({"add_attention": False}, "add_attention False"),
        ({"class_embed_type": "timestep"}, "class_embed_type 'timestep'"),
        ({"time_embedding_dim": 64}, "time_embedding_dim 64"),
        (
            {"down_block_types": ["SkipDownBlock2D", "DownBlock2D"]},
            "down_block_types must be.*SkipDownBlock2D",
        ),
        (
            {"up_block_types": ["AttnUpBlock2D", "KUpBlock2D"]},
            "up_block_types must be.*KUpBlock2D",
        ),
        (
            {"resnet_time_scale_shift": "spatial"},
            "resnet_time_scale_shift must be.*'spatial'",
        ),
        ({"downsample_type": "fir"}, "downsample_type must be.*'fir'"),
        ({"sample_size": [4, 8]}, r"sample_size \[4, 8\] is not supported, only squares"),
        ({"sample_size": None}, "sample_size is missing"),
        ({"encoder_hid_dim": 3}, "no option 'encoder_hid_dim'"),
        ({"patch_size": 1}, "no option 'patch_size'"),
        ({"attn_norm_num_groups": 3}, "attn_norm_num_groups 3 does not divide 16"),
        ({"_class_name": "UNet2DConditionModel"}, "_class_name is 'UNet2DConditionModel'"),
        ({"layers_per_block": 10**9}, "layers_per_block must be"),
    ],
)
def test_options_that_are_not_supported_are_errors(folder, change, message):
    edit(folder / "unet" / "config.json", **change)
    with pytest.raises(ValueError, match=message):
        cmjax.load(folder)


def test_the_folder_of_a_moving_average(folder):
    # diffusers' `EMAModel.save_pretrained` adds these to the network's config.
    edit(
        folder / "unet" / "config.json",
        decay=0.9999,
        inv_gamma=1.0,
        min_decay=0.0,
        optimization_step=10,
        power=0.75,
        update_after_step=0,
        use_ema_warmup=False,
    )
    assert cmjax.load(folder / "unet").config == open_checkpoint(folder).config


def test_a_variant_with_a_dot_in_its_name(folder):
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_name("diffusion_pytorch_model.ema.1.safetensors"))
    assert "variant 'ema.1'" in open_checkpoint(folder).note


def test_parts_that_are_not_read_are_named(folder):
    edit(
        folder / "model_index.json",
        vqvae=["diffusers", "VQModel"],
        safety_checker=[None, None],
    )
    assert open_checkpoint(folder).note == (
        "vqvae of the pipeline is not read: samples are what the unet makes"
    )


def test_so_are_those_of_a_pipeline_with_a_transformer(tmp_path):
    config = DiTTransformer2DConfig(
        num_attention_heads=2, attention_head_dim=8, num_layers=1, num_embeds_ada_norm=3
    )
    model = networks.model(config, scheduler=cmjax.DDIMScheduler(clip_sample=False))
    cmjax.save(tmp_path / "dit", model, to="diffusers")
    assert open_checkpoint(tmp_path / "dit").note == ""
    edit(tmp_path / "dit" / "model_index.json", safety_checker=["diffusers", "Checker"])
    assert "safety_checker of the pipeline is not read" in (
        open_checkpoint(tmp_path / "dit").note
    )


def test_a_square_size_as_a_pair(folder):
    edit(folder / "unet" / "config.json", sample_size=[4, 4])
    assert open_checkpoint(folder).config.sample_size == 4


def test_options_a_file_leaves_out_have_the_defaults_of_diffusers():
    config = unet_config_files.config_from_diffusers(
        {"_class_name": "UNet2DModel", "sample_size": 32}
    )
    assert (
        config.block_out_channels == (224, 448, 672, 896) and config.attention_head_dim == 8
    )
    assert config.down_block_types == ("DownBlock2D",) + ("AttnDownBlock2D",) * 3
    for preset in PRESETS.values():
        assert (
            unet_config_files.config_from_diffusers(
                unet_config_files.config_to_diffusers(preset)
            )
            == preset
        )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda f: edit(
                f / "model_index.json", unet=["diffusers", "UNet2DConditionModel"]
            ),
            "unet must be a UNet2DModel",
        ),
        (
            lambda f: edit(f / "model_index.json", unet=3),
            "unet must be a UNet2DModel, got 3",
        ),
        (lambda f: (f / "unet" / "config.json").unlink(), "has no config.json"),
        (
            lambda f: (f / "scheduler" / "scheduler_config.json").unlink(),
            "has no scheduler_config.json",
        ),
        (
            lambda f: edit(
                f / "model_index.json", scheduler=["diffusers", "SASolverScheduler"]
            ),
            "model_index.json: SASolverScheduler",
        ),
        (
            lambda f: (f / "unet" / diffusers_weights.SAFETENSORS).unlink(),
            "has no diffusion_pytorch_model.safetensors, nor",
        ),
        (
            lambda f: edit(f / "unet" / "config.json", num_class_embeds=4),
            r"misshapen class_embedding.weight: \(3, 32\)",
        ),
        (
            lambda f: edit(f / "unet" / "config.json", attn_norm_num_groups=4),
            "missing mid_block.attentions.0.group_norm",
        ),
    ],
)
def test_damaged_pipelines(folder, damage, message):
    damage(folder)
    with pytest.raises(ValueError, match=message):
        cmjax.load(folder)


@pytest.mark.parametrize(
    "name",
    ["model_index.json", "unet/config.json", f"unet/{diffusers_weights.SAFETENSORS}"],
)
def test_a_link_that_leads_nowhere_is_named(folder, name):
    """As of a hub's cache whose links alone were copied; no other file takes its place."""
    weights = folder / "unet" / diffusers_weights.SAFETENSORS
    shutil.copy(weights, weights.with_suffix(".fp16.safetensors"))
    (folder / name).unlink()
    (folder / name).symlink_to("../../blobs/a1")
    with pytest.raises(ValueError, match=f"{name} is a link to .*a1, which is not there"):
        cmjax.load(folder)


def test_what_diffusers_cannot_hold_is_not_written(tmp_path):
    patched = UNet2DConfig(
        4,
        1,
        1,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        attention_head_dim=4,
        patch_size=2,
    )
    with pytest.raises(ValueError, match="patch_size 2 is cmjax's own"):
        cmjax.save(tmp_path / "x", model(patched), to="diffusers")
    with pytest.raises(ValueError, match="to must be one of"):
        cmjax.save(tmp_path / "x", model(), to="onnx")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(
        ValueError, match="mine holds thesis.tex, which cmjax did not write"
    ):
        cmjax.save(tmp_path / "mine", model())
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "thesis.tex"]


def test_dtypes(folder):
    half = cmjax.load(folder, dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(half.params)} == {
        jnp.dtype(jnp.bfloat16)
    }
    cmjax.save(folder, half, to="diffusers")  # over the old one
    kept = open_checkpoint(folder).load(keep_dtypes=True)
    jax.tree.map(np.testing.assert_array_equal, kept.params, half.params)
    assert {leaf.dtype for leaf in jax.tree.leaves(cmjax.load(folder).params)} == {
        jnp.dtype(jnp.float32)
    }

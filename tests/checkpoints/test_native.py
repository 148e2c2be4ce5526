"""cmjax's own folder: what goes in comes out, and nothing else gets in."""

import codecs
import dataclasses
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import cmjax
from tests.support import networks

CONFIG = dataclasses.replace(
    networks.UNET,
    sample_size=4,
    block_out_channels=(8, 8),
    attention_head_dim=4,
    patch_size=1,
)
SCHEDULER = cmjax.CMStochasticIterativeScheduler(sigma_max=40.0)


def model():
    return networks.model(CONFIG, SCHEDULER)


@pytest.fixture
def folder(tmp_path):
    cmjax.save(tmp_path / "m", model())
    return tmp_path / "m"


def test_a_saved_model_loads_equal_and_samples_equal(folder):
    original, loaded = model(), cmjax.load(folder)
    assert (loaded.scheduler, loaded.config) == (SCHEDULER, CONFIG)
    assert loaded.sample_shape == (4, 4, 1) and loaded.num_classes == 3
    chex.assert_trees_all_equal(loaded.params, original.params)

    @jax.jit
    def run(model):  # a Model is a pytree, and goes through jit whole
        cond = {"class_labels": jnp.array([0, 2])}
        return cmjax.sample(
            jax.random.key(0),
            model.apply_fn,
            model.params,
            model.scheduler,
            (2, 4, 4, 1),
            cond=cond,
        )

    np.testing.assert_array_equal(run(loaded), run(original))


def test_parameters_in_the_dtype_asked_for(folder):
    loaded = cmjax.load(folder, dtype=jnp.bfloat16)
    assert {p.dtype for p in jax.tree.leaves(loaded.params)} == {jnp.dtype(jnp.bfloat16)}
    assert {p.dtype for p in jax.tree.leaves(cmjax.load(folder).params)} == {
        jnp.dtype(jnp.float32)
    }


def test_half_precision_files_load_as_float32(tmp_path):
    half = model()
    cmjax.save(
        tmp_path / "h",
        cmjax.Model(
            half.apply_fn,
            jax.tree.map(lambda p: p.astype(jnp.float16), half.params),
            SCHEDULER,
            CONFIG,
        ),
    )
    loaded = cmjax.load(tmp_path / "h")
    assert {p.dtype for p in jax.tree.leaves(loaded.params)} == {jnp.dtype(jnp.float32)}
    chex.assert_trees_all_close(loaded.params, half.params, atol=2e-3)


def test_tensor_names_are_readable(folder):
    names = set(load_file(folder / "model.safetensors"))
    assert {
        "conv_in.kernel",
        "down_blocks.0.resnets.0.norm1.scale",
        "time_embedding.linear_1.bias",
    } <= names


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.pop("conv_in.bias"),
            r"1 tensors do not fit.*missing conv_in.bias \(8,\)",
        ),
        (lambda t: t.update(extra=np.zeros(2)), r"unexpected extra \(2,\)"),
        (
            lambda t: t.update({"conv_in.bias": np.zeros(9, np.float32)}),
            r"misshapen conv_in.bias: \(9,\) in the file, \(8,\)",
        ),
    ],
)
def test_tensors_are_checked_both_ways(folder, change, message):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match=message):
        cmjax.load(folder)


def edit(folder, name, **changes):
    content = json.loads((folder / name).read_text()) | changes
    (folder / name).write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: edit(f, "config.json", _class_name="UNet3D"), "_class_name is 'UNet3D'"),
        (
            lambda f: edit(f, "config.json", sample_sise=4),
            "no option 'sample_sise'; did you mean 'sample_size'",
        ),
        (
            lambda f: edit(f, "scheduler_config.json", sigma_min=100.0),
            "sigma_min 100.0 must be less",
        ),
        (
            lambda f: edit(f, "config.json", sample_size="8"),
            "config.json: sample_size must be.*'8'",
        ),
        (lambda f: edit(f, "config.json", patch_size=0), "patch_size must be"),
        (lambda f: edit(f, "config.json", attention_head_dim=0), "attention_head_dim.*0"),
        (
            lambda f: edit(f, "config.json", block_out_channels=8),
            "block_out_channels must be",
        ),
        (lambda f: edit(f, "config.json", norm_eps=None), "norm_eps must be"),
        (lambda f: edit(f, "config.json", time_scale="x"), "time_scale must be"),
        (lambda f: edit(f, "config.json", num_class_embeds=-1), "num_class_embeds"),
        (lambda f: edit(f, "config.json", _class_name=[]), r"_class_name is \[\]"),
        (
            lambda f: (f / "config.json").write_text('{"_class_name": "UNet2D"}'),
            "needs the option 'sample_size'",
        ),
        (lambda f: edit(f, "scheduler_config.json", _class_name=[]), r"_class_name.*\[\]"),
        (
            lambda f: edit(f, "scheduler_config.json", sigma_min="a"),
            "scheduler_config.json: sigma_min must be.*'a'",
        ),
        (
            lambda f: edit(f, "scheduler_config.json", clip_denoised="no"),
            "clip_denoised must be",
        ),
        (lambda f: (f / "config.json").write_text("{"), "config.json is not JSON"),
        (
            lambda f: (f / "config.json").write_text("[]"),
            "must hold a JSON object, got list",
        ),
        (
            lambda f: (f / "config.json").unlink(),
            "is not a whole model: it has no config.json",
        ),
        (lambda f: (f / "model.safetensors").unlink(), "has no model.safetensors"),
        (
            lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 100),
            "not a readable safetensors file",
        ),
        (
            lambda f: (f / "model.safetensors").write_bytes(
                (f / "model.safetensors").read_bytes()[:-7]
            ),
            "not a readable safetensors file",
        ),
    ],
)
def test_damaged_folders(folder, damage, message):
    damage(folder)
    with pytest.raises(ValueError, match=message):
        cmjax.load(folder)


@pytest.mark.parametrize("name", ["config.json", "scheduler_config.json"])
def test_a_byte_order_mark_is_no_part_of_json(folder, name):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(codecs.BOM_UTF8 + content)
    cmjax.load(folder)


def test_sources_that_are_not_there(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="nowhere.*folder, a .pt file, or a hub id"):
        cmjax.load(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is not a readable PyTorch file"):
        cmjax.load(tmp_path / "file")


def test_a_hub_id_that_is_not_cached_says_so_offline(monkeypatch, tmp_path):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="'someone/model' is neither a folder"):
        cmjax.load("someone/model")


def test_only_cmjax_networks_can_be_saved(tmp_path):
    with pytest.raises(ValueError, match=r"model.config must be.*UNet2D"):
        cmjax.save(tmp_path, cmjax.Model(lambda p, x, t: x, {}, SCHEDULER, None))


def test_what_cannot_be_loaded_again_does_not_replace_what_could(tmp_path):
    model = networks.model()
    cmjax.save(tmp_path / "m", model)
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, model.params)
    with pytest.raises(ValueError, match=f"{tmp_path}/m/model.safetensors: .* not finite"):
        cmjax.save(tmp_path / "m", dataclasses.replace(model, params=broken))
    chex.assert_trees_all_equal(cmjax.load(tmp_path / "m").params, model.params)


def test_a_prefix_of_all_names_is_named(folder):
    path = folder / "model.safetensors"
    save_file({f"module.{name}": value for name, value in load_file(path).items()}, path)
    with pytest.raises(ValueError, match="begin with 'module.', .* without it"):
        cmjax.load(folder)

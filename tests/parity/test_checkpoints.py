"""Folders between cmjax, diffusers and OpenAI: images, bytes and names as the originals have."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import (
    CMStochasticIterativeScheduler,
    ConsistencyModelPipeline,
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    PNDMScheduler,
    UNet2DModel,
)
from safetensors.numpy import load_file, save_file

import cmjax
from cmjax.checkpoints import diffusers as reader
from cmjax.checkpoints import diffusers_weights, open_checkpoint, openai
from cmjax.checkpoints.torch_file import open_torch
from cmjax.models import PRESETS
from tests.support.torch_networks import SMALL, draw_network

RESNET = {
    **SMALL,
    "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "downsample_type": "resnet",
    "upsample_type": "resnet",
    "resnet_time_scale_shift": "scale_shift",
    "attn_norm_num_groups": 4,
}
NAMES = json.loads((Path(__file__).parents[1] / "golden" / "openai_names.json").read_text())


@pytest.fixture(params=[None, 6], ids=["plain", "classes"])
def pipeline(request, tmp_path):
    unet = draw_network(**RESNET, num_class_embeds=request.param)
    pipeline = ConsistencyModelPipeline(
        unet, CMStochasticIterativeScheduler(num_train_timesteps=40)
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(tmp_path / "pipeline")
    return pipeline


def test_the_index_names_the_class_of_the_scheduler(tmp_path):
    # Whose own file has the name of another one, that its options were written for.
    network = draw_network(**RESNET)
    DDPMPipeline(network, PNDMScheduler(beta_end=0.012)).save_pretrained(tmp_path)
    path = tmp_path / "model_index.json"
    index = json.loads(path.read_text())
    path.write_text(json.dumps({**index, "scheduler": ["diffusers", "DDIMScheduler"]}))

    theirs = DDPMPipeline.from_pretrained(tmp_path).scheduler
    assert type(theirs).__name__ == "DDIMScheduler"
    ours = cmjax.load(tmp_path).scheduler
    assert ours == cmjax.DDIMScheduler.from_config(json.loads(theirs.to_json_string()))
    assert ours.beta_end == 0.012

    path.write_text(json.dumps({**index, "scheduler": ["diffusers", "SASolverScheduler"]}))
    with pytest.raises(ValueError, match="model_index.json: SASolverScheduler is a sched"):
        cmjax.load(tmp_path)


@pytest.mark.parametrize("timesteps", [[0], [22, 0]], ids=["one", "two"])
def test_images_of_the_pipeline(pipeline, tmp_path, monkeypatch, timesteps):
    """The same folder, initial noise and step noise, whatever the generators."""
    model = cmjax.load(tmp_path / "pipeline")
    shape = (2, 8, 8, 3)
    noises = np.random.default_rng(0).standard_normal((3, *shape)).astype(np.float32)
    monkeypatch.setattr(
        "cmjax.schedulers.base.level_noise",
        lambda keys, level, *_: jnp.asarray(noises)[level],
    )
    theirs = iter([torch.from_numpy(noise).permute(0, 3, 1, 2) for noise in noises])
    module = "diffusers.schedulers.scheduling_consistency_models.randn_tensor"
    monkeypatch.setattr(module, lambda *_, **__: next(theirs))
    labels = [1, 4] if model.num_classes else None
    options = {
        "batch_size": 2,
        "class_labels": labels,
        "timesteps": timesteps,
        "output_type": "np",
    }
    expected = pipeline(latents=next(theirs), **options).images

    cond = {"class_labels": jnp.array(labels)} if labels else {}
    options = {"timesteps": timesteps, "cond": cond}
    images = cmjax.sample(
        jax.random.key(0), model.apply_fn, model.params, model.scheduler, shape, **options
    )
    assert np.std(expected) > 0.05
    np.testing.assert_allclose((np.asarray(images) + 1) / 2, expected, atol=1 / 255)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
def test_there_and_back_is_byte_for_byte(pipeline, tmp_path, dtype, safe):
    pipeline.unet.to(dtype).save_pretrained(
        tmp_path / "pipeline" / "unet", safe_serialization=safe
    )
    if not safe:
        (tmp_path / "pipeline" / "unet" / diffusers_weights.SAFETENSORS).unlink()
    expected = {
        name: tensor.view(torch.uint8).numpy().tobytes()
        for name, tensor in pipeline.unet.state_dict().items()
    }
    cmjax.save(
        tmp_path / "ours", open_checkpoint(tmp_path / "pipeline").load(keep_dtypes=True)
    )
    cmjax.save(
        tmp_path / "back",
        open_checkpoint(tmp_path / "ours").load(keep_dtypes=True),
        to="diffusers",
    )
    tensors = load_file(tmp_path / "back" / "unet" / diffusers_weights.SAFETENSORS)
    assert {name: tensor.tobytes() for name, tensor in tensors.items()} == expected
    theirs = ConsistencyModelPipeline.from_pretrained(tmp_path / "back", dtype=dtype)
    for name, tensor in theirs.unet.state_dict().items():
        assert torch.equal(tensor, pipeline.unet.state_dict()[name])
    for part in ("unet", "scheduler"):
        was, now = (
            json.loads(getattr(p, part).to_json_string()) for p in (pipeline, theirs)
        )
        assert {k: now[k] for k in was if k[0] != "_"} == {
            k: was[k] for k in was if k[0] != "_"
        }


@pytest.mark.parametrize(
    "kind, scheduler",
    [
        (DDPMPipeline, DDPMScheduler(beta_schedule="squaredcos_cap_v2")),
        (DDIMPipeline, DDIMScheduler(clip_sample_range=2.0)),
    ],
    ids=["DDPM", "DDIM"],
)
def test_denoisers_return_as_their_pipeline(kind, scheduler, tmp_path, caplog):
    def pictures(folder):
        pipeline = kind.from_pretrained(folder)
        pipeline.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        made = pipeline(2, generator=generator, num_inference_steps=3, output_type="np")
        return made.images

    kind(draw_network(**RESNET), scheduler).save_pretrained(tmp_path / "theirs")
    expected = pictures(tmp_path / "theirs")
    model = cmjax.load(tmp_path / "theirs")
    cmjax.save(tmp_path / "ours", model, to="diffusers")
    index = json.loads((tmp_path / "ours" / "model_index.json").read_text())
    assert index["_class_name"] == kind.__name__
    caplog.clear()
    np.testing.assert_array_equal(pictures(tmp_path / "ours"), expected)
    assert "not expected" not in caplog.text  # as of options that diffusers does not know
    assert cmjax.load(tmp_path / "ours").scheduler == model.scheduler


def test_what_diffusers_takes_at_each_call_is_kept_for_cmjax(tmp_path):
    draw_network(**RESNET).save_pretrained(tmp_path / "unet")
    scheduler = cmjax.DDIMScheduler(eta=0.5)
    denoiser = dataclasses.replace(cmjax.load(tmp_path / "unet"), scheduler=scheduler)
    cmjax.save(tmp_path / "x", denoiser, to="diffusers")
    config = json.loads((tmp_path / "x/scheduler/scheduler_config.json").read_text())
    assert config["eta"] == 0.5
    assert "use_clipped_model_output" not in config
    assert cmjax.load(tmp_path / "x").scheduler == denoiser.scheduler


@pytest.mark.parametrize(
    "scheduler, classes, message",
    [
        (cmjax.DDPMScheduler(), 6, "DDPMPipeline draws from networks without classes.* 6;"),
        (cmjax.PNDMScheduler(), None, "take .*DDPMScheduler, DDIMScheduler, got PNDMSch"),
        (cmjax.EDMHeunScheduler(), None, "got EDMHeunScheduler; save the model as a cmjax"),
    ],
)
def test_other_denoisers_are_refused(tmp_path, scheduler, classes, message):
    network = draw_network(**RESNET, num_class_embeds=classes)
    network.save_pretrained(tmp_path / "unet")
    model = dataclasses.replace(cmjax.load(tmp_path / "unet"), scheduler=scheduler)
    with pytest.raises(ValueError, match=message):
        cmjax.save(tmp_path / "x", model, to="diffusers")
    assert not (tmp_path / "x").exists()


def test_options_of_our_own_are_not_written_for_diffusers(tmp_path):
    bundled = cmjax.load()
    with pytest.raises(ValueError, match="time_scale 0.01 is cmjax's own"):
        cmjax.save(tmp_path / "x", bundled, to="diffusers")
    assert not list(tmp_path.iterdir())


def test_attention_of_old_files_under_its_old_names(tmp_path):
    network = draw_network(**SMALL)
    network.save_pretrained(tmp_path)
    new = reader.open_unet(tmp_path).load().params
    tensors = load_file(tmp_path / diffusers_weights.SAFETENSORS)
    for name in list(tensors):
        old = name
        for theirs, now in diffusers_weights.OLD_NAMES.items():
            old = old.replace(f".{now}.", f".{theirs}.") if "attentions" in name else old
        tensors[old] = tensors.pop(name)
    assert any("proj_attn" in name for name in tensors)
    save_file(tensors, tmp_path / diffusers_weights.SAFETENSORS)
    assert jax.tree.all(
        jax.tree.map(
            lambda a, b: bool((a == b).all()), reader.open_unet(tmp_path).load().params, new
        )
    )


def openai_file(path, shapes):
    rng = np.random.default_rng(0)
    tensors = {
        name: torch.from_numpy(rng.standard_normal(shape).astype(np.float16))
        for name, shape in shapes.items()
    }
    torch.save(tensors, path)
    return tensors


@pytest.mark.parametrize("network", ["small", "small256"])
def test_openai_files_are_converted_as_diffusers_does(network, tmp_path):
    """The names come from OpenAI's network and diffusers' script.

    See tests/golden/make_openai_names.py.
    """
    path = tmp_path / "net.pt"
    tensors = openai_file(path, NAMES[network]["openai"])
    checkpoint = openai.from_tensors(path, open_torch(path))
    model = checkpoint.load()
    cmjax.save(tmp_path / "out", model, to="diffusers")
    converted = load_file(tmp_path / "out" / "unet" / diffusers_weights.SAFETENSORS)
    assert set(converted) == set(NAMES[network]["diffusers"])
    for name, (theirs, row) in NAMES[network]["diffusers"].items():
        expected = (
            tensors[theirs]
            .numpy()
            .reshape(tensors[theirs].shape[0], -1)[row : row + converted[name].shape[0]]
        )
        np.testing.assert_array_equal(
            converted[name].reshape(expected.shape), expected, err_msg=name
        )
    loaded = UNet2DModel.from_pretrained(tmp_path / "out" / "unet")
    x = torch.zeros(1, 3, model.config.sample_size, model.config.sample_size)
    assert (
        loaded(
            x[..., :32, :32], 1.0, torch.tensor([1]) if model.num_classes else None
        ).sample.shape[-1]
        == 32
    )


@pytest.mark.parametrize("preset", list(PRESETS))
def test_released_architectures_are_inferred_from_their_tensors(preset):
    shapes = NAMES[preset]["openai"]
    tensors = {
        name: openai.StoredTensor(tuple(s), np.dtype(np.float16), lambda: None)
        for name, s in shapes.items()
    }
    assert openai.infer_config(tensors) == PRESETS[preset]
    renamed = openai._as_diffusers(tensors, PRESETS[preset])
    assert set(renamed) == set(NAMES[preset]["diffusers"])
    cmjax.checkpoints.StoredNetwork(
        kind="",
        files=(),
        config=PRESETS[preset],
        tensors=renamed,
        layout=diffusers_weights.layout,
    ).check()


@pytest.mark.parametrize(
    ("stem", "levels", "note"),
    [
        ("cd_cat256_l2", 40, ""),
        ("ct_imagenet64", 201, ""),
        ("ct_bedroom256", 151, ""),
        ("edm_imagenet64_ema", 40, "teacher"),
        ("mine", 40, "40 noise levels are assumed"),
    ],
)
def test_the_name_of_a_released_file_tells_its_levels(stem, levels, note, tmp_path):
    openai_file(tmp_path / f"{stem}.pt", NAMES["small"]["openai"])
    checkpoint = open_checkpoint(tmp_path / f"{stem}.pt")
    assert checkpoint.scheduler.num_train_timesteps == levels
    assert note in checkpoint.note and bool(note) == bool(checkpoint.note)


def test_a_preset_by_name(tmp_path):
    openai_file(tmp_path / "x.pt", NAMES["small"]["openai"])
    with pytest.raises(
        ValueError,
        match=r"tensors do not fit the network: missing down_blocks.0.down.*and \d+ more",
    ):
        cmjax.load(tmp_path / "x.pt", config="imagenet64")
    with pytest.raises(
        ValueError, match="'imagenet' is not a preset; presets are imagenet64, lsun256"
    ):
        cmjax.load(tmp_path / "x.pt", config="imagenet")
    with pytest.raises(ValueError, match="config is for models whose files do not name"):
        cmjax.load(config="imagenet64")


def test_bfloat16_makes_the_same_images(pipeline, tmp_path):
    model, half = (
        cmjax.load(tmp_path / "pipeline"),
        cmjax.load(tmp_path / "pipeline", dtype=jnp.bfloat16),
    )
    cond = {"class_labels": jnp.arange(8) % 6} if model.num_classes else {}
    full, low = (
        jax.jit(
            lambda m, dtype=dtype: cmjax.sample(
                jax.random.key(0),
                m.apply_fn,
                m.params,
                m.scheduler,
                (8, 8, 8, 3),
                cond=cond,
                dtype=dtype,
            )
        )(m)
        for m, dtype in ((model, jnp.float32), (half, jnp.bfloat16))
    )
    assert low.dtype == jnp.bfloat16
    difference = np.abs(np.asarray(low, np.float32) - np.asarray(full)).mean() * 127.5
    assert difference <= 2, difference

"""Autoencoders against diffusers on random weights, and folders there and back."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny

import cmjax
from cmjax.checkpoints import diffusers_weights
from tests.support.autoencoders import draw_tensors, images

SMALL = {
    "block_out_channels": (4, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 2,
    "sample_size": 8,
}
TINY = {
    "encoder_block_out_channels": (4, 4),
    "decoder_block_out_channels": (4, 4),
    "num_encoder_blocks": (1, 1),
    "num_decoder_blocks": (2, 1),
    "scaling_factor": 0.7,
    "shift_factor": 0.2,
}

# As Stable Diffusion, as Stable Diffusion 3, and with what no released model has.
OPTIONS = {
    "sd": {},
    "sd3": {
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "latent_channels": 16,
        "shift_factor": 0.0609,
        "scaling_factor": 1.5305,
        "layers_per_block": 2,
    },
    "attention": {
        "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        "mid_block_add_attention": False,
        "latents_mean": [0.1, -0.2, 0.3, 0.0],
        "latents_std": [1.0, 2.0, 3.0, 4.0],
        "force_upcast": False,
    },
}
SLOWER = [pytest.param(name, marks=pytest.mark.thorough) for name in ("sd3", "attention")]


def as_torch(array):
    return torch.from_numpy(np.array(array)).permute(0, 3, 1, 2)


def as_list(value):
    return list(value) if isinstance(value, tuple) else value


def assert_close(found, expected):
    """Within 1e-4 of the standard deviation of what PyTorch computes."""
    expected = expected.detach().permute(0, 2, 3, 1).numpy()
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.std(expected))


@pytest.mark.parametrize("name", ["sd", *SLOWER])
def test_kl_equals_diffusers(name, tmp_path):
    theirs = draw_tensors(AutoencoderKL(**{**SMALL, **OPTIONS[name]}), torch)
    theirs.save_pretrained(tmp_path)
    ours = cmjax.load_autoencoder(tmp_path)
    config = theirs.config

    # Raw moments, by taking the scaling back as diffusers' pipelines do.
    distribution = theirs.encode(as_torch(images())).latent_dist
    mean, std = ours.moments(images())
    shift = np.array(config.latents_mean or config.shift_factor or 0.0, np.float32)
    spread = np.array(config.latents_std or 1.0, np.float32) / config.scaling_factor
    assert_close(np.asarray(mean) * spread + shift, distribution.mean)
    assert_close(np.asarray(std) * spread, distribution.std)

    latents = np.asarray(mean) * spread + shift
    assert_close(ours.decode(mean), theirs.decode(as_torch(latents)).sample)


def test_tiny_equals_diffusers(tmp_path):
    theirs = draw_tensors(AutoencoderTiny(**TINY), torch)
    theirs.save_pretrained(tmp_path)
    ours = cmjax.load_autoencoder(tmp_path)
    raw = theirs.encode(as_torch(images())).latents
    assert_close(np.asarray(ours.encode(images())) / 0.7 + 0.2, raw)
    latents = (raw.detach().permute(0, 2, 3, 1).numpy() - 0.2) * np.float32(0.7)
    assert_close(ours.decode(latents), theirs.decode(raw).sample)


@pytest.mark.parametrize("name", ["sd", "tiny", *SLOWER])
def test_there_and_back_is_the_same_network(name, tmp_path):
    cls = AutoencoderTiny if name == "tiny" else AutoencoderKL
    options = TINY if name == "tiny" else {**SMALL, **OPTIONS[name]}
    theirs = draw_tensors(cls(**options), torch).half()
    theirs.save_pretrained(tmp_path / "theirs", variant="fp16")
    stored = cmjax.checkpoints.open_autoencoder(tmp_path / "theirs")
    _, params = stored.read(keep_dtypes=True)
    cmjax.save_autoencoder(tmp_path / "ours", cmjax.Autoencoder(stored.config, params))

    back = cls.from_pretrained(tmp_path / "ours", torch_dtype=torch.float16)
    expected = theirs.state_dict()
    found = back.state_dict()
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert torch.equal(found[key], tensor), key
    for option, value in theirs.config.items():
        if not option.startswith("_"):
            assert as_list(back.config[option]) == as_list(value), option


def test_a_pickle_of_pytorch(tmp_path):
    theirs = draw_tensors(AutoencoderKL(**SMALL), torch)
    theirs.save_pretrained(tmp_path, safe_serialization=False)
    assert (tmp_path / diffusers_weights.TORCH).exists()
    vae = cmjax.load_autoencoder(tmp_path, dtype=jnp.bfloat16)
    kernel = vae.params["decoder"]["conv_in"]["kernel"][...]
    expected = theirs.decoder.conv_in.weight.detach().permute(2, 3, 1, 0).numpy()
    np.testing.assert_array_equal(kernel, expected.astype(jnp.bfloat16))


@pytest.mark.thorough
def test_the_defaults_are_those_of_diffusers(tmp_path):
    for cls, config in [
        (AutoencoderKL, cmjax.models.AutoencoderKLConfig),
        (AutoencoderTiny, cmjax.models.AutoencoderTinyConfig),
    ]:
        known = {field.name for field in dataclasses.fields(config)}
        theirs = cls(**({"sample_size": 64} if cls is AutoencoderKL else {}))
        theirs.save_pretrained(tmp_path / cls.__name__)
        stored = cmjax.checkpoints.open_autoencoder(tmp_path / cls.__name__)
        for name in known:
            value = theirs.config[name]
            found = getattr(stored.config, name)
            assert as_list(found) == as_list(value), name
        stored.check()

"""Autoencoders: shapes, scaling, keys, dtypes, and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import cmjax
from cmjax.models import AutoencoderKL, AutoencoderKLConfig, AutoencoderTinyConfig
from tests.support.autoencoders import KL, TINY, autoencoder, images

LATENTS = jnp.zeros((2, 4, 4, 4))

# With as many channels as the forms of convolutions on CPUs need.
WIDE = dataclasses.replace(
    TINY, encoder_block_out_channels=(32, 32), decoder_block_out_channels=(32, 32)
)


def test_latents_are_shifted_and_scaled_as_samplers_want_them():
    plain = autoencoder(dataclasses.replace(KL, scaling_factor=1.0))
    mean, std = plain.moments(images())
    assert mean.shape == std.shape == (2, 4, 4, 4) and bool(jnp.all(std > 0))

    # (z - mean) * scale / std in each channel, whichever way the config says it.
    statistics = ((0.1, -0.2, 0.3, 0.0), (1.0, 2.0, 3.0, 4.0))
    for options, (centre, spread) in [
        ({"scaling_factor": 0.5}, (0.0, 2.0)),
        ({"scaling_factor": 0.5, "shift_factor": 0.25}, (0.25, 2.0)),
        (
            {"latents_mean": statistics[0], "latents_std": statistics[1]},
            (np.array(statistics[0]), np.array(statistics[1]) / 0.18215),
        ),
    ]:
        vae = dataclasses.replace(plain, config=dataclasses.replace(KL, **options))
        scaled, deviation = vae.moments(images())
        np.testing.assert_allclose(scaled, (np.asarray(mean) - centre) / spread, atol=1e-5)
        np.testing.assert_allclose(deviation, np.asarray(std) / spread, rtol=1e-5)
        np.testing.assert_allclose(vae.decode(scaled), plain.decode(mean), atol=1e-4)


def test_a_key_draws_each_image_by_its_own_index():
    vae = autoencoder(KL)
    mean, std = vae.moments(images())
    key = jax.random.key(0)
    drawn = vae.encode(images(), key)
    keys = cmjax.random.sample_keys(key, 2)
    noise = cmjax.random.level_noise(keys, 0, mean.shape)
    np.testing.assert_allclose(drawn, mean + std * noise, atol=1e-6)
    later = vae.encode(images()[1:], key, first_index=1)
    np.testing.assert_allclose(later, drawn[1:], atol=1e-5)
    np.testing.assert_array_equal(vae.encode(images()), mean)


@pytest.mark.parametrize(
    "config",
    [TINY, pytest.param(KL, marks=pytest.mark.thorough)],
    ids=["tiny", "kl"],
)
def test_a_batch_in_pieces_is_the_same(config):
    vae = autoencoder(config)
    batch = jnp.tile(images(), (2, 1, 1, 1))[:3]
    latents = vae.encode(batch, batch_size=2)
    np.testing.assert_allclose(latents, vae.encode(batch), atol=1e-6)
    decoded = jax.jit(lambda vae, z: vae.decode(z, batch_size=2))(vae, latents)
    np.testing.assert_allclose(decoded, vae.decode(latents), atol=1e-5)
    assert decoded.shape == (3, 8, 8, 3)


def test_decoding_says_how_far_it_is(capsys, monkeypatch):
    monkeypatch.setattr("cmjax.progress.PERIOD", 0.0)
    vae = autoencoder(TINY)
    latents = jax.random.normal(jax.random.key(0), (5, 4, 4, 4))
    quiet = vae.decode(latents, batch_size=2)
    assert capsys.readouterr().err == ""

    # Two, two, and one again of the piece before with the last.
    said = vae.decode(latents, batch_size=2, progress=True)
    np.testing.assert_allclose(said, quiet, atol=1e-5)
    lines = [line.split(" pictures")[0] for line in capsys.readouterr().err.splitlines()]
    assert lines == [f"decoding: {n} of 5" for n in (2, 4, 5)]

    # Nothing is done yet while JAX traces.
    jax.eval_shape(lambda z: vae.decode(z, progress=True), latents)
    assert capsys.readouterr().err == ""
    with pytest.raises(ValueError, match="progress must be True or False, got 'yes'"):
        vae.decode(latents, progress="yes")


def test_it_computes_in_the_dtype_of_its_input():
    # bfloat16 parameters, and bfloat16 of float32 parameters: 8 bits over some ten layers.
    vae = autoencoder(KL)
    expected = vae.decode(LATENTS + 1)
    stored = dataclasses.replace(
        vae, params=jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), vae.params)
    )
    assert stored.decode(LATENTS + 1).dtype == jnp.float32
    found = stored.decode((LATENTS + 1).astype(jnp.bfloat16))
    assert found.dtype == jnp.bfloat16
    difference = np.abs(np.asarray(found, np.float32) - np.asarray(expected))
    assert difference.max() < 0.1 * np.std(np.asarray(expected)) + 0.02


@pytest.mark.parametrize("force_upcast", [True, False])
def test_float16_is_computed_in_float32_where_values_leave_its_range(force_upcast):
    config = dataclasses.replace(KL, force_upcast=force_upcast)
    vae = autoencoder(config)
    kernel = vae.params["decoder"]["conv_in"]["kernel"]
    vae.params["decoder"]["conv_in"]["kernel"] = kernel.replace(kernel[...] * 1e6)
    decoded = vae.decode(LATENTS.astype(jnp.float16) + 1)
    assert decoded.dtype == jnp.float16
    assert bool(jnp.all(jnp.isfinite(decoded))) == force_upcast
    vae.params["decoder"]["conv_in"]["kernel"] = kernel


def test_equal_configs_share_a_program():
    vae = autoencoder(KL)
    again = cmjax.Autoencoder(dataclasses.replace(KL), vae.params)
    assert jax.tree.structure(vae) == jax.tree.structure(again)
    module = nnx.eval_shape(lambda: AutoencoderKL(KL, rngs=nnx.Rngs(0)))
    own = cmjax.Autoencoder(KL, nnx.state(module, nnx.Param))
    assert jax.tree.structure(own) == jax.tree.structure(vae)


def test_what_cannot_be_encoded_or_decoded_is_said_in_a_line():
    vae = autoencoder(KL)
    with pytest.raises(ValueError, match=r"images must be \[B, H, W, 3\], channels last"):
        vae.encode(jnp.zeros((2, 3, 8, 8)))
    with pytest.raises(ValueError, match="height and width that 2 divides, got 7 x 8"):
        vae.encode(jnp.zeros((2, 7, 8, 3)))
    with pytest.raises(ValueError, match="images must hold floats, got uint8"):
        vae.encode(np.zeros((2, 8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match="images goes from 0 to 255, as pixels do"):
        vae.encode(np.linspace(0, 255, 384, dtype=np.float32).reshape(2, 8, 8, 3))
    with pytest.raises(ValueError, match=r"latents must be \[B, h, w, 4\], channels last"):
        vae.decode(jnp.zeros((2, 4, 8, 8)))
    with pytest.raises(ValueError, match="batch_size must be a positive integer or None"):
        vae.decode(LATENTS, batch_size=0)
    with pytest.raises(ValueError, match="key is of no use: the latents of an Autoencoder"):
        autoencoder(TINY).encode(images(), jax.random.key(0))
    with pytest.raises(ValueError, match="config must be an AutoencoderKLConfig or Auto"):
        cmjax.Autoencoder(None, vae.params)


def test_parameters_of_another_network_are_named():
    # Of one channel, biases would be broadcast.
    narrow = jax.tree.map(lambda leaf: leaf[..., :1], autoencoder(KL).params)
    for params in (None, autoencoder(TINY).params, narrow):
        vae = cmjax.Autoencoder(KL, params)
        with pytest.raises(
            ValueError, match="params must be those of the AutoencoderKL of"
        ):
            vae.encode(images())


@pytest.mark.parametrize(
    "config",
    [KL, WIDE, pytest.param(TINY, marks=pytest.mark.thorough)],
    ids=["kl", "wide", "tiny"],
)
def test_it_is_exported_for_any_number_and_size_of_pictures(config):
    vae = autoencoder(config)
    key = jax.random.key(0) if config is KL else None

    def there_and_back(images):
        return vae.decode(vae.encode(images, key, batch_size=2))

    num, half = jax.export.symbolic_shape("num, half")
    any_images = jax.ShapeDtypeStruct((num, 2 * half, 2 * half, 3), jnp.float32)
    exported = jax.export.export(jax.jit(there_and_back))(any_images)
    given = images(3, 12)
    np.testing.assert_allclose(exported.call(given), there_and_back(given), atol=1e-4)


def test_configs_that_make_no_network_are_refused():
    for options, words in [
        ({"norm_num_groups": 3}, "norm_num_groups 3 does not divide 128 channels"),
        ({"block_out_channels": ()}, "block_out_channels must have 1 to 64 entries"),
        ({"up_block_types": ("UpDecoderBlock2D",)}, "one entry per entry of block_out"),
        ({"scaling_factor": 0.0}, "scaling_factor must be a number from 1e-06"),
        (
            {"latents_mean": (0.0,)},
            "latents_mean must have one entry per latent channel, 4",
        ),
        ({"latents_mean": (0.0,) * 4, "shift_factor": 1.0}, "exclude each other"),
    ]:
        with pytest.raises(ValueError, match=words):
            AutoencoderKLConfig(**options)
    for options, words in [
        ({"num_decoder_blocks": (1, 1)}, "must have one entry per resolution"),
        ({"encoder_block_out_channels": (4, 4, 4, 8)}, "must be all the same"),
    ]:
        with pytest.raises(ValueError, match=words):
            AutoencoderTinyConfig(**options)

"""The small distilled autoencoder (Bohan's TAESD, diffusers' `AutoencoderTiny`), in Flax NNX.

Source: https://github.com/madebyollin/taesd. It encodes to and decodes from the latents of a larger
autoencoder, as samplers have them. Layers have the numbers that diffusers' `Sequential` gives them.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from cmjax.models import layers, resampling
from cmjax.models.autoencoder_tiny_config import AutoencoderTinyConfig

LATENTS_BOUND = 3.0  # the decoder takes 3 tanh(z / 3), which bounds its latents z


class AutoencoderTiny(nnx.Module):
    """An encoder and a decoder of convolutions alone.

    Latents are the network's own here; `cmjax.Autoencoder` scales them for samplers.
    """

    def __init__(self, config: AutoencoderTinyConfig, *, rngs: nnx.Rngs):
        """Makes the network with float32 parameters drawn from `rngs`."""
        self.config = config
        self.encoder = _Layers(_encoder_layers(config, rngs))
        self.decoder = _Layers(_decoder_layers(config, rngs))

    def encode(self, images: jax.Array) -> jax.Array:
        """Maps images in [-1, 1], `[B, H, W, in_channels]`, to latents `[B, h, w, c]`."""
        return self.encoder((images + 1) / 2)

    def decode(self, latents: jax.Array) -> jax.Array:
        """Maps latents `[B, h, w, latent_channels]` to images `[B, H, W, out_channels]`."""
        bounded = jnp.tanh(latents / LATENTS_BOUND) * LATENTS_BOUND
        return 2 * self.decoder(bounded) - 1

    def __call__(self, images: jax.Array) -> jax.Array:
        """Encodes images and decodes their latents."""
        return self.decode(self.encode(images))


class _Layers(nnx.Module):
    """Layers in a row."""

    def __init__(self, made):
        self.layers = nnx.List(made)

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def _encoder_layers(config, rngs):
    """Returns the layers of the encoder: residual blocks, with halvings between resolutions."""
    channels = config.encoder_block_out_channels[0]
    made = [layers.conv(config.in_channels, channels, rngs=rngs)]
    for i, blocks in enumerate(config.num_encoder_blocks):
        if i > 0:
            made.append(
                layers.conv(channels, channels, stride=2, use_bias=False, rngs=rngs)
            )
        made += [_Block(channels, rngs=rngs) for _ in range(blocks)]
    return [*made, layers.conv(channels, config.latent_channels, rngs=rngs)]


def _decoder_layers(config, rngs):
    """Returns the layers of the decoder, those without parameters too: they count."""
    channels = config.decoder_block_out_channels[0]
    made = [layers.conv(config.latent_channels, channels, rngs=rngs), _Relu()]
    for blocks in config.num_decoder_blocks[:-1]:
        made += [_Block(channels, rngs=rngs) for _ in range(blocks)]
        made += [_Double(), layers.conv(channels, channels, use_bias=False, rngs=rngs)]
    made += [_Block(channels, rngs=rngs) for _ in range(config.num_decoder_blocks[-1])]
    return [*made, layers.conv(channels, config.out_channels, rngs=rngs)]


class _Block(nnx.Module):
    """Three convolutions with rectifiers, and a residual."""

    def __init__(self, channels, *, rngs):
        convs = [layers.conv(channels, channels, rngs=rngs) for _ in range(3)]
        self.conv = nnx.List([convs[0], _Relu(), convs[1], _Relu(), convs[2]])

    def __call__(self, x):
        h = x
        for layer in self.conv:
            h = layer(h)
        return jax.nn.relu(h + x)


class _Relu(nnx.Module):
    """A rectifier."""

    def __call__(self, x):
        return jax.nn.relu(x)


class _Double(nnx.Module):
    """A doubling of height and width."""

    def __call__(self, x):
        return resampling.double(x)

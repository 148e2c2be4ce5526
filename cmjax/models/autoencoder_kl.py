"""The variational autoencoder of latent models (Rombach et al. 2022, arXiv 2112.10752).

In Flax NNX, channels-last. Modules have the names of diffusers' `AutoencoderKL`, by which the
tensors of a file find their place.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from cmjax.models import layers, resampling
from cmjax.models.autoencoder_kl_blocks import NORM_EPS, Block, MidBlock
from cmjax.models.autoencoder_kl_config import (
    DOWN_BLOCKS,
    UP_BLOCKS,
    AutoencoderKLConfig,
)


class AutoencoderKL(nnx.Module):
    """An encoder to a normal distribution of latents, and a decoder.

    Latents are the network's own here; `cmjax.Autoencoder` scales them for samplers.
    """

    def __init__(self, config: AutoencoderKLConfig, *, rngs: nnx.Rngs):
        """Makes the network with float32 parameters drawn from `rngs`."""
        self.config = config
        latents = config.latent_channels
        self.encoder = _Encoder(config, rngs=rngs)
        self.decoder = _Decoder(config, rngs=rngs)

        # Both mix the channels of each pixel: of mean and log variance, and of the latents.
        quant_conv = None
        if config.use_quant_conv:
            quant_conv = layers.conv(2 * latents, 2 * latents, 1, rngs=rngs)
        self.quant_conv = quant_conv
        post_quant_conv = None
        if config.use_post_quant_conv:
            post_quant_conv = layers.conv(latents, latents, 1, rngs=rngs)
        self.post_quant_conv = post_quant_conv

    def encode(self, images: jax.Array) -> jax.Array:
        """Maps images `[B, H, W, in_channels]` to mean and log variance, `[B, h, w, 2 c]`.

        It computes in the dtype of the images; h and w are H and W divided by the stride, and c is
        `latent_channels`.
        """
        moments = self.encoder(images)
        return moments if self.quant_conv is None else self.quant_conv(moments)

    def decode(self, latents: jax.Array) -> jax.Array:
        """Maps latents `[B, h, w, latent_channels]` to images `[B, H, W, out_channels]`."""
        if self.post_quant_conv is not None:
            latents = self.post_quant_conv(latents)
        return self.decoder(latents)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Encodes images and decodes the mean of the latents."""
        mean, _ = jnp.split(self.encode(images), 2, axis=-1)
        return self.decode(mean)


class _Encoder(nnx.Module):
    """From an image down to the lowest resolution."""

    def __init__(self, config, *, rngs):
        widths = config.block_out_channels
        self.conv_in = layers.conv(config.in_channels, widths[0], rngs=rngs)
        self.down_blocks = nnx.List([])
        channels = widths[0]
        for i, kind in enumerate(config.down_block_types):
            self.down_blocks.append(
                Block(
                    config,
                    channels,
                    widths[i],
                    num_layers=config.layers_per_block,
                    attention=DOWN_BLOCKS[kind],
                    rngs=rngs,
                )
            )
            channels = widths[i]

            # Every resolution but the last is followed by a halving. Zeros are added below and at
            # the right only; in a list as in diffusers.
            if i < len(widths) - 1:
                halving = resampling.Downsample(
                    channels, padding=((0, 1), (0, 1)), rngs=rngs
                )
                self.down_blocks[i].downsamplers = nnx.List([halving])
        self.mid_block = MidBlock(config, rngs=rngs)
        self.conv_norm_out = layers.GroupNorm(
            channels, config.norm_num_groups, NORM_EPS, rngs=rngs
        )
        self.conv_out = layers.conv(channels, 2 * config.latent_channels, rngs=rngs)

    def __call__(self, x):
        h = self.conv_in(x)
        for block in self.down_blocks:
            h = block(h)
        h = self.mid_block(h)
        return layers.activated_conv(self.conv_norm_out, self.conv_out, h)


class _Decoder(nnx.Module):
    """From the lowest resolution up to an image."""

    def __init__(self, config, *, rngs):
        widths = config.block_out_channels[::-1]
        self.conv_in = layers.conv(config.latent_channels, widths[0], rngs=rngs)
        self.mid_block = MidBlock(config, rngs=rngs)
        self.up_blocks = nnx.List([])
        channels = widths[0]
        for i, kind in enumerate(config.up_block_types):
            self.up_blocks.append(
                Block(
                    config,
                    channels,
                    widths[i],
                    num_layers=config.layers_per_block + 1,
                    attention=UP_BLOCKS[kind],
                    rngs=rngs,
                )
            )
            channels = widths[i]
            if i < len(widths) - 1:
                doubling = resampling.Upsample(channels, rngs=rngs)
                self.up_blocks[i].upsamplers = nnx.List([doubling])
        self.conv_norm_out = layers.GroupNorm(
            channels, config.norm_num_groups, NORM_EPS, rngs=rngs
        )
        self.conv_out = layers.conv(channels, config.out_channels, rngs=rngs)

    def __call__(self, z):
        h = self.mid_block(self.conv_in(z))
        for block in self.up_blocks:
            h = block(h)
        return layers.activated_conv(self.conv_norm_out, self.conv_out, h)

"""The variational autoencoder of latent models (Rombach et al. 2022, arXiv 2112.10752).

In Flax NNX, channels-last. Modules have the names of diffusers' `AutoencoderKL`, by which the
tensors of a file find their place.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from cmjax.models import layers, resampling
from cmjax.models.attention import Attention
from cmjax.models.autoencoder_kl_config import (
    DOWN_BLOCKS,
    UP_BLOCKS,
    AutoencoderKLConfig,
)

NORM_EPS = 1e-6  # of every normalisation; diffusers has no option for it


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
                _Block(
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
        self.mid_block = _MidBlock(config, rngs=rngs)
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
        self.mid_block = _MidBlock(config, rngs=rngs)
        self.up_blocks = nnx.List([])
        channels = widths[0]
        for i, kind in enumerate(config.up_block_types):
            self.up_blocks.append(
                _Block(
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


class _Block(nnx.Module):
    """Residual blocks at one resolution, then a halving or a doubling."""

    def __init__(self, config, channels_in, channels, *, num_layers, attention, rngs):
        # The first residual block changes the number of channels.
        inputs = [channels_in] + [channels] * (num_layers - 1)
        self.resnets = nnx.List([_Resnet(config, c, channels, rngs=rngs) for c in inputs])
        self.attentions = nnx.List(
            [_attention(config, channels, rngs) for _ in inputs if attention]
        )
        self.downsamplers = nnx.List([])
        self.upsamplers = nnx.List([])

    def __call__(self, h):
        for i, resnet in enumerate(self.resnets):
            h = resnet(h)
            if self.attentions:
                h = self.attentions[i](h)
        for resample in [*self.downsamplers, *self.upsamplers]:
            h = resample(h)
        return h


class _Resnet(nnx.Module):
    """Two normalised convolutions and a residual, which are not told any time."""

    def __init__(self, config, channels_in, channels_out, *, rngs):
        groups = config.norm_num_groups
        self.norm1 = layers.GroupNorm(channels_in, groups, NORM_EPS, rngs=rngs)
        self.conv1 = layers.conv(channels_in, channels_out, rngs=rngs)
        self.norm2 = layers.GroupNorm(channels_out, groups, NORM_EPS, rngs=rngs)
        self.conv2 = layers.conv(channels_out, channels_out, rngs=rngs)

        # The residual passes as it is, or through a 1x1 convolution if the channels differ.
        conv_shortcut = None
        if channels_in != channels_out:
            conv_shortcut = layers.conv(channels_in, channels_out, 1, rngs=rngs)
        self.conv_shortcut = conv_shortcut

    def __call__(self, x):
        h = layers.activated_conv(self.norm1, self.conv1, x)
        return layers.activated_conv(self.norm2, self.conv2, h, self._shortcut, x)

    def _shortcut(self, x):
        return x if self.conv_shortcut is None else self.conv_shortcut(x)


class _MidBlock(nnx.Module):
    """A residual block, attention and another residual block, at the lowest resolution."""

    def __init__(self, config, *, rngs):
        channels = config.block_out_channels[-1]
        self.resnets = nnx.List(
            [_Resnet(config, channels, channels, rngs=rngs) for _ in range(2)]
        )
        self.attentions = nnx.List([])
        if config.mid_block_add_attention:
            self.attentions.append(_attention(config, channels, rngs))

    def __call__(self, h):
        first, second = self.resnets
        h = first(h)
        for attention in self.attentions:
            h = attention(h)
        return second(h)


def _attention(config, channels, rngs):
    """Returns attention with a single head."""
    return Attention(
        channels, channels, groups=config.norm_num_groups, epsilon=NORM_EPS, rngs=rngs
    )

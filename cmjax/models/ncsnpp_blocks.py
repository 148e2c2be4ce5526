"""The blocks of `NCSNpp`: residual blocks and attention at one resolution.

Of a block `level` is its resolution, 0 being the highest, and `skips` has the channels of the maps
that are kept for the way up; where a block is called, the maps themselves.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from cmjax.models import layers, resampling, smoothing
from cmjax.models.attention import Attention
from cmjax.models.ncsnpp_config import MOST_GROUPS, NCSNppConfig
from cmjax.models.resnet import ResnetBlock

EPSILON = 1e-6  # of every normalisation


class DownBlock(nnx.Module):
    """Residual blocks at one resolution, then a halving; pushes all its maps onto `skips`."""

    def __init__(self, config: NCSNppConfig, level: int, skips: list[int], rngs: nnx.Rngs):
        """Makes the block, and adds the channels of its maps to `skips`."""
        width = config.block_out_channels[level]
        self.resnets = nnx.List([])
        self.attentions = nnx.List([])
        for _ in range(config.layers_per_block):
            self.resnets.append(_resnet(config, skips[-1], width, rngs))
            skips.append(width)
            if config.has_attention(level):
                self.attentions.append(_attention(width, rngs))

        # In lists as in `UNet2D`.
        self.downsamplers = nnx.List([])
        self.pyramids = nnx.List([])
        if level < len(config.block_out_channels) - 1:
            halve = resampling.halve
            if config.smooth_resampling:
                halve = smoothing.halve_smoothly
            self.downsamplers.append(_resnet(config, width, width, rngs, halve))
            skips.append(width)

            # The input has its own channels at the highest resolution.
            above = config.in_channels
            if level > 0:
                above = config.block_out_channels[level - 1]
            if config.input_pyramid:
                self.pyramids.append(smoothing.SmoothDownsample(above, width, rngs=rngs))

    def __call__(
        self, pyramid: jax.Array, embedding: jax.Array, skips: list[jax.Array]
    ) -> jax.Array:
        """Takes the last map of `skips` on, and returns the halved input of the network.

        Args:
            pyramid: the input at this resolution, with the maps of resolutions above added.
            embedding: of the time, `[B, time_features]`.
            skips: maps so far.
        """
        for i, resnet in enumerate(self.resnets):
            h = resnet(skips[-1], embedding)
            skips.append(self.attentions[i](h) if self.attentions else h)
        for downsampler in self.downsamplers:
            h = downsampler(skips[-1], embedding)
            for halve in self.pyramids:
                h = layers.add_residual(halve(pyramid), h, rescale=True)
                pyramid = h
            skips.append(h)
        return pyramid


class MidBlock(nnx.Module):
    """A residual block, attention and another residual block, at the lowest resolution."""

    def __init__(self, config: NCSNppConfig, rngs: nnx.Rngs):
        """Makes the block."""
        width = config.block_out_channels[-1]
        self.resnets = nnx.List([_resnet(config, width, width, rngs) for _ in range(2)])
        self.attentions = nnx.List([_attention(width, rngs)])

    def __call__(self, h: jax.Array, embedding: jax.Array) -> jax.Array:
        """Maps `[B, H, W, C]` to the same shape."""
        first, second = self.resnets
        (attention,) = self.attentions
        h = attention(first(h, embedding))
        return second(h, embedding)


class UpBlock(nnx.Module):
    """Residual blocks that each pop a map from `skips`, attention to the last, a doubling."""

    def __init__(self, config: NCSNppConfig, level: int, skips: list[int], rngs: nnx.Rngs):
        """Makes the block, and takes the channels of its maps from `skips`."""
        widths = config.block_out_channels
        width = widths[level]

        # The first residual block takes what comes from the resolution below, or the middle.
        channels = widths[min(level + 1, len(widths) - 1)]
        self.resnets = nnx.List([])
        for _ in range(config.layers_per_block + 1):
            self.resnets.append(_resnet(config, channels + skips.pop(), width, rngs))
            channels = width
        self.attentions = nnx.List([])
        if config.has_attention(level):
            self.attentions.append(_attention(width, rngs))
        self.upsamplers = nnx.List([])
        if level > 0:
            double = resampling.double
            if config.smooth_resampling:
                double = smoothing.double_smoothly
            self.upsamplers.append(_resnet(config, width, width, rngs, double))

    def __call__(
        self, h: jax.Array, embedding: jax.Array, skips: list[jax.Array]
    ) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, 2H, 2W, C']`, or to `[B, H, W, C']` at the highest level."""
        for resnet in self.resnets:
            h = resnet(jnp.concatenate([h, skips.pop()], axis=-1), embedding)
        for attention in self.attentions:
            h = attention(h)
        for upsampler in self.upsamplers:
            h = upsampler(h, embedding)
        return h


def group_norm(channels: int, rngs: nnx.Rngs) -> layers.GroupNorm:
    """Returns a normalisation in groups of 4 channels, or in 32 groups if there would be more."""
    return layers.GroupNorm(channels, _groups(channels), EPSILON, rngs=rngs)


def _groups(channels):
    return min(channels // 4, MOST_GROUPS)


def _resnet(config, channels_in, channels_out, rngs, resample=None):
    """Returns a residual block; one that resamples has a convolution on its shortcut."""
    return ResnetBlock(
        channels_in,
        channels_out,
        config.time_features,
        (_groups(channels_in), _groups(channels_out)),
        EPSILON,
        resample=resample,
        project=resample is not None,
        rescale=True,
        rngs=rngs,
    )


def _attention(channels, rngs):
    """Returns attention with a single head."""
    groups = _groups(channels)
    return Attention(
        channels, channels, groups=groups, epsilon=EPSILON, rescale=True, rngs=rngs
    )

"""The blocks of `UNet2D`: residual blocks and attention at one resolution."""

import jax
import jax.numpy as jnp
from flax import nnx

from cmjax.models import resampling
from cmjax.models.attention import Attention
from cmjax.models.resnet import ResnetBlock
from cmjax.models.unet_config import DOWN_BLOCKS, UP_BLOCKS, UNet2DConfig


class DownBlock(nnx.Module):
    """Residual blocks at one resolution, then a halving; pushes all its maps onto `skips`."""

    def __init__(
        self,
        config: UNet2DConfig,
        kind: str,
        channels_in: int,
        channels: int,
        halve: bool,
        *,
        rngs: nnx.Rngs,
    ):
        """Makes the block.

        Args:
            config: of the network.
            kind: the block's name in diffusers, which says whether it has attention.
            channels_in: channels of the map it gets.
            channels: channels of the maps it returns.
            halve: whether a halving follows.
            rngs: of the parameters.
        """
        has_attention, own_type = DOWN_BLOCKS[kind]

        # The first residual block changes the number of channels.
        inputs = [channels_in] + [channels] * (config.layers_per_block - 1)
        self.resnets = nnx.List([_resnet(config, c, channels, rngs) for c in inputs])
        num_attentions = len(inputs) if has_attention else 0
        self.attentions = nnx.List(
            [
                _attention(config, channels, config.norm_num_groups, rngs)
                for _ in range(num_attentions)
            ]
        )

        # A residual block that also halves, or a strided convolution; in a list as in diffusers.
        self.downsamplers = nnx.List([])
        if halve and (own_type or config.downsample_type) == "resnet":
            self.downsamplers.append(
                _resnet(config, channels, channels, rngs, resample=resampling.halve)
            )
        elif halve:
            self.downsamplers.append(resampling.Downsample(channels, rngs=rngs))

    def __call__(
        self, h: jax.Array, embedding: jax.Array, skips: list[jax.Array]
    ) -> jax.Array:
        """Maps `[B, H, W, channels_in]` to `[B, H/2, W/2, channels]`, or `[B, H, W, channels]`.

        Args:
            h: the map.
            embedding: of time and class, `[B, time_features]`.
            skips: the maps so far, to which those made here are added.
        """
        # With attention, a map is pushed after it.
        for i, resnet in enumerate(self.resnets):
            h = resnet(h, embedding)
            if self.attentions:
                h = self.attentions[i](h)
            skips.append(h)
        for downsampler in self.downsamplers:
            h = downsampler(h, embedding)
            skips.append(h)
        return h


class MidBlock(nnx.Module):
    """A residual block, attention and another residual block, at the lowest resolution."""

    def __init__(self, config: UNet2DConfig, channels: int, *, rngs: nnx.Rngs):
        """Makes the block."""
        self.resnets = nnx.List(
            [_resnet(config, channels, channels, rngs) for _ in range(2)]
        )
        self.attentions = nnx.List(
            [_attention(config, channels, config.mid_attention_groups, rngs)]
        )

    def __call__(self, h: jax.Array, embedding: jax.Array) -> jax.Array:
        """Maps `[B, H, W, C]` to the same shape."""
        first, second = self.resnets
        (attention,) = self.attentions
        h = attention(first(h, embedding))
        return second(h, embedding)


class UpBlock(nnx.Module):
    """Residual blocks that each pop a map from `skips`, then a doubling."""

    def __init__(
        self,
        config: UNet2DConfig,
        kind: str,
        channels_in: int,
        skip_channels: list[int],
        channels: int,
        double: bool,
        *,
        rngs: nnx.Rngs,
    ):
        """Makes the block.

        Args:
            config: of the network.
            kind: the block's name in diffusers, which says whether it has attention.
            channels_in: channels of the map it gets.
            skip_channels: channels of the maps it takes from `skips`.
            channels: channels of the map it returns.
            double: whether a doubling follows.
            rngs: of the parameters.
        """
        has_attention, own_type = UP_BLOCKS[kind]

        # Each takes the channels of the one before and those of a map of the way down.
        inputs = [channels_in] + [channels] * (len(skip_channels) - 1)
        self.resnets = nnx.List(
            [
                _resnet(config, c + s, channels, rngs)
                for c, s in zip(inputs, skip_channels, strict=True)
            ]
        )
        num_attentions = len(inputs) if has_attention else 0
        self.attentions = nnx.List(
            [
                _attention(config, channels, config.norm_num_groups, rngs)
                for _ in range(num_attentions)
            ]
        )

        # A residual block that also doubles, or a repetition and a convolution.
        self.upsamplers = nnx.List([])
        if double and (own_type or config.upsample_type) == "resnet":
            self.upsamplers.append(
                _resnet(config, channels, channels, rngs, resample=resampling.double)
            )
        elif double:
            self.upsamplers.append(resampling.Upsample(channels, rngs=rngs))

    def __call__(
        self, h: jax.Array, embedding: jax.Array, skips: list[jax.Array]
    ) -> jax.Array:
        """Maps `[B, H, W, channels_in]` to `[B, 2H, 2W, channels]`, or `[B, H, W, channels]`.

        Args:
            h: the map.
            embedding: of time and class, `[B, time_features]`.
            skips: the maps of the way down, the last of which are taken from it.
        """
        # The maps have the same resolution here; their channels are put behind those of h.
        for i, resnet in enumerate(self.resnets):
            h = resnet(jnp.concatenate([h, skips.pop()], axis=-1), embedding)
            if self.attentions:
                h = self.attentions[i](h)
        for upsampler in self.upsamplers:
            h = upsampler(h, embedding)
        return h


def _resnet(config, channels_in, channels_out, rngs, *, resample=None):
    """Returns a residual block with the options of the config."""
    return ResnetBlock(
        channels_in,
        channels_out,
        config.time_features,
        config.norm_num_groups,
        config.norm_eps,
        scale_shift=config.resnet_time_scale_shift == "scale_shift",
        resample=resample,
        rngs=rngs,
    )


def _attention(config, channels, groups, rngs):
    """Returns an attention layer with the options of the config."""
    # None is a single head.
    head_dim = config.attention_head_dim or channels
    return Attention(channels, head_dim, groups=groups, epsilon=config.norm_eps, rngs=rngs)

"""The blocks of `AutoencoderKL`: residual blocks and attention at one resolution."""

import jax
from flax import nnx

from cmjax.models import layers
from cmjax.models.attention import Attention
from cmjax.models.autoencoder_kl_config import AutoencoderKLConfig

NORM_EPS = 1e-6  # of every normalisation; diffusers has no option for it


class Block(nnx.Module):
    """Residual blocks at one resolution, then a halving or a doubling."""

    def __init__(
        self,
        config: AutoencoderKLConfig,
        channels_in: int,
        channels: int,
        *,
        num_layers: int,
        attention: bool,
        rngs: nnx.Rngs,
    ):
        """Makes the block without any resampling, which the encoder or decoder adds.

        Args:
            config: of the network.
            channels_in: channels of the maps it gets.
            channels: channels of the maps it returns.
            num_layers: number of residual blocks.
            attention: whether attention follows each of them.
            rngs: of the parameters.
        """
        # The first residual block changes the number of channels.
        inputs = [channels_in] + [channels] * (num_layers - 1)
        self.resnets = nnx.List([_Resnet(config, c, channels, rngs=rngs) for c in inputs])
        self.attentions = nnx.List(
            [_attention(config, channels, rngs) for _ in inputs if attention]
        )
        self.downsamplers = nnx.List([])
        self.upsamplers = nnx.List([])

    def __call__(self, h: jax.Array) -> jax.Array:
        """Maps `[B, H, W, channels_in]` to `[B, H', W', channels]`."""
        for i, resnet in enumerate(self.resnets):
            h = resnet(h)
            if self.attentions:
                h = self.attentions[i](h)
        for resample in [*self.downsamplers, *self.upsamplers]:
            h = resample(h)
        return h


class _Resnet(nnx.Module):
    """Two normalised convolutions and a residual, which take no time."""

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


class MidBlock(nnx.Module):
    """A residual block, attention and another residual block, at the lowest resolution."""

    def __init__(self, config: AutoencoderKLConfig, *, rngs: nnx.Rngs):
        """Makes the block, with the attention only if the config says so."""
        channels = config.block_out_channels[-1]
        self.resnets = nnx.List(
            [_Resnet(config, channels, channels, rngs=rngs) for _ in range(2)]
        )
        self.attentions = nnx.List([])
        if config.mid_block_add_attention:
            self.attentions.append(_attention(config, channels, rngs))

    def __call__(self, h: jax.Array) -> jax.Array:
        """Maps `[B, H, W, C]` to the same shape."""
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

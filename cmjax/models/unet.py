"""The convolutional UNet of the released consistency models, in Flax NNX, channels-last.

Modules are named as in diffusers' `UNet2DModel`, so that tensors find their place by name.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from cmjax.models import layers
from cmjax.models.unet_config import DOWN_BLOCKS, UP_BLOCKS, UNet2DConfig


class UNet2D(nnx.Module):
    """A UNet `(x, t, class_labels) -> model_output`.

    It takes images `[B, H, W, C]` and times f32[B]. The last convolution starts at zero, so that an
    untrained model is the skip connection alone.
    """

    def __init__(self, config: UNet2DConfig, *, rngs: nnx.Rngs):
        """Makes the network with float32 parameters drawn from `rngs`."""
        self.config = config
        widths = config.block_out_channels
        folded = config.patch_size**2
        self.conv_in = layers.conv(folded * config.in_channels, widths[0], rngs=rngs)
        self.time_embedding = layers.TimestepEmbedding(widths[0], config.time_features, rngs=rngs)
        classes = config.num_class_embeds
        self.class_embedding = (
            None if classes is None else nnx.Embed(classes, config.time_features, rngs=rngs)
        )

        # Channels of what the way down leaves for the way up.
        skips = [widths[0]]
        self.down_blocks = nnx.List([])
        for i, kind in enumerate(config.down_block_types):
            last = i == len(widths) - 1
            self.down_blocks.append(
                _DownBlock(config, kind, skips[-1], widths[i], not last, rngs=rngs)
            )
            skips += [widths[i]] * (config.layers_per_block + (not last))
        self.mid_block = _MidBlock(config, widths[-1], rngs=rngs)

        # The way up takes them, the last one first.
        channels = widths[-1]
        self.up_blocks = nnx.List([])
        for i, kind in enumerate(config.up_block_types):
            width = widths[::-1][i]
            taken = [skips.pop() for _ in range(config.layers_per_block + 1)]
            last = i == len(widths) - 1
            self.up_blocks.append(
                _UpBlock(config, kind, channels, taken, width, not last, rngs=rngs)
            )
            channels = width
        self.conv_norm_out = layers.GroupNorm(
            widths[0], config.norm_num_groups, config.norm_eps, rngs=rngs
        )
        self.conv_out = layers.conv(
            widths[0], folded * config.out_channels, kernel_init=nnx.initializers.zeros, rngs=rngs
        )

    def __call__(
        self, x: jax.Array, t: jax.Array, class_labels: jax.Array | None = None
    ) -> jax.Array:
        """Evaluates the network.

        Args:
            x: scaled samples `[B, H, W, in_channels]`; the network computes in their dtype.
            t: times, f32[B]; embedded in float32.
            class_labels: classes, i32[B], for a model that has them.

        Returns:
            The model output `[B, H, W, out_channels]`, in the dtype of `x`.

        Raises:
            ValueError: for images of another size, or labels missing or not wanted.
        """
        config = self.config
        layers.check_images(x, config.sample_size, config.in_channels)
        embedding = self._embed(t, class_labels).astype(x.dtype)
        if config.center_input_sample:
            x = 2 * x - 1
        h = self.conv_in(layers.space_to_depth(x, config.patch_size))
        skips = [h]
        for block in self.down_blocks:
            h = block(h, embedding, skips)
        h = self.mid_block(h, embedding)
        for block in self.up_blocks:
            h = block(h, embedding, skips)
        h = self.conv_out(jax.nn.silu(self.conv_norm_out(h)))
        return layers.depth_to_space(h, config.patch_size)

    def _embed(self, t, class_labels):
        config = self.config
        features = layers.sinusoidal_embedding(
            t * config.time_scale,
            config.block_out_channels[0],
            flip_sin_to_cos=config.flip_sin_to_cos,
            freq_shift=config.freq_shift,
        )
        return layers.add_class_embedding(
            self.time_embedding(features), self.class_embedding, class_labels
        )


class _DownBlock(nnx.Module):
    """Residual blocks at one resolution, then a halving; appends its outputs to `skips`."""

    def __init__(self, config, kind, channels_in, channels, halve, *, rngs):
        attention, resampling = DOWN_BLOCKS[kind]
        inputs = [channels_in] + [channels] * (config.layers_per_block - 1)
        self.resnets = nnx.List([_resnet(config, c, channels, rngs) for c in inputs])
        self.attentions = nnx.List(
            [
                _attention(config, channels, config.norm_num_groups, rngs)
                for _ in inputs
                if attention
            ]
        )
        self.downsamplers = nnx.List([])
        if halve and (resampling or config.downsample_type) == "resnet":
            self.downsamplers.append(
                _resnet(config, channels, channels, rngs, resample=layers.halve)
            )
        elif halve:
            self.downsamplers.append(layers.Downsample(channels, rngs=rngs))

    def __call__(self, h, embedding, skips):
        for i, resnet in enumerate(self.resnets):
            h = resnet(h, embedding)
            if self.attentions:
                h = self.attentions[i](h)
            skips.append(h)
        for downsampler in self.downsamplers:
            h = downsampler(h, embedding)
            skips.append(h)
        return h


class _MidBlock(nnx.Module):
    """Residual block, attention, residual block at the lowest resolution."""

    def __init__(self, config, channels, *, rngs):
        self.resnets = nnx.List([_resnet(config, channels, channels, rngs) for _ in range(2)])
        self.attentions = nnx.List(
            [_attention(config, channels, config.mid_attention_groups, rngs)]
        )

    def __call__(self, h, embedding):
        first, second = self.resnets
        return second(self.attentions[0](first(h, embedding)), embedding)


class _UpBlock(nnx.Module):
    """Residual blocks that each take one of `skips`, then a doubling."""

    def __init__(self, config, kind, channels_in, skip_channels, channels, double, *, rngs):
        attention, resampling = UP_BLOCKS[kind]
        inputs = [channels_in] + [channels] * (len(skip_channels) - 1)
        self.resnets = nnx.List(
            [
                _resnet(config, c + s, channels, rngs)
                for c, s in zip(inputs, skip_channels, strict=True)
            ]
        )
        self.attentions = nnx.List(
            [
                _attention(config, channels, config.norm_num_groups, rngs)
                for _ in inputs
                if attention
            ]
        )
        self.upsamplers = nnx.List([])
        if double and (resampling or config.upsample_type) == "resnet":
            self.upsamplers.append(
                _resnet(config, channels, channels, rngs, resample=layers.double)
            )
        elif double:
            self.upsamplers.append(layers.Upsample(channels, rngs=rngs))

    def __call__(self, h, embedding, skips):
        for i, resnet in enumerate(self.resnets):
            h = resnet(jnp.concatenate([h, skips.pop()], axis=-1), embedding)
            if self.attentions:
                h = self.attentions[i](h)
        for upsampler in self.upsamplers:
            h = upsampler(h, embedding)
        return h


def _resnet(config, channels_in, channels_out, rngs, *, resample=None):
    return layers.ResnetBlock(
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
    head_dim = config.attention_head_dim or channels
    return layers.Attention(channels, head_dim, groups=groups, epsilon=config.norm_eps, rngs=rngs)

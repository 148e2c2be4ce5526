"""The convolutional UNet of the released consistency models, in Flax NNX, channels-last."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from cmjax.configs import is_finite, is_int
from cmjax.models import layers


@dataclasses.dataclass(frozen=True)
class UNet2DConfig:
    """What a `UNet2D` is made of; fields are named as in diffusers' `UNet2DModel`.

    Attributes:
        sample_size: height and width of the images.
        in_channels: channels of the input.
        out_channels: channels of the output.
        down_block_types: "DownBlock2D" or "AttnDownBlock2D" (with attention), one per resolution.
        up_block_types: "UpBlock2D" or "AttnUpBlock2D", one per resolution from the lowest.
        block_out_channels: channels per resolution.
        layers_per_block: residual blocks per resolution on the way down; one more on the way up.
        attention_head_dim: channels per attention head.
        norm_num_groups: groups of every normalisation.
        norm_eps: epsilon of every normalisation.
        num_class_embeds: number of classes; None for an unconditional model.
        flip_sin_to_cos: cosines before sines in the time embedding.
        freq_shift: of the time embedding's frequencies.
        time_scale: factor on the time before its embedding. cmjax's own: 1 is diffusers; 0.01 makes the
            embedding smooth in log sigma, which learns faster and suits forward-mode training.
        patch_size: the network works on patch_size x patch_size patches folded into channels. cmjax's own.
    """

    sample_size: int
    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[str, ...] = ("DownBlock2D", "AttnDownBlock2D")
    up_block_types: tuple[str, ...] = ("AttnUpBlock2D", "UpBlock2D")
    block_out_channels: tuple[int, ...] = (64, 128)
    layers_per_block: int = 2
    attention_head_dim: int = 32
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    num_class_embeds: int | None = None
    flip_sin_to_cos: bool = True
    freq_shift: float = 0.0
    time_scale: float = 1.0
    patch_size: int = 1

    def __post_init__(self):
        self._check_types()
        for name, allowed in (("down_block_types", DOWN_BLOCKS), ("up_block_types", UP_BLOCKS)):
            value = getattr(self, name)
            if len(value) != len(self.block_out_channels) or not set(value) <= set(allowed):
                raise ValueError(
                    f"{name} must name one of {tuple(allowed)} per entry of block_out_channels "
                    f"{self.block_out_channels}, got {value}"
                )
        for channels in self.block_out_channels:
            if channels % self.norm_num_groups:
                raise ValueError(f"norm_num_groups {self.norm_num_groups} does not divide {channels} channels")
        stride = self.patch_size * 2 ** (len(self.block_out_channels) - 1)
        if self.sample_size % stride:
            raise ValueError(
                f"sample_size {self.sample_size} is not a multiple of {stride}, the network's total stride"
            )

    def _check_types(self):
        positive = ("sample_size", "in_channels", "out_channels", "layers_per_block")
        for name in (*positive, "attention_head_dim", "norm_num_groups", "patch_size"):
            if not is_int(getattr(self, name), 1):
                raise ValueError(f"{name} must be a positive integer, got {getattr(self, name)!r}")
        for name in ("norm_eps", "freq_shift", "time_scale"):
            if not is_finite(getattr(self, name)):
                raise ValueError(f"{name} must be a finite number, got {getattr(self, name)!r}")
        if self.num_class_embeds is not None and not is_int(self.num_class_embeds, 1):
            raise ValueError(f"num_class_embeds must be a positive integer or null, got {self.num_class_embeds!r}")
        if not isinstance(self.flip_sin_to_cos, bool):
            raise ValueError(f"flip_sin_to_cos must be true or false, got {self.flip_sin_to_cos!r}")
        for name in ("block_out_channels", "down_block_types", "up_block_types"):
            value, item = getattr(self, name), int if name == "block_out_channels" else str
            if not isinstance(value, tuple) or not value or not all(type(v) is item for v in value):
                raise ValueError(f"{name} must be a list of {item.__name__}, got {value!r}")
        if min(self.block_out_channels) < 1:
            raise ValueError(f"block_out_channels must be positive, got {self.block_out_channels}")


DOWN_BLOCKS = {"DownBlock2D": False, "AttnDownBlock2D": True}  # name -> has attention
UP_BLOCKS = {"UpBlock2D": False, "AttnUpBlock2D": True}


class UNet2D(nnx.Module):
    """A UNet `(x, t, class_labels) -> model_output` for images `[B, H, W, C]` and times f32[B].

    The last convolution starts at zero, so that an untrained model is the skip connection alone.
    """

    def __init__(self, config: UNet2DConfig, *, rngs: nnx.Rngs):
        """Makes the network with float32 parameters drawn from `rngs`."""
        self.config = config
        widths = config.block_out_channels
        folded = config.patch_size**2
        time_features = 4 * widths[0]
        self.conv_in = layers.conv(folded * config.in_channels, widths[0], rngs=rngs)
        self.time_embedding = layers.TimestepEmbedding(widths[0], time_features, rngs=rngs)
        classes = config.num_class_embeds
        self.class_embedding = None if classes is None else nnx.Embed(classes, time_features, rngs=rngs)

        skips = [widths[0]]
        self.down_blocks = nnx.List([])
        for i, kind in enumerate(config.down_block_types):
            last = i == len(widths) - 1
            self.down_blocks.append(_DownBlock(config, skips[-1], widths[i], DOWN_BLOCKS[kind], not last, rngs=rngs))
            skips += [widths[i]] * (config.layers_per_block + (not last))
        self.mid_block = _MidBlock(config, widths[-1], rngs=rngs)
        channels = widths[-1]
        self.up_blocks = nnx.List([])
        for i, kind in enumerate(config.up_block_types):
            width = widths[::-1][i]
            taken = [skips.pop() for _ in range(config.layers_per_block + 1)]
            last = i == len(widths) - 1
            self.up_blocks.append(_UpBlock(config, channels, taken, width, UP_BLOCKS[kind], not last, rngs=rngs))
            channels = width
        self.conv_norm_out = layers.GroupNorm(widths[0], config.norm_num_groups, config.norm_eps, rngs=rngs)
        self.conv_out = layers.conv(
            widths[0], folded * config.out_channels, kernel_init=nnx.initializers.zeros, rngs=rngs
        )

    def __call__(self, x: jax.Array, t: jax.Array, class_labels: jax.Array | None = None) -> jax.Array:
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
        if x.ndim != 4 or x.shape[1:] != (config.sample_size, config.sample_size, config.in_channels):
            raise ValueError(
                f"x must be [B, {config.sample_size}, {config.sample_size}, {config.in_channels}], got {x.shape}"
            )
        embedding = self._embed(t, class_labels).astype(x.dtype)
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
        embedding = self.time_embedding(features)
        if self.class_embedding is None:
            if class_labels is not None:
                raise ValueError("class_labels given to an unconditional model; leave them out")
            return embedding
        if class_labels is None:
            raise ValueError(
                f"the model has {config.num_class_embeds} classes: pass cond={{'class_labels': i32[B]}} to say which"
            )
        return embedding + self.class_embedding(class_labels).astype(jnp.float32)


class _DownBlock(nnx.Module):
    """Residual blocks at one resolution, then a halving; appends what the way up needs to `skips`."""

    def __init__(self, config, channels_in, channels, attention, halve, *, rngs):
        inputs = [channels_in] + [channels] * (config.layers_per_block - 1)
        self.resnets = nnx.List([_resnet(config, c, channels, rngs) for c in inputs])
        self.attentions = nnx.List([_attention(config, channels, rngs) for _ in inputs if attention])
        self.downsample = layers.conv(channels, channels, strides=2, rngs=rngs) if halve else None

    def __call__(self, h, embedding, skips):
        for i, resnet in enumerate(self.resnets):
            h = resnet(h, embedding)
            h = self.attentions[i](h) if self.attentions else h
            skips.append(h)
        if self.downsample is not None:
            h = self.downsample(h)
            skips.append(h)
        return h


class _MidBlock(nnx.Module):
    """Residual block, attention, residual block at the lowest resolution."""

    def __init__(self, config, channels, *, rngs):
        self.resnets = nnx.List([_resnet(config, channels, channels, rngs) for _ in range(2)])
        self.attention = _attention(config, channels, rngs)

    def __call__(self, h, embedding):
        first, second = self.resnets
        return second(self.attention(first(h, embedding)), embedding)


class _UpBlock(nnx.Module):
    """Residual blocks that each take one of `skips`, then a doubling."""

    def __init__(self, config, channels_in, skip_channels, channels, attention, double, *, rngs):
        inputs = [channels_in] + [channels] * (len(skip_channels) - 1)
        self.resnets = nnx.List(
            [_resnet(config, c + s, channels, rngs) for c, s in zip(inputs, skip_channels, strict=True)]
        )
        self.attentions = nnx.List([_attention(config, channels, rngs) for _ in inputs if attention])
        self.upsample = layers.conv(channels, channels, rngs=rngs) if double else None

    def __call__(self, h, embedding, skips):
        for i, resnet in enumerate(self.resnets):
            h = resnet(jnp.concatenate([h, skips.pop()], axis=-1), embedding)
            h = self.attentions[i](h) if self.attentions else h
        if self.upsample is not None:
            h = self.upsample(h.repeat(2, axis=1).repeat(2, axis=2))
        return h


def _resnet(config, channels_in, channels_out, rngs):
    time_features = 4 * config.block_out_channels[0]
    return layers.ResnetBlock(
        channels_in, channels_out, time_features, config.norm_num_groups, config.norm_eps, rngs=rngs
    )


def _attention(config, channels, rngs):
    return layers.Attention(channels, config.attention_head_dim, config.norm_num_groups, config.norm_eps, rngs=rngs)

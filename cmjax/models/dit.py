"""The diffusion transformer (Peebles & Xie 2023, arXiv 2212.09748), in Flax NNX, channels-last."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cmjax.configs import LARGEST, check_options
from cmjax.labels import check_null_class
from cmjax.models import layers, resampling
from cmjax.models.attention import attend
from cmjax.models.embeddings import (
    TimestepEmbedding,
    add_class_embedding,
    class_table,
    sinusoidal_embedding,
)
from cmjax.models.further_conditions import SECOND_TIMES, FurtherConditions
from cmjax.models.on_meshes import on_any_mesh

TIME_FEATURES = 256  # sines and cosines of the time, as in the authors' code


@dataclasses.dataclass(frozen=True)
class DiTConfig:
    """The configuration of a `DiT`; the defaults are DiT-S/2.

    Fields are named as in diffusers' `DiTTransformer2DModel`.

    Attributes:
        sample_size: height and width of the images.
        in_channels: channels of the input.
        out_channels: channels of the output.
        patch_size: height and width of the patches that are the tokens.
        num_layers: number of transformer blocks.
        num_attention_heads: attention heads of each block.
        attention_head_dim: channels per head; tokens have `num_attention_heads` times as many.
        mlp_ratio: width of the perceptrons' hidden layer, divided by that of the tokens.
        long_skips: whether every block of the second half also takes the output of its counterpart
            in the first half (Bao et al. 2023, U-ViT).
        num_class_embeds: number of classes; None for an unconditional model.
        null_class: whether there is one more class, the last, which stands for none of them, as
            classifier-free guidance needs it.
        time_scale: factor on the time before its embedding; with 0.01 the embedding is smooth in
            log sigma, as for `UNet2D`.
        second_time: what a flow map embeds of its second time r: "end" is r itself, "span" the
            length t - r, and "log_steps", of shortcut models, the whole part of log2(1 / (t - r)),
            0 to 7, of times up to 1; null for a network that is told one time. Both times are
            scaled by `time_scale`.
        guidance_embeds: whether the network is told a guidance scale as well.
    """

    sample_size: int = 32
    in_channels: int = 3
    out_channels: int = 3
    patch_size: int = 2
    num_layers: int = 12
    num_attention_heads: int = 6
    attention_head_dim: int = 64
    mlp_ratio: float = 4.0
    long_skips: bool = False
    num_class_embeds: int | None = None
    null_class: bool = False
    time_scale: float = 0.01
    second_time: str | None = None
    guidance_embeds: bool = False

    _domains = {
        "sample_size": (1, 65536),
        "in_channels": (1, 65536),
        "out_channels": (1, 65536),
        "patch_size": (1, 65536),
        "num_layers": (1, 512),
        "num_attention_heads": (1, 1024),
        "attention_head_dim": (1, 65536),
        "mlp_ratio": (0.01, 1000.0),
        "num_class_embeds": (1, LARGEST),
        "time_scale": (0.0, 1e6),
        "second_time": SECOND_TIMES,
    }

    def __post_init__(self):
        check_options(self)
        check_null_class(self.null_class, self.num_class_embeds)

        # The image is cut into whole patches.
        if self.sample_size % self.patch_size:
            raise ValueError(
                f"patch_size {self.patch_size} does not divide sample_size {self.sample_size}"
            )

        # A quarter of the channels each for sines and cosines of columns and of rows.
        if self.width % 4:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} x attention_head_dim "
                f"{self.attention_head_dim} must be a multiple of 4, for the embedding of positions"
            )

    @property
    def width(self) -> int:
        """Number of channels of a token."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def num_blocks(self) -> int:
        """Number of transformer blocks."""
        return self.num_layers


# Peebles & Xie 2023, table 1; patch_size and sample_size are yours to choose.
DIT_SIZES = {
    "S": {"num_layers": 12, "num_attention_heads": 6, "attention_head_dim": 64},
    "B": {"num_layers": 12, "num_attention_heads": 12, "attention_head_dim": 64},
    "L": {"num_layers": 24, "num_attention_heads": 16, "attention_head_dim": 64},
    "XL": {"num_layers": 28, "num_attention_heads": 16, "attention_head_dim": 72},
}


class DiT(nnx.Module):
    """A transformer `(x, t, r, class_labels, guidance_scale) -> model_output`.

    It takes images `[B, H, W, C]` and times f32[B]; what follows t only if its config says so. The
    gates of every block and the last layer start at zero: the output of an untrained network is
    zero, which leaves the skip connection of the model, c_skip * x.
    """

    def __init__(self, config: DiTConfig, *, rngs: nnx.Rngs):
        """Makes the network with float32 parameters drawn from `rngs`."""
        self.config = config
        width = config.width
        folded = config.patch_size**2

        # Tokens, and what all blocks are conditioned on: the time and the class.
        self.patch_embed = layers.linear(folded * config.in_channels, width, rngs=rngs)
        self.time_embedding = TimestepEmbedding(TIME_FEATURES, width, rngs=rngs)
        self.class_embedding = class_table(config, width, rngs=rngs)
        self.further = FurtherConditions(config, TIME_FEATURES, width, rngs=rngs)

        # The blocks, and a layer per long skip, from twice the channels back to the width.
        self.blocks = nnx.List(
            [_Block(config, rngs=rngs) for _ in range(config.num_layers)]
        )
        joined = config.num_layers // 2 if config.long_skips else 0
        self.skips = nnx.List(
            [layers.linear(2 * width, width, rngs=rngs) for _ in range(joined)]
        )

        # From tokens to patches, scaled and shifted as in the blocks.
        self.modulation = _zero_linear(width, 2 * width, rngs)
        self.proj_out = _zero_linear(width, folded * config.out_channels, rngs)

    @on_any_mesh
    def __call__(
        self,
        x: jax.Array,
        t: jax.Array,
        r: jax.Array | None = None,
        class_labels: jax.Array | None = None,
        guidance_scale: jax.Array | None = None,
    ) -> jax.Array:
        """Evaluates the network.

        Args:
            x: scaled samples `[B, H, W, in_channels]`; the network computes in their dtype.
            t: times, f32[B]; embedded in float32.
            r: second times, f32[B], for a network with `second_time`.
            class_labels: classes, i32[B], for a model that has them.
            guidance_scale: f32[B], for a network with `guidance_embeds`.

        Returns:
            The model output `[B, H, W, out_channels]`, in the dtype of `x`.

        Raises:
            ValueError: if the images have another size, or labels, a second time or a scale are
                missing, or given to a model without them.
        """
        config = self.config
        layers.check_images(x, config.sample_size, config.in_channels)

        # The embedding is computed in float32, and cast at the end: [B, width].
        embedding = self._embed(t, r, class_labels, guidance_scale)
        condition = jax.nn.silu(embedding).astype(x.dtype)

        # Patches are the tokens: h is [B, side * side, width].
        side = config.sample_size // config.patch_size
        h = self.patch_embed(resampling.space_to_depth(x, config.patch_size)).reshape(
            len(x), side * side, config.width
        )
        h = h + jnp.asarray(position_embedding(side, config.width), x.dtype)[None]

        # With long skips, the last block takes what the first returned, the last but one what the
        # second returned, and so on: `kept` is a stack. With an odd number the middle has none.
        joined = len(self.skips)
        kept: list[jax.Array] = []
        for i, block in enumerate(self.blocks):
            if i >= config.num_layers - joined:
                h = self.skips[i - config.num_layers + joined](
                    jnp.concatenate([h, kept.pop()], axis=-1)
                )
            h = block(h, condition)
            if i < joined:
                kept.append(h)

        # Back from tokens to patches, and from patches to pixels.
        shift, scale = jnp.split(self.modulation(condition)[:, None], 2, axis=-1)
        h = self.proj_out(modulated(h, shift, scale)).reshape(len(x), side, side, -1)
        return resampling.depth_to_space(h, config.patch_size)

    def _embed(self, t, r, class_labels, guidance_scale):
        """Returns the embedding of times, class and scale, f32[B, width]."""
        embedding = self.time_embedding(
            sinusoidal_embedding(t * self.config.time_scale, TIME_FEATURES)
        )
        embedding = self.further(embedding, t, r, guidance_scale)
        return add_class_embedding(embedding, self.class_embedding, class_labels)


class _Block(nnx.Module):
    """Attention and a perceptron, both shifted, scaled and gated by the condition (adaLN-Zero)."""

    def __init__(self, config, *, rngs):
        width = config.width
        hidden = int(config.mlp_ratio * width)
        self.heads = config.num_attention_heads

        # Shift, scale and gate of both parts. Zero gates make an untrained block the identity.
        self.modulation = _zero_linear(width, 6 * width, rngs)
        self.to_qkv = layers.linear(width, 3 * width, rngs=rngs)
        self.to_out = layers.linear(width, width, rngs=rngs)
        self.linear_1 = layers.linear(width, hidden, rngs=rngs)
        self.linear_2 = layers.linear(hidden, width, rngs=rngs)

    def __call__(self, h, condition):
        # h: [B, T, width]; each of the six: [B, 1, width], the same for all tokens of a sample.
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = jnp.split(
            self.modulation(condition)[:, None], 6, axis=-1
        )
        h = h + gate_a * self._attend(modulated(h, shift_a, scale_a))
        hidden = jax.nn.gelu(
            self.linear_1(modulated(h, shift_m, scale_m)), approximate=True
        )
        return h + gate_m * self.linear_2(hidden)

    def _attend(self, h):
        # One product makes queries, keys and values: [B, T, 3 * width] to three [B, T, heads, C].
        batch, tokens, width = h.shape
        q, k, v = jnp.moveaxis(
            self.to_qkv(h).reshape(batch, tokens, 3, self.heads, -1), 2, 0
        )
        return self.to_out(attend(q, k, v).reshape(batch, tokens, width))


def position_embedding(side: int, width: int) -> np.ndarray:
    """Returns the embedding of the tokens' positions, f32[side * side, width] (section 3.2).

    It has sines and cosines of each token's column, then of its row.
    """
    # Angles of one coordinate, [side, width / 4]: position times frequency.
    frequencies = 10000.0 ** -(np.arange(width // 4) / (width // 4))
    angles = np.arange(side)[:, None] * frequencies[None]
    one = np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)

    # Tokens are numbered row by row, so that the column changes fastest.
    column = np.tile(one, (side, 1))
    row = np.repeat(one, side, axis=0)
    return np.concatenate([column, row], axis=-1).astype(np.float32)


def modulated(
    h: jax.Array, shift: jax.Array, scale: jax.Array, epsilon: float = 1e-6
) -> jax.Array:
    """Returns h normalised over channels, in float32, then scaled and shifted by the condition.

    It is a layer norm without parameters of its own: the condition gives scale and shift.

    Args:
        h: tokens, `[B, T, C]`.
        shift: added to each channel, `[B, 1, C]`.
        scale: what each channel is multiplied by, less 1, `[B, 1, C]`.
        epsilon: added to the variance.
    """
    # bfloat16 would lose digits in the mean and the variance, so both are float32.
    wide = h.astype(jnp.float32)
    centred = wide - wide.mean(-1, keepdims=True)
    normal = centred / jnp.sqrt(jnp.square(centred).mean(-1, keepdims=True) + epsilon)
    return normal.astype(h.dtype) * (1 + scale) + shift


def _zero_linear(features_in, features_out, rngs):
    """Returns a dense layer whose output is zero until it is trained."""
    return layers.linear(
        features_in, features_out, kernel_init=nnx.initializers.zeros, rngs=rngs
    )

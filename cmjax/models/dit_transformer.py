"""diffusers' class-conditional transformer, `DiTTransformer2DModel`, in Flax NNX, channels-last."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from cmjax.configs import LARGEST, check_options
from cmjax.models import layers, resampling
from cmjax.models.attention import attend
from cmjax.models.dit import TIME_FEATURES, modulated, position_embedding
from cmjax.models.embeddings import (
    TimestepEmbedding,
    add_class_embedding,
    class_table,
    sinusoidal_embedding,
)
from cmjax.models.on_meshes import on_any_mesh

EPSILON = 1e-6  # of the normalisations that diffusers gives no option for


@dataclasses.dataclass(frozen=True)
class DiTTransformer2DConfig:
    """The configuration of a `DiTTransformer2D`; the defaults are DiT-XL/2 on latents of 32x32.

    Fields are named as in diffusers.

    Attributes:
        sample_size: height and width of the samples, which are latents in the released models.
        in_channels: channels of the samples.
        out_channels: channels of the last layer: those of the samples, or twice as many for a
            network that also predicts a variance.
        keep_variance: whether the predicted variance is returned too, as `variance_type` "learned"
            and "learned_range" want it; otherwise it is dropped, as in diffusers' pipeline.
        patch_size: height and width of the patches that are the tokens.
        num_layers: number of transformer blocks.
        num_attention_heads: attention heads of each block.
        attention_head_dim: channels per head; tokens have `num_attention_heads` times as many.
        num_embeds_ada_norm: number of classes. The class after the last, of that number, is the
            one for no class, which guidance needs.
        attention_bias: whether queries, keys and values have a bias.
        norm_eps: epsilon of the normalisations ahead of the perceptrons.
    """

    sample_size: int = 32
    in_channels: int = 4
    out_channels: int = 8
    keep_variance: bool = False
    patch_size: int = 2
    num_layers: int = 28
    num_attention_heads: int = 16
    attention_head_dim: int = 72
    num_embeds_ada_norm: int = 1000
    attention_bias: bool = True
    norm_eps: float = 1e-5

    _domains = {
        "sample_size": (1, 65536),
        "in_channels": (1, 65536),
        "out_channels": (1, 131072),
        "patch_size": (1, 65536),
        "num_layers": (1, 512),
        "num_attention_heads": (1, 1024),
        "attention_head_dim": (1, 65536),
        "num_embeds_ada_norm": (1, LARGEST - 1),
        "norm_eps": (0.0, 1.0),
    }

    def __post_init__(self):
        check_options(self)
        if self.sample_size % self.patch_size:
            raise ValueError(
                f"patch_size {self.patch_size} does not divide sample_size {self.sample_size}"
            )
        if self.width % 4:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} x attention_head_dim "
                f"{self.attention_head_dim} must be a multiple of 4, for the embedding of positions"
            )
        if self.out_channels not in (self.in_channels, 2 * self.in_channels):
            raise ValueError(
                f"out_channels {self.out_channels} must be in_channels {self.in_channels}, or "
                "twice that for a network that predicts a variance"
            )

    @property
    def width(self) -> int:
        """Number of channels of a token."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def num_blocks(self) -> int:
        """Number of transformer blocks."""
        return self.num_layers

    @property
    def num_class_embeds(self) -> int:
        """Number of classes."""
        return self.num_embeds_ada_norm

    @property
    def null_class(self) -> bool:
        """Whether the label after the last class stands for no class: it does."""
        return True

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """Shape of one sample, `(H, W, C)`."""
        return (self.sample_size, self.sample_size, self.in_channels)


class DiTTransformer2D(nnx.Module):
    """A transformer `(x, t, class_labels) -> model_output` with the parameters of diffusers'.

    Unlike in `DiT`, each block has its own embedding of the time and the class: diffusers made
    copies of the authors' one. The last layer is conditioned by that of the first block.
    """

    def __init__(self, config: DiTTransformer2DConfig, *, rngs: nnx.Rngs):
        """Makes the network with float32 parameters drawn from `rngs`."""
        self.config = config
        width = config.width
        folded = config.patch_size**2
        self.pos_embed = _PatchEmbedding(config, rngs=rngs)
        self.transformer_blocks = nnx.List(
            [_Block(config, rngs=rngs) for _ in range(config.num_layers)]
        )
        self.proj_out_1 = layers.linear(width, 2 * width, rngs=rngs)
        self.proj_out_2 = layers.linear(width, folded * config.out_channels, rngs=rngs)

    @on_any_mesh
    def __call__(self, x: jax.Array, t: jax.Array, class_labels: jax.Array) -> jax.Array:
        """Evaluates the network.

        Args:
            x: samples `[B, H, W, in_channels]`; the network computes in their dtype.
            t: training times 0..N-1, f32[B]; embedded in float32.
            class_labels: classes, i32[B]; `num_embeds_ada_norm` is no class.

        Returns:
            The prediction `[B, H, W, in_channels]`, in the dtype of `x`; with `keep_variance`
            `[B, H, W, out_channels]`.

        Raises:
            ValueError: if the samples have another size, or labels are missing or no classes.
        """
        config = self.config
        layers.check_images(x, config.sample_size, config.in_channels)

        # Patches are the tokens: [B, side * side, width].
        h = self.pos_embed(x)
        for block in self.transformer_blocks:
            h = block(h, t, class_labels)

        # From tokens to patches, scaled and shifted by the first block's embedding.
        first = self.transformer_blocks[0].norm1.embed(t, class_labels).astype(x.dtype)
        condition = self.proj_out_1(jax.nn.silu(first))[:, None]
        shift, scale = jnp.split(condition, 2, axis=-1)
        h = self.proj_out_2(modulated(h, shift, scale, EPSILON))

        # And from patches to pixels.
        side = config.sample_size // config.patch_size
        output = resampling.depth_to_space(
            h.reshape(len(x), side, side, -1), config.patch_size
        )
        if config.keep_variance:
            return output
        return output[..., : config.in_channels]


class _PatchEmbedding(nnx.Module):
    """A convolution from patches to tokens, and the embedding of their positions."""

    def __init__(self, config, *, rngs):
        patch = (config.patch_size, config.patch_size)
        self.side = config.sample_size // config.patch_size
        self.proj = nnx.Conv(
            config.in_channels,
            config.width,
            patch,
            strides=patch,
            padding="VALID",
            promote_dtype=layers.in_input_dtype,
            rngs=rngs,
        )

    def __call__(self, x):
        h = self.proj(x)
        h = h.reshape(len(x), self.side**2, -1)
        return h + jnp.asarray(position_embedding(self.side, h.shape[-1]), x.dtype)[None]


class _Block(nnx.Module):
    """Attention and a perceptron, both shifted, scaled and gated by the condition (adaLN-Zero)."""

    def __init__(self, config, *, rngs):
        self.norm_eps = config.norm_eps
        self.norm1 = _Condition(config, rngs=rngs)
        self.attn1 = _Attention(config, rngs=rngs)
        self.ff = _Perceptron(config.width, rngs=rngs)

    def __call__(self, h, t, class_labels):
        condition = self.norm1(t, class_labels, h.dtype)[:, None]
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = jnp.split(
            condition, 6, axis=-1
        )
        h = h + gate_a * self.attn1(modulated(h, shift_a, scale_a, EPSILON))
        return h + gate_m * self.ff(modulated(h, shift_m, scale_m, self.norm_eps))


class _Condition(nnx.Module):
    """The embedding of time and class of a block, and what it is modulated by."""

    def __init__(self, config, *, rngs):
        self.emb = _Embedding(config, rngs=rngs)
        self.linear = layers.linear(config.width, 6 * config.width, rngs=rngs)

    def embed(self, t, class_labels):
        """Returns the embedding, f32[B, width]."""
        # diffusers' sines and cosines: their exponents' denominator is one less than usual.
        features = sinusoidal_embedding(t, TIME_FEATURES, freq_shift=1)
        embedding = self.emb.timestep_embedder(features)
        table = self.emb.class_embedder.embedding_table
        return add_class_embedding(embedding, table, class_labels)

    def __call__(self, t, class_labels, dtype):
        return self.linear(jax.nn.silu(self.embed(t, class_labels)).astype(dtype))


class _Embedding(nnx.Module):
    """The embeddings of time and of class, under diffusers' names."""

    def __init__(self, config, *, rngs):
        self.timestep_embedder = TimestepEmbedding(TIME_FEATURES, config.width, rngs=rngs)
        self.class_embedder = _Table(config, rngs=rngs)


class _Table(nnx.Module):
    """A row per class, and one for no class."""

    def __init__(self, config, *, rngs):
        self.embedding_table = class_table(config, config.width, rngs=rngs)


class _Attention(nnx.Module):
    """Self-attention among the tokens."""

    def __init__(self, config, *, rngs):
        width = config.width
        bias = config.attention_bias
        self.heads = config.num_attention_heads
        self.to_q = layers.linear(width, width, use_bias=bias, rngs=rngs)
        self.to_k = layers.linear(width, width, use_bias=bias, rngs=rngs)
        self.to_v = layers.linear(width, width, use_bias=bias, rngs=rngs)
        self.to_out = nnx.List([layers.linear(width, width, rngs=rngs)])

    def __call__(self, h):
        # [B, T, width] to [B, T, heads, C] each.
        split = (*h.shape[:2], self.heads, -1)
        q = self.to_q(h).reshape(split)
        k = self.to_k(h).reshape(split)
        v = self.to_v(h).reshape(split)
        return self.to_out[0](attend(q, k, v).reshape(h.shape))


class _Perceptron(nnx.Module):
    """Two dense layers with a GELU between them."""

    def __init__(self, width, *, rngs):
        first = _GELU(width, rngs=rngs)
        last = layers.linear(4 * width, width, rngs=rngs)
        self.net = nnx.List([first, _NoDropout(), last])

    def __call__(self, h):
        for layer in self.net:
            h = layer(h)
        return h


class _GELU(nnx.Module):
    """A dense layer and the activation after it, by its approximation with tanh."""

    def __init__(self, width, *, rngs):
        self.proj = layers.linear(width, 4 * width, rngs=rngs)

    def __call__(self, h):
        return jax.nn.gelu(self.proj(h), approximate=True)


class _NoDropout(nnx.Module):
    """What diffusers has between the layers, for sampling: nothing."""

    def __call__(self, h):
        return h

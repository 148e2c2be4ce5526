"""The parts of `DiTTransformer2D`, under diffusers' names of their parameters."""

import jax
import jax.numpy as jnp
from flax import nnx

from cmjax.models import layers
from cmjax.models.attention import attend
from cmjax.models.dit import TIME_FEATURES
from cmjax.models.dit_blocks import modulated, position_embedding
from cmjax.models.dit_transformer_config import DiTTransformer2DConfig
from cmjax.models.embeddings import (
    TimestepEmbedding,
    add_class_embedding,
    class_table,
    sinusoidal_embedding,
)

EPSILON = 1e-6  # of the normalisations that diffusers gives no option for


class PatchEmbedding(nnx.Module):
    """A convolution from patches to tokens, and the embedding of their positions."""

    def __init__(self, config: DiTTransformer2DConfig, *, rngs: nnx.Rngs):
        """Makes the embedding."""
        patch = config.patch_size
        self.side = config.sample_size // patch
        self.proj = layers.conv(
            config.in_channels, config.width, patch, stride=patch, padding=0, rngs=rngs
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[B, H, W, in_channels]` to tokens `[B, T, width]`."""
        tokens = jax.lax.collapse(self.proj(x), 1, 3)
        positions = position_embedding(self.side, tokens.shape[-1])
        return tokens + jnp.asarray(positions, x.dtype)[None]


class Block(nnx.Module):
    """Attention and a perceptron, both shifted, scaled and gated by the condition (adaLN-Zero)."""

    def __init__(self, config: DiTTransformer2DConfig, *, rngs: nnx.Rngs):
        """Makes the block."""
        self.norm_eps = config.norm_eps
        self.norm1 = _Condition(config, rngs=rngs)
        self.attn1 = _Attention(config, rngs=rngs)
        self.ff = _Perceptron(config.width, rngs=rngs)

    def __call__(self, h: jax.Array, t: jax.Array, class_labels: jax.Array) -> jax.Array:
        """Maps tokens `[B, T, width]` to the same shape, given times f32[B] and classes i32[B]."""
        # Of the attention, then of the perceptron: [B, 1, width] each, the same for all tokens of a
        # sample.
        condition = self.norm1(t, class_labels, h.dtype)
        modulation = jnp.split(condition[:, None], 6, axis=-1)
        attention_shift, attention_scale, attention_gate = modulation[:3]
        mlp_shift, mlp_scale, mlp_gate = modulation[3:]

        attended = self.attn1(modulated(h, attention_shift, attention_scale, EPSILON))
        h = h + attention_gate * attended

        hidden = self.ff(modulated(h, mlp_shift, mlp_scale, self.norm_eps))
        return h + mlp_gate * hidden


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
        """Returns shift, scale and gate of the block's two parts, `[B, 6 * width]`."""
        # The embedding is computed in float32, and cast at the end.
        activated = jax.nn.silu(self.embed(t, class_labels))
        return self.linear(activated.astype(dtype))


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
        """Maps tokens `[B, T, width]` to the same shape."""
        # Channels are divided among the heads: [B, T, heads, C] each.
        batch, tokens, width = h.shape
        by_head = (batch, tokens, self.heads, width // self.heads)
        q = self.to_q(h).reshape(by_head)
        k = self.to_k(h).reshape(by_head)
        v = self.to_v(h).reshape(by_head)

        # The heads side by side again.
        mixed = attend(q, k, v).reshape(h.shape)
        return self.to_out[0](mixed)


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

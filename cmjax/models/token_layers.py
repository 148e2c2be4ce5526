"""Layers of transformers whose conditioning is tokens of the sequence.

Those of Pixel MeanFlow (Lu et al. 2026, arXiv 2601.22158) and of improved mean flows (Geng et al.
2025, arXiv 2512.02012). As all layers here they compute in the dtype of their input.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cmjax.arrays import along_channels
from cmjax.models import layers
from cmjax.models.attention import attend

LONGEST_PERIOD = 10000.0  # of the rotary positions, in patches, divided by 2 pi


class RMSNorm(nnx.Module):
    """Divides by the root of the mean square over channels (Zhang & Sennrich 2019), in float32."""

    def __init__(self, channels: int, *, epsilon: float = 1e-6, rngs: nnx.Rngs):
        """Makes the norm of `[..., channels]`, with a scale per channel that starts at 1."""
        del rngs
        self.epsilon = epsilon
        self.scale = nnx.Param(jnp.ones(channels, jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[..., C]` to the same shape and dtype."""
        wide = x.astype(jnp.float32)
        mean_square = jnp.square(wide).mean(-1, keepdims=True)
        scale = along_channels(self.scale[...].astype(jnp.float32), x.ndim)
        normal = wide * jax.lax.rsqrt(mean_square + self.epsilon)
        return (normal * scale).astype(x.dtype)


class SwiGLU(nnx.Module):
    """The perceptron `W_out (silu(W_gate x) * W_in x)` (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, width: int, hidden: int, *, rngs: nnx.Rngs):
        """Makes a map of `[..., width]`, with `hidden` channels inside."""
        self.linear_gate = plain_linear(width, hidden, rngs)
        self.linear_in = plain_linear(width, hidden, rngs)
        self.linear_out = plain_linear(hidden, width, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[..., width]` to the same shape."""
        gate = jax.nn.silu(self.linear_gate(x))
        return self.linear_out(gate * self.linear_in(x))


class RotaryAttention(nnx.Module):
    """Self-attention among tokens, with RMS norms of queries and keys and rotary positions."""

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs):
        """Makes attention of tokens `[B, T, width]` with that many heads."""
        self.heads = heads
        self.to_q = plain_linear(width, width, rngs)
        self.to_k = plain_linear(width, width, rngs)
        self.to_v = plain_linear(width, width, rngs)
        self.to_out = plain_linear(width, width, rngs)
        self.norm_q = RMSNorm(width // heads, rngs=rngs)
        self.norm_k = RMSNorm(width // heads, rngs=rngs)

    def __call__(self, h: jax.Array, angles: np.ndarray) -> jax.Array:
        """Maps `[B, T, width]` to the same shape; `angles` are those of `rotated`."""
        # Channels are divided among the heads: [B, T, heads, C] each.
        batch, tokens, width = h.shape
        by_head = (batch, tokens, self.heads, width // self.heads)
        q = self.to_q(h).reshape(by_head)
        k = self.to_k(h).reshape(by_head)
        v = self.to_v(h).reshape(by_head)

        # Queries and keys are normalised, then turned by the positions of their tokens.
        q = rotated(self.norm_q(q), angles)
        k = rotated(self.norm_k(k), angles)

        # The heads side by side again.
        mixed = attend(q, k, v).reshape(h.shape)
        return self.to_out(mixed)


class GatedBlock(nnx.Module):
    """Attention and a perceptron, each added through a gate per channel that starts at zero."""

    def __init__(self, width: int, heads: int, hidden: int, *, rngs: nnx.Rngs):
        """Makes a block of tokens `[B, T, width]`."""
        self.norm_1 = RMSNorm(width, rngs=rngs)
        self.attention = RotaryAttention(width, heads, rngs=rngs)
        self.gate_1 = nnx.Param(jnp.zeros(width, jnp.float32))
        self.norm_2 = RMSNorm(width, rngs=rngs)
        self.mlp = SwiGLU(width, hidden, rngs=rngs)
        self.gate_2 = nnx.Param(jnp.zeros(width, jnp.float32))

    def __call__(self, h: jax.Array, angles: np.ndarray) -> jax.Array:
        """Maps `[B, T, width]` to the same shape; `angles` are those of `rotated`."""
        gate_1 = along_channels(self.gate_1[...].astype(h.dtype), h.ndim)
        gate_2 = along_channels(self.gate_2[...].astype(h.dtype), h.ndim)
        h = h + gate_1 * self.attention(self.norm_1(h), angles)
        return h + gate_2 * self.mlp(self.norm_2(h))


class ContextTokens(nnx.Module):
    """Learned tokens, to each of which the embedding of a condition is added."""

    def __init__(self, count: int, width: int, *, rngs: nnx.Rngs):
        """Makes `count` tokens of `width` channels."""
        self.tokens = drawn((1, count, width), 1 / math.sqrt(width), rngs)

    def __call__(self, embedding: jax.Array) -> jax.Array:
        """Maps an embedding `[B, width]` to tokens `[B, count, width]`."""
        return self.tokens[...].astype(embedding.dtype) + embedding[:, None]


def rotary_angles(side: int, channels: int) -> np.ndarray:
    """Returns the angles of two-dimensional rotary positions, f32[side * side, channels / 2].

    Rotary positions (Su et al. 2021, arXiv 2104.09864) turn pairs of channels by angles that grow
    with a token's position: here half of the pairs by its row, then half by its column.

    Args:
        side: rows and columns of tokens, which are numbered row by row.
        channels: of a head; a multiple of 4.
    """
    pairs = channels // 4
    frequencies = LONGEST_PERIOD ** -(np.arange(pairs) / pairs)
    angles = np.arange(side)[:, None] * frequencies[None]
    rows = np.repeat(angles, side, axis=0)
    columns = np.tile(angles, (side, 1))
    return np.concatenate([rows, columns], axis=-1).astype(np.float32)


def sequence_angles(count: int, channels: int) -> np.ndarray:
    """Returns the angles of rotary positions in a sequence, f32[count, channels / 2].

    Args:
        count: number of tokens.
        channels: of a head; an even number.
    """
    pairs = channels // 2
    frequencies = LONGEST_PERIOD ** -(np.arange(pairs) / pairs)
    return (np.arange(count)[:, None] * frequencies[None]).astype(np.float32)


def rotated(x: jax.Array, angles: np.ndarray) -> jax.Array:
    """Returns queries or keys with the last tokens turned by their angles.

    Args:
        x: `[B, T, heads, C]`; pair i of channels is (2 i, 2 i + 1).
        angles: f32[P, C / 2] of the last P tokens. The T - P before them, which stand for no place
            in the image, stay as they are.

    Returns:
        The same shape and dtype, computed in float32.
    """
    # Tokens without a position turn by the angle 0: [1, T, 1, C / 2].
    before = x.shape[1] - len(angles)
    angles = np.pad(angles, ((before, 0), (0, 0)))[None, :, None]
    cos = jnp.asarray(np.cos(angles))
    sin = jnp.asarray(np.sin(angles))

    # Each pair as a point (first, second) of the plane, [B, T, heads, C / 2] each, which turns to
    # (first cos - second sin, first sin + second cos).
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], x.shape[-1] // 2, 2)
    first = pairs[..., 0]
    second = pairs[..., 1]
    turned_first = first * cos - second * sin
    turned_second = first * sin + second * cos
    turned = jnp.stack([turned_first, turned_second], axis=-1)
    return turned.reshape(x.shape).astype(x.dtype)


def plain_linear(features_in: int, features_out: int, rngs: nnx.Rngs) -> nnx.Linear:
    """Returns a dense layer without a bias, drawn as the authors of Pixel MeanFlow do."""
    # Normal, with a standard deviation of 0.32 / sqrt(features_in).
    init = nnx.initializers.variance_scaling(0.32**2, "fan_in", "normal")
    return layers.linear(
        features_in, features_out, use_bias=False, kernel_init=init, rngs=rngs
    )


def drawn(shape: tuple[int, ...], scale: float, rngs: nnx.Rngs) -> nnx.Param:
    """Returns normal parameters, f32[shape], of that standard deviation."""
    normal = jax.random.normal(rngs.params(), shape, jnp.float32)
    return nnx.Param(scale * normal)

"""Layers the networks share. They compute in the dtype of their input, whatever the parameters' dtype."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx


def in_input_dtype(arrays: Any, **_: Any) -> Any:
    """Casts parameters to the dtype of the input, the first array (a flax `promote_dtype` rule)."""
    dtype = arrays[0].dtype
    return tuple(None if array is None else array.astype(dtype) for array in arrays)


def linear(features_in: int, features_out: int, *, rngs: nnx.Rngs, **options: Any) -> nnx.Linear:
    """Returns a dense layer."""
    return nnx.Linear(features_in, features_out, promote_dtype=in_input_dtype, rngs=rngs, **options)


def conv(channels_in: int, channels_out: int, size: int = 3, *, rngs: nnx.Rngs, **options: Any) -> nnx.Conv:
    """Returns a square convolution, channels-last, padded by `(size - 1) // 2`."""
    options = {"padding": (size - 1) // 2, **options}
    return nnx.Conv(channels_in, channels_out, (size, size), promote_dtype=in_input_dtype, rngs=rngs, **options)


class GroupNorm(nnx.GroupNorm):
    """Group normalisation in float32, with the two-pass variance, returned in the input's dtype."""

    def __init__(self, channels: int, groups: int, epsilon: float, *, rngs: nnx.Rngs):
        """Makes a normalisation of `channels` in `groups`."""
        super().__init__(
            channels, groups, epsilon=epsilon, use_fast_variance=False, promote_dtype=in_input_dtype, rngs=rngs
        )

    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        """Maps `[B, ..., C]` to the same shape and dtype."""
        return super().__call__(x.astype(jnp.float32), mask=mask).astype(x.dtype)


def sinusoidal_embedding(
    t: jax.Array, features: int, *, flip_sin_to_cos: bool = True, freq_shift: float = 0, max_period: float = 10000.0
) -> jax.Array:
    """Returns f32[B, features]: sines and cosines of the times f32[B] (Vaswani et al. 2017, section 3.5)."""
    half = features // 2
    frequencies = jnp.exp(-math.log(max_period) * jnp.arange(half, dtype=jnp.float32) / (half - freq_shift))
    angles = t.astype(jnp.float32)[:, None] * frequencies[None, :]
    parts = (jnp.cos(angles), jnp.sin(angles)) if flip_sin_to_cos else (jnp.sin(angles), jnp.cos(angles))
    return jnp.pad(jnp.concatenate(parts, axis=-1), ((0, 0), (0, features % 2)))


class TimestepEmbedding(nnx.Module):
    """Two dense layers with a SiLU between them."""

    def __init__(self, features_in: int, features_out: int, *, rngs: nnx.Rngs):
        """Makes a map from `[B, features_in]` to `[B, features_out]`."""
        self.linear_1 = linear(features_in, features_out, rngs=rngs)
        self.linear_2 = linear(features_out, features_out, rngs=rngs)

    def __call__(self, embedding: jax.Array) -> jax.Array:
        """Maps `[B, features_in]` to `[B, features_out]`."""
        return self.linear_2(jax.nn.silu(self.linear_1(embedding)))


class Attention(nnx.Module):
    """Multi-head self-attention over the pixels of a map, with its normalisation and residual.

    Plain matrix products and a float32 softmax: it differentiates in forward mode too.
    """

    def __init__(self, channels: int, head_dim: int, groups: int, epsilon: float, *, rngs: nnx.Rngs):
        """Makes attention with `channels // head_dim` heads."""
        if channels % head_dim:
            raise ValueError(f"attention_head_dim {head_dim} does not divide the block's {channels} channels")
        self.heads = channels // head_dim
        self.group_norm = GroupNorm(channels, groups, epsilon, rngs=rngs)
        self.to_q = linear(channels, channels, rngs=rngs)
        self.to_k = linear(channels, channels, rngs=rngs)
        self.to_v = linear(channels, channels, rngs=rngs)
        self.to_out = linear(channels, channels, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[B, H, W, C]` to the same shape."""
        batch, height, width, channels = x.shape
        pixels = self.group_norm(x).reshape(batch, height * width, channels)
        q, k, v = (f(pixels).reshape(batch, height * width, self.heads, -1) for f in (self.to_q, self.to_k, self.to_v))
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(channels // self.heads)
        weights = jax.nn.softmax(scores.astype(jnp.float32), axis=-1).astype(x.dtype)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(batch, height * width, channels)
        return x + self.to_out(mixed).reshape(x.shape)


class ResnetBlock(nnx.Module):
    """Two normalised convolutions around an added time embedding, with a residual (Ho et al. 2020)."""

    def __init__(
        self, channels_in: int, channels_out: int, time_features: int, groups: int, epsilon: float, *, rngs: nnx.Rngs
    ):
        """Makes a block from `channels_in` to `channels_out`; the shortcut is a 1x1 convolution if they differ."""
        self.norm1 = GroupNorm(channels_in, groups, epsilon, rngs=rngs)
        self.conv1 = conv(channels_in, channels_out, rngs=rngs)
        self.time_emb_proj = linear(time_features, channels_out, rngs=rngs)
        self.norm2 = GroupNorm(channels_out, groups, epsilon, rngs=rngs)
        self.conv2 = conv(channels_out, channels_out, rngs=rngs)
        self.conv_shortcut = None if channels_in == channels_out else conv(channels_in, channels_out, 1, rngs=rngs)

    def __call__(self, x: jax.Array, embedding: jax.Array) -> jax.Array:
        """Maps `[B, H, W, channels_in]` and `[B, time_features]` to `[B, H, W, channels_out]`."""
        h = self.conv1(jax.nn.silu(self.norm1(x)))
        h = h + self.time_emb_proj(jax.nn.silu(embedding))[:, None, None, :]
        h = self.conv2(jax.nn.silu(self.norm2(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


def space_to_depth(x: jax.Array, patch: int) -> jax.Array:
    """Folds `[B, H, W, C]` into `[B, H/p, W/p, p*p*C]`."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // patch, patch, width // patch, patch, channels).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, height // patch, width // patch, patch * patch * channels)


def depth_to_space(x: jax.Array, patch: int) -> jax.Array:
    """Unfolds `[B, H, W, p*p*C]` into `[B, H*p, W*p, C]`, the inverse of `space_to_depth`."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height, width, patch, patch, channels // patch**2).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, height * patch, width * patch, channels // patch**2)

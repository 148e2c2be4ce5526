"""The parts of diffusion transformers: blocks, positions, and adaptive normalisation."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cmjax.models import layers
from cmjax.models.attention import attend
from cmjax.models.dit_config import DiTConfig


class Block(nnx.Module):
    """Attention and a perceptron, both shifted, scaled and gated by the condition (adaLN-Zero)."""

    def __init__(self, config: DiTConfig, *, rngs: nnx.Rngs):
        """Makes the block, which is the identity until it is trained."""
        width = config.width
        hidden = int(config.mlp_ratio * width)
        self.heads = config.num_attention_heads

        # Shift, scale and gate of both parts. Zero gates make an untrained block the identity.
        self.modulation = zero_linear(width, 6 * width, rngs)
        self.to_qkv = layers.linear(width, 3 * width, rngs=rngs)
        self.to_out = layers.linear(width, width, rngs=rngs)
        self.linear_1 = layers.linear(width, hidden, rngs=rngs)
        self.linear_2 = layers.linear(hidden, width, rngs=rngs)

    def __call__(self, h: jax.Array, condition: jax.Array) -> jax.Array:
        """Maps tokens `[B, T, width]` under a condition `[B, width]` to tokens."""
        # Of the attention, then of the perceptron: [B, 1, width] each, the same for all tokens of a
        # sample.
        modulation = jnp.split(self.modulation(condition)[:, None], 6, axis=-1)
        attention_shift, attention_scale, attention_gate = modulation[:3]
        mlp_shift, mlp_scale, mlp_gate = modulation[3:]

        attended = self._attend(modulated(h, attention_shift, attention_scale))
        h = h + attention_gate * attended

        hidden = self.linear_1(modulated(h, mlp_shift, mlp_scale))
        hidden = jax.nn.gelu(hidden, approximate=True)
        return h + mlp_gate * self.linear_2(hidden)

    def _attend(self, h):
        """Maps tokens `[B, T, width]` to the same shape by attention among them."""
        # One product makes queries, keys and values: [B, T, 3 * width] to three [B, T, heads, C].
        batch, tokens, width = h.shape
        by_head = (batch, tokens, 3, self.heads, width // self.heads)
        qkv = self.to_qkv(h).reshape(by_head)
        q, k, v = jnp.moveaxis(qkv, 2, 0)

        # The heads side by side again.
        mixed = attend(q, k, v).reshape(batch, tokens, width)
        return self.to_out(mixed)


def position_embedding(side: int, width: int) -> np.ndarray:
    """Returns the embedding of the tokens' positions, f32[side * side, width] (section 3.2).

    It has sines and cosines of each token's column, then of its row.
    """
    # Angles of one coordinate, [side, width / 4]: position times frequency.
    frequencies = 10000.0 ** -(np.arange(width // 4) / (width // 4))
    angles = np.arange(side)[:, None] * frequencies[None]
    coordinate = np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)

    # Tokens are numbered row by row, so that the column changes fastest.
    column = np.tile(coordinate, (side, 1))
    row = np.repeat(coordinate, side, axis=0)
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
    variance = jnp.square(centred).mean(-1, keepdims=True)
    normal = centred / jnp.sqrt(variance + epsilon)
    return normal.astype(h.dtype) * (1 + scale) + shift


def zero_linear(features_in: int, features_out: int, rngs: nnx.Rngs) -> nnx.Linear:
    """Returns a dense layer whose output is zero until it is trained."""
    return layers.linear(
        features_in, features_out, kernel_init=nnx.initializers.zeros, rngs=rngs
    )

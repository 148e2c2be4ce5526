"""The second head of transformers whose conditioning is tokens: a velocity at t."""

from typing import Any

import jax
import numpy as np
from flax import nnx

from cmjax.models import layers, resampling
from cmjax.models.token_layers import GatedBlock, RMSNorm


class SecondHead(nnx.Module):
    """Blocks and a last layer of their own, trained in parallel to a network's last blocks.

    Those of Pixel MeanFlow (Lu et al. 2026, arXiv 2601.22158) and of improved mean flows (Geng et
    al. 2025, arXiv 2512.02012, section 4.1) return the velocity at t, where the first head returns
    the mean velocity.
    """

    def __init__(self, config: Any, *, rngs: nnx.Rngs):
        """Makes the head.

        Args:
            config: a `ContextConfig`, with `second_head_layers` blocks.
            rngs: that parameters are drawn from.
        """
        self.config = config
        self.blocks = blocks(config, config.second_head_layers, rngs)
        self.norm_out = RMSNorm(config.width, rngs=rngs)
        self.proj_out = last_layer(config, rngs)

    def __call__(self, h: jax.Array, angles: np.ndarray) -> jax.Array:
        """Returns `[B, H, W, in_channels]` of the sequence `[B, num_tokens, width]`."""
        for block in self.blocks:
            h = block(h, angles)
        return image_of(self.config, self.proj_out(self.norm_out(h)))


def blocks(config: Any, count: int, rngs: nnx.Rngs) -> nnx.List:
    """Returns that many transformer blocks of a `ContextConfig`."""
    heads = config.num_attention_heads
    made = [
        GatedBlock(config.width, heads, config.mlp_channels, rngs=rngs)
        for _ in range(count)
    ]
    return nnx.List(made)


def last_layer(config: Any, rngs: nnx.Rngs) -> nnx.Linear:
    """Returns the layer from tokens to patches, which starts at zero."""
    folded = config.patch_size**2 * config.in_channels
    zeros = nnx.initializers.zeros
    return layers.linear(config.width, folded, kernel_init=zeros, rngs=rngs)


def image_of(config: Any, h: jax.Array) -> jax.Array:
    """Returns patches, the last of `[B, num_tokens, C]`, as pixels `[B, H, W, in_channels]`."""
    side = config.sample_size // config.patch_size
    patches = h[:, -(side**2) :].reshape(h.shape[0], side, side, h.shape[-1])
    return resampling.depth_to_space(patches, config.patch_size)

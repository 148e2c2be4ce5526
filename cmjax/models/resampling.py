"""Changes of resolution: down- and upsampling, and pixels folded into channels and back."""

from typing import Any

import jax
from flax import nnx

from cmjax.models.layers import conv
from cmjax.models.strips import in_strips


class Downsample(nnx.Module):
    """A strided convolution that halves height and width."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs, **options: Any):
        """Makes the convolution for a map of that many channels, with options of `conv`."""
        self.conv = conv(channels, channels, stride=2, rngs=rngs, **options)

    def __call__(self, x: jax.Array, embedding: jax.Array | None = None) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, H/2, W/2, C]`; the embedding is not used."""
        return self.conv(x)


class Upsample(nnx.Module):
    """A doubling of height and width, then a convolution."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        """Makes the convolution for a map of that many channels."""
        self.conv = conv(channels, channels, rngs=rngs)

    def __call__(self, x: jax.Array, embedding: jax.Array | None = None) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, 2H, 2W, C]`; the embedding is not used."""
        return in_strips(lambda x: self.conv(double(x)), x, factor=2)


def halve(x: jax.Array) -> jax.Array:
    """Averages 2x2 blocks: `[B, H, W, C]` to `[B, H/2, W/2, C]`."""
    # Axes: batch, row of blocks, row in a block, column of blocks, column in a block, channel.
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4))


def double(x: jax.Array) -> jax.Array:
    """Repeats every pixel: `[B, H, W, C]` to `[B, 2H, 2W, C]`."""
    return x.repeat(2, axis=1).repeat(2, axis=2)


def space_to_depth(x: jax.Array, patch: int) -> jax.Array:
    """Folds `[B, H, W, C]` into `[B, H/p, W/p, p*p*C]`."""
    # Axes: batch, row of patches, row in a patch, column of patches, column in a patch, channel.
    batch, height, width, channels = x.shape
    rows = height // patch
    columns = width // patch
    x = x.reshape(batch, rows, patch, columns, patch, channels)

    # All of a patch becomes one pixel.
    x = x.transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, rows, columns, patch * patch * channels)


def depth_to_space(x: jax.Array, patch: int) -> jax.Array:
    """Unfolds `[B, H, W, p*p*C]` into `[B, H*p, W*p, C]`, the inverse of `space_to_depth`."""
    # The same transposition as there: it swaps two axes, so it is its own inverse.
    batch, height, width, folded = x.shape
    channels = folded // patch**2
    x = x.reshape(batch, height, width, patch, patch, channels)
    x = x.transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, height * patch, width * patch, channels)

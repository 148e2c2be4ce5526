"""Resampling that smooths: with the kernel [1, 3, 3, 1] of StyleGAN2, where pixels jump otherwise.

Each map is convolved with [1, 3, 3, 1] / 8 along rows and columns, and is zero outside. That
removes the frequencies that a smaller map cannot hold (Zhang 2019; Karras et al. 2020).
"""

import jax
import jax.numpy as jnp
from flax import nnx

from cmjax.models.layers import conv

# Rows and columns of `[B, H, W, C]`.
ROWS = 1
COLUMNS = 2


def halve_smoothly(x: jax.Array) -> jax.Array:
    """Smooths and takes every other pixel: `[B, H, W, C]` to `[B, H/2, W/2, C]`."""
    return _smoothed(x, 1)[:, ::2, ::2]


def double_smoothly(x: jax.Array) -> jax.Array:
    """Puts zeros between the pixels and smooths: `[B, H, W, C]` to `[B, 2H, 2W, C]`.

    The zeros are three of four pixels, so that the sum is four times that of a smoothing.
    """
    for axis in (ROWS, COLUMNS):
        x = _doubled(x, axis)
    return x


class SmoothDownsample(nnx.Module):
    """A smoothing, then a strided convolution that halves height and width."""

    def __init__(self, channels_in: int, channels_out: int, *, rngs: nnx.Rngs):
        """Makes the convolution."""
        self.conv = conv(channels_in, channels_out, stride=2, padding=0, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[B, H, W, channels_in]` to `[B, H/2, W/2, channels_out]`."""
        # 2 pixels of padding make a map of H + 1 pixels, and the kernel of 3 pixels H / 2 of them.
        return self.conv(_smoothed(x, 2))


def _smoothed(x, padding):
    """Smooths a map, padded on all sides; of H pixels, H + 2 padding - 3 are left."""
    sides = (padding, padding)
    x = jnp.pad(x, ((0, 0), sides, sides, (0, 0)))
    for axis in (ROWS, COLUMNS):
        size = x.shape[axis] - 3
        first, second, third, fourth = (
            jax.lax.slice_in_dim(x, i, i + size, axis=axis) for i in range(4)
        )
        x = (first + 3 * second + 3 * third + fourth) / 8
    return x


def _doubled(x, axis):
    """Doubles one axis."""
    # Every other pixel is zero, so that the kernel meets two that are not: with 1 and 3 at even
    # pixels, with 3 and 1 at odd ones. Neighbours outside are zero.
    size = x.shape[axis]
    edges = [(0, 0)] * x.ndim
    edges[axis] = (1, 1)
    padded = jnp.pad(x, edges)
    before = jax.lax.slice_in_dim(padded, 0, size, axis=axis)
    after = jax.lax.slice_in_dim(padded, 2, size + 2, axis=axis)
    pairs = jnp.stack([before + 3 * x, 3 * x + after], axis=axis + 1) / 4

    shape = list(x.shape)
    shape[axis] *= 2
    return pairs.reshape(shape)

"""Layers that the networks share: dense layers, convolutions and group normalisation.

They compute in the dtype of their input. Parameters are cast to it, so that float32 parameters
serve computation in bfloat16.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.custom_derivatives import SymbolicZero
from jax.interpreters import ad

from cmjax.arrays import along_channels
from cmjax.models.conv import convolution, product_of_matrices
from cmjax.models.strips import in_strips


class Linear(nnx.Linear):
    """A dense layer whose gradients are products of matrices."""

    def __call__(self, inputs: jax.Array, out_sharding: Any = None) -> jax.Array:
        """Maps `[..., I]` to `[..., O]`, in the dtype of the inputs."""
        del out_sharding  # Flax's; within networks all axes of a mesh are automatic
        y = product_of_matrices(inputs, self.kernel[...].astype(inputs.dtype))
        if self.bias is None:
            return y
        return add_bias(y, self.bias[...].astype(inputs.dtype))


def linear(
    features_in: int, features_out: int, *, rngs: nnx.Rngs, **options: Any
) -> nnx.Linear:
    """Returns a dense layer; `options` of `nnx.Linear` say how its parameters are made."""
    return Linear(features_in, features_out, rngs=rngs, **options)


@jax.custom_jvp
def add_bias(y: jax.Array, bias: jax.Array) -> jax.Array:
    """Returns `y + bias`, of `[..., O]` and `[O]`.

    The gradient by the bias is a sum over all other axes. Within training steps on CPUs, XLA takes
    several times as long for it as for the product with ones that it is here.
    """
    return y + along_channels(bias, y.ndim)


@functools.partial(add_bias.defjvp, symbolic_zeros=True)
def _add_bias_jvp(primals, tangents):
    y, bias = primals
    y_tangent, bias_tangent = tangents
    out = add_bias(y, bias)

    # Zeros are free, and the tangent has to be divided over devices as the output is.
    if isinstance(y_tangent, SymbolicZero):
        y_tangent = ad.instantiate_zeros(ad.Zero(y_tangent.aval))
    if isinstance(bias_tangent, SymbolicZero):
        zeros = ad.instantiate_zeros(ad.Zero(bias_tangent.aval))
        return out, y_tangent + along_channels(zeros, y.ndim)

    # The bias at every row of y as a product, ones [rows, 1] times bias [1, O]: its transpose is
    # the sum over the rows. GPUs and TPUs round factors unless told not to; a sum does not.
    ones = jnp.ones((math.prod(y.shape[:-1]), 1), y.dtype)
    spread = jnp.matmul(ones, bias_tangent[None], precision="highest").reshape(y.shape)
    return out, y_tangent + spread


class Conv(nnx.Conv):
    """A convolution whose gradient by the bias is a product.

    Of the options of `nnx.Conv` it has those that `conv` names, and those of its parameters.
    """

    def __call__(self, inputs: jax.Array, out_sharding: Any = None) -> jax.Array:
        """Maps `[B, H, W, I]` to `[B, H', W', O]`, in the dtype of the inputs."""
        del out_sharding  # Flax's; within networks all axes of a mesh are automatic
        kernel = self.kernel[...].astype(inputs.dtype)
        strides: Any = self.strides  # a pair, as `conv` makes it
        y = convolution(inputs, kernel, strides, self.padding)
        if self.bias is None:
            return y
        return add_bias(y, self.bias[...].astype(inputs.dtype))


def conv(
    channels_in: int,
    channels_out: int,
    size: int = 3,
    *,
    stride: int = 1,
    padding: int | Sequence[tuple[int, int]] | None = None,
    rngs: nnx.Rngs,
    **options: Any,
) -> Conv:
    """Returns a convolution of size x size pixels, channels-last.

    Args:
        channels_in: channels of the input.
        channels_out: channels of the output.
        size: of the kernel.
        stride: of the rows and columns.
        padding: pixels on all sides, or before and after the rows and the columns; None for
            `(size - 1) // 2` on all sides.
        rngs: for the initial parameters.
        options: of `nnx.Conv`, which say how its parameters are made.
    """
    # "SAME" would pad a convolution of stride 2 on two sides only, and PyTorch pads all four.
    if padding is None:
        padding = (size - 1) // 2
    if isinstance(padding, int):
        padding = [(padding, padding)] * 2
    return Conv(
        channels_in,
        channels_out,
        (size, size),
        strides=(stride, stride),
        padding=padding,
        rngs=rngs,
        **options,
    )


class GroupNorm(nnx.Module):
    """Group normalisation (Wu and He 2018), computed in float32 and returned in the input's dtype.

    The statistics are exact at large means, too: the variance is the mean of squared differences
    from the mean, not E[x^2] - E[x]^2, which loses all digits there.
    """

    def __init__(self, channels: int, groups: int, epsilon: float, *, rngs: nnx.Rngs):
        """Makes a normalisation of `channels` in `groups`.

        Args:
            channels: number C of channels.
            groups: number of groups, which divides the channels.
            epsilon: added to the variance.
            rngs: not used: scales start at 1 and biases at 0.

        Raises:
            ValueError: if the groups do not divide the channels.
        """
        del rngs
        if channels % groups:
            raise ValueError(f"{groups} groups do not divide {channels} channels")
        self.groups = groups
        self.epsilon = epsilon
        self.scale = nnx.Param(jnp.ones(channels, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(channels, jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[B, ..., C]` to the same shape and dtype."""
        return self.normalise(x, *self.statistics(x))

    def statistics(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns mean and inverse deviation of `[B, ..., C]`, f32[B, 1, C] each."""
        # Sums over a whole map have too many terms for 16 bits: [B, pixels, C] in float32.
        batch = x.shape[0]
        channels = x.shape[-1]
        # Counted, since a batch of no samples leaves -1 open.
        count = math.prod(x.shape[1:-1])
        pixels = x.astype(jnp.float32).reshape(batch, count, channels)

        # The mean over each group, at every channel of it: [B, 1, C]. It is taken over the pixels
        # first and over channels then: on CPUs, XLA takes up to ten times as long for both at once.
        def mean(values):
            of_channels = values.mean(1).reshape(
                batch, self.groups, channels // self.groups
            )
            of_groups = of_channels.mean(-1, keepdims=True)
            spread = jnp.broadcast_to(of_groups, of_channels.shape)
            return spread.reshape(batch, 1, channels)

        # Two passes, as the class says: the mean, then the squared differences from it.
        centre = mean(pixels)
        variance = mean(jnp.square(pixels - centre))
        return centre, jax.lax.rsqrt(variance + self.epsilon)

    def normalise(self, x: jax.Array, mean: jax.Array, inverse: jax.Array) -> jax.Array:
        """Normalises `[B, ..., C]`, which may be a part of a map, by the statistics of the map."""
        # (x - mean) / deviation * scale + bias, over [B, pixels, C].
        count = math.prod(x.shape[1:-1])
        pixels = x.astype(jnp.float32).reshape(x.shape[0], count, x.shape[-1])
        scale = self.scale[...].astype(jnp.float32)[None, None]
        scaled = (pixels - mean) * (inverse * scale)
        y = add_bias(scaled, self.bias[...].astype(jnp.float32))
        return y.reshape(x.shape).astype(x.dtype)


def activated_conv(
    norm: GroupNorm,
    convolve: nnx.Conv,
    x: jax.Array,
    residual: Callable[[jax.Array], jax.Array] | None = None,
    *residual_of: jax.Array,
) -> jax.Array:
    """Normalises a map, applies a SiLU and convolves it, in strips if it is large.

    The statistics are those of the whole map, whatever strip they are applied to.

    Args:
        norm: the normalisation.
        convolve: a 3x3 convolution.
        x: the map, `[B, H, W, C]`.
        residual: a function of pixels, whose result is added; None adds nothing.
        residual_of: the map that it is a function of, `[B, H, W, R]`.
    """
    mean, inverse = norm.statistics(x)

    # One strip, with that of the residual's map if there is one.
    def compute(x, *residual_of):
        normal = norm.normalise(x, mean, inverse)
        h = convolve(jax.nn.silu(normal))
        if residual is None:
            return h
        return h + residual(*residual_of)

    return in_strips(compute, x, *residual_of)


def check_images(x: jax.Array, size: int, channels: int) -> None:
    """Checks that x is `[B, size, size, channels]`.

    Raises:
        ValueError: if it is not.
    """
    if x.ndim != 4 or x.shape[1:] != (size, size, channels):
        raise ValueError(f"x must be [B, {size}, {size}, {channels}], got {x.shape}")


def add_residual(x: jax.Array, h: jax.Array, rescale: bool) -> jax.Array:
    """Returns `x + h`, or the same divided by sqrt(2), which keeps the variance (StyleGAN2)."""
    return (x + h) / math.sqrt(2) if rescale else x + h

"""The residual block of U-Nets and autoencoders, conditioned on an embedding."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from cmjax.models.layers import GroupNorm, add_residual, conv, linear


class ResnetBlock(nnx.Module):
    """Two normalised convolutions with the time embedding between them, and a residual.

    This is the block of Ho et al. 2020. The embedding is added after the first convolution; with
    `scale_shift` it scales and shifts the second normalisation instead (adaptive group
    normalisation, Dhariwal & Nichol 2021). `resample` changes the resolution after the first
    normalisation, and that of the residual (BigGAN's up- and downsampling, in the same paper).
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        time_features: int,
        groups: int | tuple[int, int],
        epsilon: float,
        *,
        scale_shift: bool = False,
        resample: Callable[[jax.Array], jax.Array] | None = None,
        project: bool = False,
        rescale: bool = False,
        rngs: nnx.Rngs,
    ):
        """Makes a block.

        Args:
            channels_in: channels of the input.
            channels_out: channels of the output.
            time_features: features of the embedding of time and class.
            groups: groups of both normalisations, or of the first and of the second.
            epsilon: epsilon of both normalisations.
            scale_shift: whether the embedding scales and shifts, instead of being added.
            resample: `halve` or `double`, or another function of a map; None keeps the resolution.
            project: whether the residual passes through a 1x1 convolution in any case, and not
                only where the channels differ.
            rescale: whether the sum with the residual is divided by sqrt(2).
            rngs: for the parameters.
        """
        self.scale_shift = scale_shift
        self.resample = resample
        self.rescale = rescale
        groups_in, groups_out = groups if isinstance(groups, tuple) else (groups, groups)
        self.norm1 = GroupNorm(channels_in, groups_in, epsilon, rngs=rngs)
        self.conv1 = conv(channels_in, channels_out, rngs=rngs)

        # Two numbers per channel, to scale and to shift, or one to add.
        self.time_emb_proj = linear(
            time_features, channels_out * (1 + scale_shift), rngs=rngs
        )
        self.norm2 = GroupNorm(channels_out, groups_out, epsilon, rngs=rngs)
        self.conv2 = conv(channels_out, channels_out, rngs=rngs)

        # The residual passes as it is, or through a 1x1 convolution if the channels differ.
        conv_shortcut = None
        if project or channels_in != channels_out:
            conv_shortcut = conv(channels_in, channels_out, 1, rngs=rngs)
        self.conv_shortcut = conv_shortcut

    def __call__(self, x: jax.Array, embedding: jax.Array) -> jax.Array:
        """Maps `[B, H, W, channels_in]` and `[B, time_features]` to `[B, H', W', channels_out]`."""
        # The resolution changes between the activation and the convolution.
        h = jax.nn.silu(self.norm1(x))
        if self.resample is not None:
            x = self.resample(x)
            h = self.resample(h)
        h = self.conv1(h)

        # The same numbers for all pixels: [B, 1, 1, channels_out], or twice as many.
        condition = self.time_emb_proj(jax.nn.silu(embedding))[:, None, None, :]
        if self.scale_shift:
            scale, shift = jnp.split(condition, 2, axis=-1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h + condition)

        h = self.conv2(jax.nn.silu(h))
        if self.conv_shortcut is not None:
            x = self.conv_shortcut(x)
        return add_residual(x, h, self.rescale)

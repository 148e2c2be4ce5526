"""Layers that the networks share. They compute in the dtype of their input.

Parameters are cast to it, so that float32 parameters serve computation in bfloat16.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cmjax.labels import check_class_labels
from cmjax.models.conv import convolution, product_of_matrices
from cmjax.models.strips import in_strips

# 32 MB in float32, about what CPUs keep near.
SCORES_IN_CACHE = 8 * 1024 * 1024

# Tokens whose scores are computed for all queries at once: 64 MB for each head in float32.
TOKENS_AT_ONCE = 64 * 64


def in_input_dtype(arrays: Any, **_: Any) -> Any:
    """Casts parameters to the dtype of the input; a rule for `promote_dtype` of Flax's layers."""
    # Flax passes the input first, then the kernel and the bias, which may be None. Its own rule
    # would promote: a bfloat16 input would be computed in the parameters' float32.
    dtype = arrays[0].dtype
    return tuple(None if array is None else array.astype(dtype) for array in arrays)


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
    return y + bias.reshape((1,) * (y.ndim - 1) + (-1,))


@add_bias.defjvp
def _add_bias_jvp(primals, tangents):
    y, bias = primals
    y_tangent, bias_tangent = tangents
    # GPUs and TPUs would round what they multiply, and a sum is not rounded.
    ones = jnp.ones((math.prod(y.shape[:-1]), 1), y.dtype)
    spread = jnp.matmul(ones, bias_tangent[None], precision="highest").reshape(y.shape)
    return add_bias(y, bias), y_tangent + spread


def conv(
    channels_in: int, channels_out: int, size: int = 3, *, rngs: nnx.Rngs, **options: Any
) -> nnx.Conv:
    """Returns a convolution of size x size pixels, channels-last.

    `options` are those of `nnx.Conv`; by default it is padded by `(size - 1) // 2` on all sides.
    """
    # "SAME" would pad a convolution of stride 2 on two sides only, and PyTorch pads all four.
    options = {"padding": (size - 1) // 2, **options}
    return nnx.Conv(
        channels_in,
        channels_out,
        (size, size),
        promote_dtype=in_input_dtype,
        conv_general_dilated=convolution,
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
        batch, channels = x.shape[0], x.shape[-1]
        pixels = x.astype(jnp.float32).reshape(batch, -1, channels)

        def mean(values):
            # Over the pixels of each channel, then over the channels of each group: [B, 1, C].
            # On CPUs, XLA takes up to ten times as long for both at once.
            of_channels = values.mean(1).reshape(batch, self.groups, -1)
            of_groups = of_channels.mean(-1, keepdims=True)
            return jnp.broadcast_to(of_groups, of_channels.shape).reshape(
                batch, 1, channels
            )

        centre = mean(pixels)
        variance = mean(jnp.square(pixels - centre))
        return centre, jax.lax.rsqrt(variance + self.epsilon)

    def normalise(self, x: jax.Array, mean: jax.Array, inverse: jax.Array) -> jax.Array:
        """Normalises `[B, ..., C]`, which may be a part of a map, by the statistics of the map."""
        pixels = x.astype(jnp.float32).reshape(x.shape[0], -1, x.shape[-1])
        scale = self.scale[...].astype(jnp.float32)[None, None]
        bias = self.bias[...].astype(jnp.float32)[None, None]
        y = (pixels - mean) * (inverse * scale) + bias
        return y.reshape(x.shape).astype(x.dtype)


def sinusoidal_embedding(
    t: jax.Array,
    features: int,
    *,
    flip_sin_to_cos: bool = True,
    freq_shift: float = 0,
    max_period: float = 10000.0,
) -> jax.Array:
    """Returns sines and cosines of times, at geometric frequencies (Vaswani et al. 2017, 3.5).

    Args:
        t: times, f32[B].
        features: number F of features; the last one of an odd number is zero.
        flip_sin_to_cos: whether the cosines come first.
        freq_shift: subtracted from the number of frequencies in the exponent's denominator.
        max_period: the largest period, in units of `t`, divided by 2 pi.

    Returns:
        The embedding, f32[B, F].
    """
    # frequency_i = max_period^(-i / (half - freq_shift)), i = 0 .. half - 1
    half = features // 2
    frequencies = jnp.exp(
        -math.log(max_period) * jnp.arange(half, dtype=jnp.float32) / (half - freq_shift)
    )

    # Products with large times need float32, whatever the dtype of the network: [B, half].
    angles = t.astype(jnp.float32)[:, None] * frequencies[None, :]

    # [B, half] each; together [B, F] with the zero of an odd F.
    parts = (jnp.sin(angles), jnp.cos(angles))
    if flip_sin_to_cos:
        parts = parts[::-1]
    return jnp.pad(jnp.concatenate(parts, axis=-1), ((0, 0), (0, features % 2)))


class TimestepEmbedding(nnx.Module):
    """Two dense layers with a SiLU between them, applied to the sinusoidal embedding."""

    def __init__(self, features_in: int, features_out: int, *, rngs: nnx.Rngs):
        """Makes a map from `[B, features_in]` to `[B, features_out]`."""
        self.linear_1 = linear(features_in, features_out, rngs=rngs)
        self.linear_2 = linear(features_out, features_out, rngs=rngs)

    def __call__(self, embedding: jax.Array) -> jax.Array:
        """Maps `[B, features_in]` to `[B, features_out]`."""
        return self.linear_2(jax.nn.silu(self.linear_1(embedding)))


def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Returns softmax(q k^T / sqrt(C)) v for each head, with the softmax in float32.

    Of many tokens, some queries attend at a time: memory grows with T and not with its square.

    Args:
        q: queries, `[B, T, heads, C]`.
        k: keys, of the same shape.
        v: values, of the same shape.

    Returns:
        The mixed values, `[B, T, heads, C]`, in the dtype of `v`.
    """
    # Heads first, so that each is a plain product of matrices: [B * heads, T, C].
    batch, tokens, heads, channels = q.shape
    q, k, v = (x.swapaxes(1, 2).reshape(-1, tokens, channels) for x in (q, k, v))

    if tokens > TOKENS_AT_ONCE:
        mixed = _attend_in_pieces(q, k, v)
    else:
        mixed = jax.lax.platform_dependent(q, k, v, cpu=_attend_in_cache, default=_attend)
    return mixed.reshape(batch, heads, tokens, channels).swapaxes(1, 2)


def _attend(q, k, v):
    """Attends within each head, `[..., T, C]`."""
    # Fused kernels do not differentiate in forward mode, which the continuous-time losses need.
    scores = (q / math.sqrt(q.shape[-1])) @ k.swapaxes(-2, -1)
    scores = scores.astype(jnp.float32)

    # softmax(scores) v, divided at the end: that is a pass over [T, C] instead of [T, T].
    largest = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))
    weights = jnp.exp(scores - largest)
    total = weights.sum(axis=-1, keepdims=True)
    mixed = (weights.astype(v.dtype) @ v).astype(jnp.float32) / total
    return mixed.astype(v.dtype)


def _attend_in_cache(q, k, v):
    """Attends to some heads at a time, whose scores stay in the cache of a CPU."""
    at_once = max(1, SCORES_IN_CACHE // q.shape[1] ** 2)
    if at_once >= len(q):
        return _attend(q, k, v)
    return jax.lax.map(lambda head: _attend(*head), (q, k, v), batch_size=at_once)


def _attend_in_pieces(q, k, v):
    """Attends to one head at a time, by as many queries as have `SCORES_IN_CACHE` scores."""
    # The number of queries is filled up to whole pieces by zeros: [pieces, at_once, C].
    heads, tokens, channels = q.shape
    at_once = SCORES_IN_CACHE // tokens or 1
    padded = jnp.pad(q, ((0, 0), (0, -tokens % at_once), (0, 0)))
    pieces = padded.reshape(heads, -1, at_once, channels)

    def attend_head(head):
        queries, keys, values = head
        return jax.lax.map(lambda piece: _attend(piece, keys, values), queries)

    mixed = jax.lax.map(attend_head, (pieces, k, v))
    return mixed.reshape(heads, -1, channels)[:, :tokens]


def class_table(config: Any, features: int, *, rngs: nnx.Rngs) -> nnx.Embed | None:
    """Returns the embeddings of the classes of a network's config; None for one without classes.

    Args:
        config: its `num_class_embeds` says how many classes there are; with `null_class` one more
            row, the last, is that of no class.
        features: length F of a row.
        rngs: of the initial values.
    """
    if config.num_class_embeds is None:
        return None
    return nnx.Embed(config.num_class_embeds + config.null_class, features, rngs=rngs)


def add_class_embedding(
    embedding: jax.Array, table: nnx.Embed | None, class_labels: jax.Array | None
) -> jax.Array:
    """Adds the embedding of the classes to that of the times, in a model with classes.

    Args:
        embedding: of the times, f32[B, F].
        table: one row of F features per class; None for an unconditional model.
        class_labels: classes, i32[B]; None for an unconditional model.

    Returns:
        The sum, f32[B, F].

    Raises:
        ValueError: if labels are missing, or given to an unconditional model, or are not one class
            of the model for each sample.
    """
    if table is None:
        if class_labels is not None:
            raise ValueError("class_labels given to an unconditional model; leave them out")
        return embedding
    return embedding + class_features(table, class_labels, len(embedding))


def class_features(
    table: nnx.Embed, class_labels: jax.Array | None, batch: int
) -> jax.Array:
    """Returns the embedding of one class per sample, f32[B, F].

    Args:
        table: one row of F features per label.
        class_labels: classes, i32[B].
        batch: number B of samples.

    Raises:
        ValueError: if labels are missing, or are not one class of the model for each sample.
    """
    if class_labels is None:
        raise ValueError(
            f"the model has {table.num_embeddings} classes: say which by "
            "cond={'class_labels': i32[B]}"
        )

    # A label for each sample: [1] would be broadcast. Values are checked where they are known.
    check_class_labels("class_labels", class_labels, table.num_embeddings)
    if class_labels.shape != (batch,):
        raise ValueError(
            f"class_labels must be one per sample, {(batch,)}, "
            f"got shape {class_labels.shape}"
        )

    # Where they are not known, -1 would be the last class. Beyond all classes it is NaN, as any
    # other label that is no class.
    labels = jnp.asarray(class_labels).astype(jnp.int32)
    labels = jnp.where(labels < 0, table.num_embeddings, labels)

    # The table may be stored in less than float32; a sum with it is not rounded to that.
    return table(labels).astype(jnp.float32)


class Attention(nnx.Module):
    """Multi-head self-attention among the pixels of a map, with normalisation and residual."""

    def __init__(
        self,
        channels: int,
        head_dim: int,
        *,
        groups: int | None,
        epsilon: float,
        rescale: bool = False,
        rngs: nnx.Rngs,
    ):
        """Makes attention with `channels // head_dim` heads.

        Args:
            channels: channels of the map.
            head_dim: channels per head.
            groups: groups of the normalisation; None for no normalisation.
            epsilon: epsilon of the normalisation.
            rescale: whether the sum with the residual is divided by sqrt(2).
            rngs: for the parameters.
        """
        if channels % head_dim:
            raise ValueError(
                f"attention_head_dim {head_dim} does not divide the {channels} channels of a block "
                "with attention; the middle block always has it"
            )
        self.heads = channels // head_dim
        self.rescale = rescale
        group_norm = None
        if groups is not None:
            group_norm = GroupNorm(channels, groups, epsilon, rngs=rngs)
        self.group_norm = group_norm

        # diffusers' names: `to_out` is a list there because dropout follows.
        self.to_q = linear(channels, channels, rngs=rngs)
        self.to_k = linear(channels, channels, rngs=rngs)
        self.to_v = linear(channels, channels, rngs=rngs)
        self.to_out = nnx.List([linear(channels, channels, rngs=rngs)])

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[B, H, W, C]` to the same shape."""
        # Pixels are the tokens: [B, H * W, C].
        batch, height, width, channels = x.shape
        pixels = x if self.group_norm is None else self.group_norm(x)
        pixels = pixels.reshape(batch, height * width, channels)

        # Channels are divided among the heads: [B, H * W, heads, head_dim] each.
        q, k, v = (
            f(pixels).reshape(batch, height * width, self.heads, -1)
            for f in (self.to_q, self.to_k, self.to_v)
        )

        # Heads side by side again: [B, H * W, C].
        mixed = attend(q, k, v).reshape(batch, height * width, channels)
        return add_residual(x, self.to_out[0](mixed).reshape(x.shape), self.rescale)


def add_residual(x: jax.Array, h: jax.Array, rescale: bool) -> jax.Array:
    """Returns `x + h`, or the same divided by sqrt(2), which keeps the variance (StyleGAN2)."""
    return (x + h) / math.sqrt(2) if rescale else x + h


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


def activated_conv(
    norm: GroupNorm,
    convolve: nnx.Conv,
    x: jax.Array,
    residual: Callable[[jax.Array], jax.Array] | None = None,
    *residual_of: jax.Array,
) -> jax.Array:
    """Normalises a map, applies a SiLU and convolves it, in strips if it is large.

    Args:
        norm: the normalisation.
        convolve: a 3x3 convolution.
        x: the map, `[B, H, W, C]`.
        residual: a function of pixels, whose result is added; None adds nothing.
        residual_of: the map that it is a function of, `[B, H, W, R]`.
    """
    statistics = norm.statistics(x)

    def compute(x, *others):
        h = convolve(jax.nn.silu(norm.normalise(x, *statistics)))
        return h if residual is None else h + residual(*others)

    return in_strips(compute, x, *residual_of)


class Downsample(nnx.Module):
    """A strided convolution that halves height and width."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs, **options: Any):
        """Makes the convolution for a map of that many channels, with options of `conv`."""
        self.conv = conv(channels, channels, strides=2, rngs=rngs, **options)

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


def check_images(x: jax.Array, size: int, channels: int) -> None:
    """Checks that x is `[B, size, size, channels]`.

    Raises:
        ValueError: if it is not.
    """
    if x.ndim != 4 or x.shape[1:] != (size, size, channels):
        raise ValueError(f"x must be [B, {size}, {size}, {channels}], got {x.shape}")


def space_to_depth(x: jax.Array, patch: int) -> jax.Array:
    """Folds `[B, H, W, C]` into `[B, H/p, W/p, p*p*C]`."""
    # Axes: batch, row of patches, row in a patch, column of patches, column in a patch, channel.
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // patch, patch, width // patch, patch, channels).transpose(
        0, 1, 3, 2, 4, 5
    )
    return x.reshape(batch, height // patch, width // patch, patch * patch * channels)


def depth_to_space(x: jax.Array, patch: int) -> jax.Array:
    """Unfolds `[B, H, W, p*p*C]` into `[B, H*p, W*p, C]`, the inverse of `space_to_depth`."""
    # The same transposition as there: it swaps two axes, so it is its own inverse.
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height, width, patch, patch, channels // patch**2).transpose(
        0, 1, 3, 2, 4, 5
    )
    return x.reshape(batch, height * patch, width * patch, channels // patch**2)

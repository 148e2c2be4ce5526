"""Convolutions, in the form that is fast where they run.

On CPUs, XLA's convolutions take longer than PyTorch's. Those of 3x3 pixels, which networks spend
most of their time in, are therefore made of products of matrices there. On other devices, and for
other kernels, they are XLA's.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from cmjax.arrays import is_symbolic
from cmjax.models import amx, winograd
from cmjax.models.conv_in_loops import CHANNELS_LAST, Window, convolve, tangent

# On CPUs, the number of pixels from which each form is the fastest, and the fewest channels for
# which it pays (docs/performance.md). The number of samples must not decide: a sample would be
# rounded in other ways in other batches.
PIXELS_OF_LARGE_TILES = 28 * 28
PIXELS_OF_SMALL_TILES = 12 * 12
CHANNELS_OF_TILES = 32
CHANNELS_OF_COLUMNS = 256

# Options of `conv_general_dilated` that the convolutions here do not have, with their defaults.
PLAIN = {
    "feature_group_count": 1,
    "batch_group_count": 1,
    "preferred_element_type": None,
    "out_sharding": None,
}

# Sequences with channels last, [B, L, C] and [length, C, O].
SEQUENCES = ("NWC", "WIO", "NWC")

# Each pixel by itself, and 3x3 pixels with a padding of one pixel.
ONE_PIXEL = [Window(stride=1, before=0, after=0)] * 2
PADDED = [Window(stride=1, before=1, after=1)] * 2


def convolution(
    x: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: Any,
    **options: Any,
) -> jax.Array:
    """Convolves channels-last maps or sequences; a `conv_general_dilated` for Flax's layers.

    A kernel of one pixel is a product of matrices. On CPUs so are kernels of 3x3 pixels, with
    stride 1 and a padding of one pixel. With at least 32 channels in and out, maps of at least
    28 * 28 pixels take Winograd's F(4x4, 3x3), and those of at least 12 * 12 pixels F(2x2, 3x3).
    Smaller ones, with at least 256 channels, are one product over the neighbourhoods of all pixels
    (im2col). In bfloat16, CPUs with AMX take nine products (`cmjax.models.amx`) from 128 channels
    on. Maps of symbolic sizes (`jax.export`) are convolved by XLA. The output differs by
    about 3e-6 of its standard deviation from XLA's in float32. Where it is differentiated, it and
    its derivatives, of any order and in both modes, are XLA's.

    Args:
        x: `[B, H, W, C]`, or `[B, L, C]`.
        kernel: `[height, width, C / groups, O]`, or `[length, C / groups, O]`, of the same dtype.
        strides: of the rows and columns.
        padding: pixels before and after, for each, or a word that `jax.lax` knows.
        options: of `jax.lax.conv_general_dilated`.

    Returns:
        The output, `[B, H', W', O]` or `[B, L', O]`, in the dtype of `x`, or the one that the
        options name.
    """
    # Groups, other types of the output, other layouts and numbers of axes are for XLA.
    options = {"dimension_numbers": CHANNELS_LAST, **options}
    if not _is_plain(x, kernel, options):
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, **options)

    num_axes = x.ndim - 2
    spread = tuple(options.get("lhs_dilation") or (1,) * num_axes)
    dilation = tuple(options.get("rhs_dilation") or (1,) * num_axes)
    if isinstance(padding, str):
        # JAX knows no word for transposed convolutions, and no number where the size is a symbol.
        if set(spread) != {1} or any(map(is_symbolic, x.shape[1:-1])):
            return jax.lax.conv_general_dilated(x, kernel, strides, padding, **options)
        padding = _in_pixels(padding, x, kernel, strides, dilation)

    # A sequence is a map of one row.
    if num_axes == 1:
        out = convolution(
            x[:, None],
            kernel[None],
            (1, *strides),
            ((0, 0), *padding),
            lhs_dilation=(1, *spread),
            rhs_dilation=(1, *dilation),
            precision=options.get("precision"),
        )
        return out[:, 0]

    size = kernel.shape[:2]
    windows = []
    for stride, (before, after), *others in zip(
        strides, padding, spread, dilation, strict=True
    ):
        windows.append(Window(stride, before, after, *others))

    if size == (1, 1) and windows == ONE_PIXEL:
        return product_of_matrices(x, kernel[0, 0])
    if size == (3, 3) and windows == PADDED and min(kernel.shape[2:]) >= CHANNELS_OF_TILES:
        return conv3x3(x, kernel)
    return convolve(x, kernel, windows, options.get("precision"))


def _in_pixels(word, x, kernel, strides, dilation):
    """Returns the padding before and after, of each axis, that a word such as "SAME" stands for."""
    # With holes in between, a kernel of k pixels covers (k - 1) * dilation + 1.
    sizes = kernel.shape[:-2]
    covered = [(k - 1) * holes + 1 for k, holes in zip(sizes, dilation, strict=True)]
    return jax.lax.padtype_to_pads(x.shape[1:-1], covered, strides, word)


def _is_plain(x, kernel, options):
    """Whether channels are last, along one or two axes of pixels, without further options."""
    if x.ndim not in (3, 4) or kernel.ndim != x.ndim:
        return False
    channels_last = CHANNELS_LAST if x.ndim == 4 else SEQUENCES
    own, given = (
        jax.lax.conv_dimension_numbers(x.shape, kernel.shape, layouts)
        for layouts in (channels_last, options["dimension_numbers"])
    )
    return own == given and all(
        options.get(name, value) == value for name, value in PLAIN.items()
    )


def product_of_matrices(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Returns `x @ kernel`, of `[..., I]` and `[I, O]`, as one product of two matrices.

    On CPUs, XLA is slow at the gradients of a batch of products, and quick at those of one product.
    """
    rows = x.reshape(-1, x.shape[-1])
    return amx.matmul(rows, kernel).reshape(*x.shape[:-1], kernel.shape[-1])


@jax.custom_jvp
def conv3x3(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves `[B, H, W, C]`, padded by one pixel, with `[3, 3, C, O]` to `[B, H, W, O]`."""
    return jax.lax.platform_dependent(x, kernel, cpu=_on_cpu, default=_by_xla)


@functools.partial(conv3x3.defjvp, symbolic_zeros=True)
def _conv3x3_jvp(primals, tangents):
    # The output is XLA's as well, on CPUs too: training steps give the compiler an option with
    # which its convolutions are as fast as the other forms (docs/performance.md).
    return _by_xla(*primals), tangent(primals, tangents, PADDED)


def _by_xla(x, kernel):
    return convolve(x, kernel, PADDED)


@jax.custom_batching.custom_vmap
def _on_cpu(x, kernel):
    """Convolves by the fastest form for the size of the map, with sums in float32 at least."""
    dtype = x.dtype
    height, width = x.shape[1:3]
    fewest_channels = min(kernel.shape[2:])
    known = not is_symbolic(height) and not is_symbolic(width)
    if known and amx.serves(dtype) and fewest_channels >= amx.CHANNELS:
        return amx.conv3x3(x, kernel)

    # Transforms of 16 bits would lose what they cancel; a CPU computes them in float32 anyway.
    if jnp.finfo(dtype).bits < 32:
        x = x.astype(jnp.float32)
        kernel = kernel.astype(jnp.float32)
    if not known:
        return _by_xla(x, kernel).astype(dtype)
    form = FORMS[form_on_cpus(height * width, fewest_channels)]
    return form(x, kernel).astype(dtype)


def form_on_cpus(pixels: int, channels: int) -> str:
    """Returns the name in `FORMS` of the form that is the fastest on CPUs.

    Args:
        pixels: of the map.
        channels: in or out, whichever are fewer.
    """
    if pixels >= PIXELS_OF_LARGE_TILES and channels >= CHANNELS_OF_TILES:
        return "F4"
    if pixels >= PIXELS_OF_SMALL_TILES and channels >= CHANNELS_OF_TILES:
        return "F2"
    return "im2col" if channels >= CHANNELS_OF_COLUMNS else "XLA"


@_on_cpu.def_vmap
def _on_cpu_of_many(axis_size, in_batched, x, kernel):
    """Convolves many batches: as one if the kernel is the same for all, else by XLA.

    Returns:
        The output, and whether it has the mapped axis in front.
    """
    x_batched, kernel_batched = in_batched
    if kernel_batched:
        axes = tuple(0 if batched else None for batched in in_batched)
        return jax.vmap(_by_xla, axes)(x, kernel), True

    # Only x is mapped, [N, B, H, W, C]: the batches are joined to one, [N * B, H, W, C].
    batch = x.shape[1]
    joined = x.reshape(axis_size * batch, *x.shape[2:])
    out = _on_cpu(joined, kernel)
    return out.reshape(axis_size, batch, *out.shape[1:]), x_batched


def im2col(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves as one product of the 3x3 neighbourhoods of all pixels, `[B H W, 9 C]`.

    Args:
        x: `[B, H, W, C]`, padded here by one pixel.
        kernel: `[3, 3, C, O]`.

    Returns:
        The output, `[B, H, W, O]`.
    """
    # The neighbour of every pixel at each place of the kernel, row by row as the kernel has them.
    height, width = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    neighbours = []
    for i in range(3):
        for j in range(3):
            neighbours.append(padded[:, i : i + height, j : j + width])

    # One product, [B H W, 9 C] times [9 C, O].
    neighbourhoods = jnp.concatenate(neighbours, axis=-1)
    matrix = kernel.reshape(-1, kernel.shape[-1])
    return product_of_matrices(neighbourhoods, matrix)


# The forms of a 3x3 convolution that is padded by one pixel, with its kernel.
FORMS = {
    "XLA": _by_xla,
    "F2": functools.partial(winograd.convolve, 2),
    "F4": functools.partial(winograd.convolve, 4),
    "im2col": im2col,
}

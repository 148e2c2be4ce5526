"""XLA's convolution, with derivatives that are fast on CPUs within loops, too.

On CPUs XLA has a fast convolution of maps `[B, H, W, C]` with kernels `[h, w, C, O]`. It transposes
other layouts to this one, but not within `jax.lax.scan`, `while_loop` and `cond`: there they take
up to 50 times as long. The derivatives of a convolution are convolutions of other layouts. Here the
program itself transposes them, on CPUs. Elsewhere it is that of `jax.lax.conv_general_dilated`.

Tangents are computed by a primitive of its own: `jax.custom_vjp` would give up derivatives of
forward mode, and `jax.custom_jvp` alone leaves the transposes to `jax.lax`. Where several kernels
are applied at once, by `jax.vmap`, as in a gradient per sample, they are those of `jax.lax`.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from cmjax.meshes import explicit_sharding, pvaried_alike

# Layouts of the map, the kernel and the output, in the letters of `dimension_numbers`.
CHANNELS_LAST = ("NHWC", "HWIO", "NHWC")


class Window(NamedTuple):
    """How the kernel moves along one axis of the map, rows or columns.

    `out[o]` is the sum of `x[i] kernel[k]` over all pixels that meet there: those with
    `o * stride + k * dilation = before + i * spread`.

    Attributes:
        stride: pixels from one place of the kernel to the next.
        before: zeros before the map; negative to cut pixels off.
        after: zeros after the map.
        spread: distance of the map's pixels, with zeros in between (`lhs_dilation`).
        dilation: distance of the kernel's pixels (`rhs_dilation`).
    """

    stride: int
    before: int
    after: int
    spread: int = 1
    dilation: int = 1

    def reach(self, of_kernel: int) -> int:
        """Returns the distance of the first and the last pixel of the kernel."""
        return (of_kernel - 1) * self.dilation

    def room(self, of_map: int, of_kernel: int) -> int:
        """Returns how far the kernel can move: the distance of its first and its last place."""
        padded = (of_map - 1) * self.spread + 1 + self.before + self.after
        return padded - 1 - self.reach(of_kernel)


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    windows: Sequence[Window],
    precision: Any = None,
) -> jax.Array:
    """Convolves `[B, H, W, C]` with `[h, w, C, O]`, of the same dtype, to `[B, H', W', O]`.

    Args:
        x: the map.
        kernel: of the convolution.
        windows: how the kernel moves along rows and along columns.
        precision: of the products, as in `jax.lax.conv_general_dilated`.

    Raises:
        TypeError, ValueError: of `jax.lax.conv_general_dilated`, if shapes or dtypes do not fit.
    """
    return _convolve(tuple(windows), precision, x, kernel)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _convolve(windows, precision, x, kernel):
    return _by_xla(x, kernel, layouts=CHANNELS_LAST, windows=windows, precision=precision)


@functools.partial(_convolve.defjvp, symbolic_zeros=True)
def _convolve_jvp(windows, precision, primals, tangents):
    out = _convolve(windows, precision, *primals)
    return out, tangent(primals, tangents, windows, precision)


def tangent(
    primals: Sequence[jax.Array],
    tangents: Sequence[Any],
    windows: Sequence[Window],
    precision: Any = None,
) -> jax.Array:
    """Returns the tangent of `convolve` along those of the map and the kernel.

    Args:
        primals: the map and the kernel.
        tangents: of both; at most one is a `jax.custom_derivatives.SymbolicZero`.
        windows: as for `convolve`.
        precision: as for `convolve`.
    """
    x, kernel = primals
    x_tangent, kernel_tangent = tangents

    # A convolution is linear in the map and in the kernel. Zeros are not worth a convolution.
    terms = []
    if not isinstance(x_tangent, SymbolicZero):
        terms.append(_bilinear(x_tangent, kernel, windows, precision))
    if not isinstance(kernel_tangent, SymbolicZero):
        terms.append(_bilinear(x, kernel_tangent, windows, precision))
    return functools.reduce(jnp.add, terms)


def _bilinear(x, kernel, windows, precision):
    """The convolution as the primitive, whose transposes are fast within loops."""
    # Primitives are lowered later, outside of any `jax.default_matmul_precision`.
    if precision is None:
        precision = jax.config.jax_default_matmul_precision  # pyright: ignore
    options = {
        "layouts": CHANNELS_LAST,
        "windows": tuple(windows),
        "precision": precision,
    }

    # Along explicit axes of a mesh the types of derivatives say how they are divided, which
    # `jax.lax` knows; and it knows what a kernel larger than the map comes to.
    shape = jax.eval_shape(functools.partial(_by_xla, **options), x, kernel).shape
    is_explicit = any(explicit_sharding(array) is not None for array in (x, kernel))
    if is_explicit or 0 in shape:
        return _by_xla(x, kernel, **options)

    # Inside of `jax.shard_map` primitives do not adjust arrays to each other.
    x, kernel = pvaried_alike((x, kernel))
    return convolution_p.bind(x, kernel, **options)


def _by_xla(x, kernel, *, layouts, windows, precision):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        [window.stride for window in windows],
        [(window.before, window.after) for window in windows],
        lhs_dilation=[window.spread for window in windows],
        rhs_dilation=[window.dilation for window in windows],
        dimension_numbers=layouts,
        precision=precision,
    )


def _on_cpu(x, kernel, *, layouts, **options):
    """The same by transposes, and a convolution of the layout that is fast within loops."""
    of_map, of_kernel, of_out = layouts
    x = _relaid(x, of_map, CHANNELS_LAST[0])
    kernel = _relaid(kernel, of_kernel, CHANNELS_LAST[1])
    out = _by_xla(x, kernel, layouts=CHANNELS_LAST, **options)
    return _relaid(out, CHANNELS_LAST[2], of_out)


def _relaid(array, layout, wanted):
    """Transposes an array from one layout to another."""
    return jnp.transpose(array, [layout.index(axis) for axis in wanted])


def _out(x, kernel, *, layouts, windows, precision):
    """The type of the output."""
    of_map, of_kernel, of_out = layouts
    sizes = {
        "N": x.shape[of_map.index("N")],
        "C": kernel.shape[of_kernel.index("O")],
    }
    for axis, window in zip("HW", windows, strict=True):
        room = window.room(x.shape[of_map.index(axis)], kernel.shape[of_kernel.index(axis)])
        sizes[axis] = room // window.stride + 1
    return x.update(shape=tuple(sizes[axis] for axis in of_out))


def _transpose_by_map(g, x, kernel, *, layouts, windows, precision):
    """Returns the cotangent of the map, for the cotangent `g` of the output."""
    of_map, of_kernel, of_out = layouts

    # Every pixel of g goes back to where the kernel lay, x_bar[i] = sum of g[o] kernel[k] over the
    # pixels that met (see `Window`): g, spread by the stride, is convolved with the mirrored
    # kernel. Pixels at the end that no place of the kernel covered get zeros.
    back = []
    for axis, window in zip("HW", windows, strict=True):
        size = kernel.shape[of_kernel.index(axis)]
        reach = window.reach(size)
        uncovered = window.room(x.aval.shape[of_map.index(axis)], size) % window.stride
        back.append(
            Window(
                stride=window.spread,
                before=reach - window.before,
                after=reach - window.after + uncovered,
                spread=window.stride,
                dilation=window.dilation,
            )
        )
    mirrored = jax.lax.rev(kernel, (of_kernel.index("H"), of_kernel.index("W")))
    exchanged = _renamed(of_kernel, {"I": "O", "O": "I"})
    return convolution_p.bind(
        *pvaried_alike((g, mirrored)),
        layouts=(of_out, exchanged, of_map),
        windows=tuple(back),
        precision=precision,
    )


def _transpose_by_kernel(g, x, kernel, *, layouts, windows, precision):
    """Returns the cotangent of the kernel, for the cotangent `g` of the output."""
    of_map, of_kernel, of_out = layouts

    # A pixel of the kernel met the pixels of the map that are a stride apart, kernel_bar[k] = sum
    # of g[o] x[i] over the pixels that met (see `Window`): g is the kernel, its pixels a stride
    # apart, and lies at as many places as the kernel has pixels. The sum is over the batch, too,
    # which takes the place of the channels.
    along = []
    for axis, window in zip("HW", windows, strict=True):
        size = kernel.aval.shape[of_kernel.index(axis)]
        uncovered = window.room(x.shape[of_map.index(axis)], size) % window.stride
        along.append(
            Window(
                stride=window.dilation,
                before=window.before,
                after=window.after - uncovered,
                spread=window.spread,
                dilation=window.stride,
            )
        )
    return convolution_p.bind(
        *pvaried_alike((x, g)),
        layouts=(
            _renamed(of_map, {"N": "C", "C": "N"}),
            _renamed(of_out, {"N": "I", "C": "O"}),
            _renamed(of_kernel, {"I": "N", "O": "C"}),
        ),
        windows=tuple(along),
        precision=precision,
    )


def _renamed(layout, names):
    return "".join(names.get(axis, axis) for axis in layout)


def _batched(arrays, axes, *, layouts, **options):
    """Convolves many maps or kernels at once; returns the outputs, and their axis of many."""
    x, kernel = arrays
    x_axis, kernel_axis = axes
    if kernel_axis is not None:
        many = jax.vmap(functools.partial(_by_xla, layouts=layouts, **options), axes)
        return many(x, kernel), 0

    # Many maps and one kernel: the maps are joined along their batches, and parted again.
    batch = layouts[0].index("N")
    x = jnp.moveaxis(x, x_axis, batch)
    parts = x.shape[batch : batch + 2]
    joined = jax.lax.collapse(x, batch, batch + 2)
    out = convolution_p.bind(joined, kernel, layouts=layouts, **options)
    batch = layouts[2].index("N")
    return out.reshape(*out.shape[:batch], *parts, *out.shape[batch + 1 :]), batch


convolution_p = Primitive("convolution_in_loops")
convolution_p.def_impl(_by_xla)
convolution_p.def_abstract_eval(_out)
ad.defbilinear(convolution_p, _transpose_by_map, _transpose_by_kernel)
batching.primitive_batchers[convolution_p] = _batched
mlir.register_lowering(convolution_p, mlir.lower_fun(_by_xla, multiple_results=False))
mlir.register_lowering(
    convolution_p, mlir.lower_fun(_on_cpu, multiple_results=False), platform="cpu"
)

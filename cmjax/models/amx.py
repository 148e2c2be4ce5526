"""Products in bfloat16 on CPUs that have a unit for them, Intel's AMX.

XLA uses the unit only if the products are summed and returned in float32. Then they are 2.5 to 5
times as fast as those of float32, and otherwise about as slow (docs/performance.md).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from cmjax.arrays import is_symbolic
from cmjax.system import has_amx

# The fewest channels, in or out, for which a convolution is faster with the unit.
CHANNELS = 128

# Maps of so many pixels are convolved sample by sample, so that the sums stay in the cache.
PIXELS_AT_ONCE = 28 * 28


def serves(dtype: Any) -> bool:
    """Returns whether products of this dtype are computed with AMX on this machine's CPU."""
    return dtype == jnp.bfloat16 and has_amx()


def matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns `a @ b`, of `[..., M, K]` and `[..., K, N]`, both of one dtype, in that dtype.

    Where it is differentiated, the derivatives are those of `a @ b`.
    """
    return _matmul(a, b) if serves(a.dtype) else a @ b


@jax.custom_jvp
def _matmul(a, b):
    return jax.lax.platform_dependent(a, b, cpu=_summed_in_float32, default=jnp.matmul)


@_matmul.defjvp
def _matmul_jvp(primals, tangents):
    return jax.jvp(jnp.matmul, primals, tangents)


def _summed_in_float32(a, b):
    """Returns the product, summed in float32, in the dtype of the factors."""
    # XLA does not use the unit for a single row, such as the embedding of the time of one sample.
    rows = a.shape[-2]
    if not is_symbolic(rows) and rows == 1:
        a = jnp.concatenate([a, a], axis=-2)
    product = jnp.matmul(a, b, preferred_element_type=jnp.float32)
    return product[..., :rows, :].astype(b.dtype)


def conv3x3(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves bfloat16 maps by nine products, one for each pixel of the kernel.

    Args:
        x: `[B, H, W, C]`, padded here by one pixel.
        kernel: `[3, 3, C, O]`.

    Returns:
        The output, `[B, H, W, O]`, in bfloat16.
    """
    batch, height, width = x.shape[:3]
    # All at once also where the number of samples is a symbol, which `map` does not take.
    if is_symbolic(batch) or batch == 1 or height * width < PIXELS_AT_ONCE:
        return _nine_products(x, kernel)
    convolve = functools.partial(_nine_products, kernel=kernel)
    return jax.lax.map(lambda sample: convolve(sample[None])[0], x)


def _nine_products(x, kernel):
    batch, height, width, channels = x.shape
    features = kernel.shape[-1]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))

    # The neighbours of all pixels at each place of the kernel, [B H W, C], times its matrix there,
    # [C, O], summed over the places in float32.
    total = jnp.zeros((batch * height * width, features), jnp.float32)
    for i in range(3):
        for j in range(3):
            neighbours = padded[:, i : i + height, j : j + width].reshape(-1, channels)
            total += jnp.matmul(
                neighbours, kernel[i, j], preferred_element_type=jnp.float32
            )
    return total.reshape(batch, height, width, features).astype(x.dtype)

"""3x3 convolutions with fewer products: Winograd's minimal filtering.

Source: Lavin and Gray 2015, "Fast algorithms for convolutional neural networks", arXiv 1509.09308.
F(m x m, 3 x 3) makes a tile of m x m pixels of the output from m + 2 by m + 2 pixels of the input,
with (m + 2)^2 products for each pair of channels instead of 9 m^2: 16 instead of 36 for m = 2, and
36 instead of 144 for m = 4.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from cmjax.models.strips import never_true

# B^T, G and A^T of the paper for m = 2 (section 4.1) and m = 4 (section 4.3).
INPUT_TRANSFORMS = {
    2: np.array(
        [
            [1, 0, -1, 0],
            [0, 1, 1, 0],
            [0, -1, 1, 0],
            [0, 1, 0, -1],
        ]
    ),
    4: np.array(
        [
            [4, 0, -5, 0, 1, 0],
            [0, -4, -4, 1, 1, 0],
            [0, 4, -4, -1, 1, 0],
            [0, -2, -1, 2, 1, 0],
            [0, 2, -1, -2, 1, 0],
            [0, 4, 0, -5, 0, 1],
        ]
    ),
}
KERNEL_TRANSFORMS = {
    2: np.array(
        [
            [1, 0, 0],
            [1 / 2, 1 / 2, 1 / 2],
            [1 / 2, -1 / 2, 1 / 2],
            [0, 0, 1],
        ]
    ),
    4: np.array(
        [
            [1 / 4, 0, 0],
            [-1 / 6, -1 / 6, -1 / 6],
            [-1 / 6, 1 / 6, -1 / 6],
            [1 / 24, 1 / 12, 1 / 6],
            [1 / 24, -1 / 12, 1 / 6],
            [0, 0, 1],
        ]
    ),
}
OUTPUT_TRANSFORMS = {
    2: np.array(
        [
            [1, 1, 1, 0],
            [0, 1, -1, -1],
        ]
    ),
    4: np.array(
        [
            [1, 1, 1, 1, 1, 0],
            [0, 1, -1, 2, -2, 0],
            [0, 1, 1, 4, 4, 0],
            [0, 1, -1, 8, -8, 1],
        ]
    ),
}


# Jitted for its constants, which then stay inside: a rule of `custom_vmap` refuses those that a
# `cond` under `vmap` passes to it.
@functools.partial(jax.jit, static_argnums=0)
def convolve(m: int, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves a map padded by one pixel on all sides, by F(m x m, 3 x 3).

    Args:
        m: height and width of the tiles of the output, 2 or 4. Rounding grows with it: the output
            is off by about 4e-7 (2) and 3e-6 (4) of its standard deviation in float32.
        x: `[B, H, W, C]`; H and W need not be multiples of m.
        kernel: `[3, 3, C, O]`, of the same dtype.

    Returns:
        The output, `[B, H, W, O]` (equation 12 of the paper).
    """
    batch, height, width, channels = x.shape
    features = kernel.shape[-1]
    rows = -(-height // m)
    columns = -(-width // m)

    # One pixel before, and one behind the last tile.
    below = 1 + rows * m - height
    right = 1 + columns * m - width
    x = jnp.pad(x, ((0, 0), (1, below), (1, right), (0, 0)))
    x = jax.lax.optimization_barrier(x)

    # U = G g G^T for every pair of channels, [(m + 2)^2, C, O].
    u = _transformed_kernel(m, x, kernel)

    # V = B^T d B for every tile d. Tiles overlap by two pixels: pixel i of all tiles is every m-th
    # pixel from i. Along rows, [m + 2, B, rows, W, C], then along columns, [m + 2, m + 2, B, rows,
    # columns, C].
    transform = INPUT_TRANSFORMS[m]
    row_pixels = [x[:, i : below_last(i, rows, m) : m] for i in range(m + 2)]
    v = _combined(transform, row_pixels)
    column_pixels = [v[:, :, :, j : below_last(j, columns, m) : m] for j in range(m + 2)]
    v = _combined(transform, column_pixels)

    # M = sum over channels of U V, [(m + 2)^2, tiles, O].
    v = v.reshape((m + 2) ** 2, batch * rows * columns, channels)
    over_channels = ((2,), (1,))
    one_by_one = ((0,), (0,))
    products = jax.lax.dot_general(v, u, (over_channels, one_by_one))
    products = jax.lax.optimization_barrier(products)
    products = products.reshape(m + 2, m + 2, batch, rows, columns, features)

    # Y = A^T M A. The last two combinations put the pixels of a tile where they belong:
    # [B, rows, m, columns, m, O].
    transform = OUTPUT_TRANSFORMS[m]
    y = _combined(transform, [products[j] for j in range(m + 2)], axis=4)
    y = _combined(transform, [y[i] for i in range(m + 2)], axis=2)
    y = y.reshape(batch, rows * m, columns * m, features)
    return y[:, :height, :width]


def below_last(first: int, tiles: int, m: int) -> int:
    """Returns the end of a slice that takes one pixel of each tile, beginning at `first`."""
    return first + m * (tiles - 1) + 1


def _transformed_kernel(m, x, kernel):
    """Returns G g G^T, `[(m + 2)^2, C, O]`, where the first axis is column by column."""
    # Entry (a, b) is the sum over i, j of G[a, i] G[b, j] g[i, j]: one small product.
    g = KERNEL_TRANSFORMS[m]
    transform = np.einsum("ai,bj->baij", g, g).reshape((m + 2) ** 2, 9)
    transform = jnp.asarray(transform, x.dtype)

    # XLA would transform the kernels of all layers first, and keep them all in memory. It cannot if
    # the transform depends on the input.
    transform = jnp.where(never_true(x[:, 1, 1, 0]), jnp.zeros_like(transform), transform)
    channels, features = kernel.shape[2:]
    product = transform @ kernel.reshape(9, -1)
    return product.reshape(-1, channels, features)


def _combined(transform, arrays, axis=0):
    """Returns the combinations of arrays that the rows of a transform ask for, stacked."""
    combinations = []
    for row in transform:
        terms = [float(c) * array for c, array in zip(row, arrays, strict=True) if c != 0]
        combinations.append(sum(terms[1:], start=terms[0]))

    # Each transform is one pass over memory. Fused into the next one, it would be computed again
    # for each of its rows, and compiled again too.
    return jax.lax.optimization_barrier(jnp.stack(combinations, axis))

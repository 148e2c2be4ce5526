"""Large maps, computed in strips of some rows, which bounds the memory that it takes.

A 3x3 convolution of a map takes several times the map's memory on CPUs, and so do the steps before
it: a normalisation, an activation, a doubling. Of a strip they take little. Nothing is
approximated: each strip has the rows next to it, and normalisations have the statistics of the
whole map.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from cmjax.arrays import is_symbolic

# Numbers of one sample's map, C * H * W, beyond which it is computed in strips, and those of a
# strip. The number of samples must not decide: a sample would be rounded in other ways in other
# batches.
LARGEST_MAP = 256 * 256 * 256
LARGEST_STRIP = 128 * 128 * 256


def in_strips(
    function: Callable[..., jax.Array], *maps: jax.Array, factor: int = 1
) -> jax.Array:
    """Returns `function(*maps)`, computed in strips if the maps are large.

    Args:
        function: from maps to one map `[B, factor * H, factor * W, O]`, each row of which depends
            on its row of the maps and the two next to it: a 3x3 convolution that is padded by one
            pixel, with any functions of single pixels before and after. It may close over arrays.
        maps: `[B, H, W, C]`, of the same height and width.
        factor: 2 for a function that doubles the resolution.
    """
    # Whether a map is large is not known where its height or width is a symbol.
    if any(is_symbolic(size) for size in maps[0].shape[1:]):
        return function(*maps)
    out = jax.eval_shape(function, *maps)
    height = maps[0].shape[1]
    per_sample = max(math.prod(x.shape[1:]) for x in (*maps, out))
    rows = max(1, LARGEST_STRIP * height // max(per_sample, 1))
    if per_sample <= LARGEST_MAP or height <= rows + 2:
        return function(*maps)

    # XLA would share one array of zeros among all results: fill it at the start, keep it to the end
    # and copy it. It cannot if the zero depends on the map.
    zero = jnp.where(never_true(maps[0][:, 0, 0, 0]), 1, 0).astype(out.dtype)
    result = jnp.broadcast_to(zero, out.shape)

    # The last strip ends with the map, and may begin within the one before it.
    def add_strip(i, result):
        first = jnp.minimum(i * rows, height - rows)

        # With the rows above and below. At the ends of the map there is none on one side: the strip
        # then has two more on the other, and its padding is that of the map.
        start = jnp.clip(first - 1, 0, height - rows - 2)
        strips = [jax.lax.dynamic_slice_in_dim(x, start, rows + 2, 1) for x in maps]
        computed = jax.lax.dynamic_slice_in_dim(
            function(*strips), factor * (first - start), factor * rows, 1
        )
        return jax.lax.dynamic_update_slice_in_dim(result, computed, factor * first, 1)

    return jax.lax.fori_loop(0, -(-height // rows), add_strip, result)


def never_true(values: jax.Array) -> jax.Array:
    """Returns False, bool[], in a way that XLA does not see: a comparison of values `[B]`."""
    # A sum also exists where there are no samples.
    total = jnp.sum(values)
    return (total > 1) & (total < -1)

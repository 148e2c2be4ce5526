"""Averages of a training step: of gradients over parts of a batch, and of parameters over steps."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp


def mean_over_parts(
    gradient: Callable[..., Any], key: jax.Array, batch: Mapping[str, Any], count: int
) -> Any:
    """Returns the mean of what a function returns for the parts of a batch.

    Args:
        gradient: `(key, part) -> pytree of arrays`.
        key: PRNG key, of which each part gets its own.
        batch: arrays `[B, ...]`.
        count: number of parts, which divides B.
    """

    # Arrays [count, B / count, ...]. A part is every count-th sample: each device has some of its
    # own samples in each part. Parts of neighbours would move samples between devices.
    def in_parts(array):
        rows = array.reshape(-1, count, *array.shape[1:])
        return rows.swapaxes(0, 1)

    parts = jax.tree.map(in_parts, dict(batch))

    # One part after the other in a `scan`, so that only one part's activations are in memory.
    def add_part(total, part):
        index, batch = part
        result = gradient(jax.random.fold_in(key, index), batch)
        total = jax.tree.map(lambda so_far, added: so_far + added / count, total, result)
        return total, None

    # Sums start from zeros of the shapes that a part returns.
    first = jax.tree.map(lambda a: a[0], parts)
    shapes = jax.eval_shape(gradient, key, first)
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, jnp.float32), shapes)
    mean, _ = jax.lax.scan(add_part, zeros, (jnp.arange(count), parts))
    return mean


def moved_towards(average: Any, params: Any, rate: jax.Array) -> Any:
    """Returns a moving average, moved towards the parameters by the share `rate`, f32[]."""

    # average + rate (params - average): parameters that are not trained stay as they are to the
    # last bit, which (1 - rate) average + rate params would not promise.
    def moved(old, new):
        between = old + rate * (new - old)
        return between.astype(old.dtype)

    return jax.tree.map(moved, average, params)

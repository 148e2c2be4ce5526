"""Averages of a training step: of gradients over parts of a batch, and of parameters over steps."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from cmjax.arrays import at_least_float32, is_floating


def mean_over_parts(
    gradient: Callable[..., Any], key: jax.Array, batch: Mapping[str, Any], count: int
) -> Any:
    """Returns the mean of what a function returns for the parts of a batch.

    Args:
        gradient: `(key, part) -> pytree of arrays`.
        key: PRNG key, of which each part gets its own.
        batch: arrays `[B, ...]`.
        count: number of parts, which divides B.

    Returns:
        Floats in their own dtypes, summed in float32 at least; means of other numbers in float32.
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

        # Metrics may be numbers of Python.
        def add(so_far, added):
            return so_far + jnp.asarray(added, so_far.dtype) / count

        return jax.tree.map(add, total, result), None

    # Sums start from zeros of the shapes that a part returns.
    first = jax.tree.map(lambda a: a[0], parts)
    shapes = jax.eval_shape(gradient, key, first)
    zeros = jax.tree.map(lambda a: at_least_float32(jnp.zeros(a.shape, a.dtype)), shapes)
    mean, _ = jax.lax.scan(add_part, zeros, (jnp.arange(count), parts))

    # In the dtypes of a whole batch: the state of an optimizer would take over any others.
    return jax.tree.map(
        lambda a, like: a.astype(like.dtype) if is_floating(like.dtype) else a, mean, shapes
    )


def averaged(params: Any) -> Any:
    """Returns parameters as a moving average holds them: in float32, or in float64 if they are.

    In half precision an average would stand still: the small share that it moves by at each step
    is rounded away.
    """
    return jax.tree.map(at_least_float32, params)


def moved_towards(average: Any, params: Any, rate: jax.Array) -> Any:
    """Returns a moving average, moved towards the parameters by the share `rate`, f32[]."""

    # average + rate (params - average): parameters that are not trained stay as they are to the
    # last bit, which (1 - rate) average + rate params would not promise.
    def moved(old, new):
        return old + rate.astype(old.dtype) * (new.astype(old.dtype) - old)

    return jax.tree.map(moved, average, params)

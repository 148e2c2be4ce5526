"""Helpers for arrays that the whole package stands on."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

ApplyFn = Callable[..., Any]  # a network: (params, x, t, **cond) -> model_output


def combine(*terms: tuple[Any, jax.Array]) -> jax.Array:
    """Returns the sum of `coefficient * array` over the terms.

    The sum is computed in float32, or in float64 if the first array is float64, and returned in
    the dtype of the first array.

    Args:
        *terms: pairs of a coefficient, a scalar or `[B]`, and an array `[B, ...]`. Coefficients are
            aligned with the leading axis of their array.
    """
    dtype = jnp.float64 if terms[0][1].dtype == jnp.float64 else jnp.float32

    def scaled(coefficient, array):
        coefficient = jnp.asarray(coefficient).astype(dtype)
        trailing = (1,) * (array.ndim - coefficient.ndim)
        return coefficient.reshape(coefficient.shape + trailing) * array.astype(dtype)

    total = scaled(*terms[0])
    for term in terms[1:]:
        total = total + scaled(*term)
    return total.astype(terms[0][1].dtype)


def concrete(value: Any) -> np.ndarray | None:
    """Returns `value` as a NumPy array, or None if it is only known when the program runs."""
    return None if isinstance(value, Tracer) else np.asarray(value)


def as_pytree(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a plain function as a pytree without leaves, which jitted functions can be given.

    Functions that are pytrees already, such as `cmjax.constraints` makes, are returned as they are.
    """
    leaves = jax.tree.leaves(function)
    is_plain = len(leaves) == 1 and leaves[0] is function
    return jax.tree_util.Partial(function) if is_plain else function


def check_shapes(**arrays: jax.Array) -> None:
    """Raises ValueError, with names and shapes, unless all arrays have the same shape."""
    shapes = {name: tuple(np.shape(array)) for name, array in arrays.items()}
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"arrays must have the same shape, got {listed}")

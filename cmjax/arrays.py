"""Helpers for arrays that the whole package stands on."""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

ApplyFn = Callable[..., Any]  # a network: (params, x, t, **cond) -> model_output


def combine(*terms: tuple[Any, jax.Array]) -> jax.Array:
    """Returns the sum of `coefficient * array`, computed in at least float32, in the first array's dtype.

    Coefficients are scalars or `[B]`; they are aligned with the leading axis of the arrays.
    """
    dtype = jnp.float64 if terms[0][1].dtype == jnp.float64 else jnp.float32

    def scaled(coefficient, array):
        coefficient = jnp.asarray(coefficient).astype(dtype)
        return coefficient.reshape(
            coefficient.shape + (1,) * (array.ndim - coefficient.ndim)
        ) * array.astype(dtype)

    total = scaled(*terms[0])
    for term in terms[1:]:
        total = total + scaled(*term)
    return total.astype(terms[0][1].dtype)


def concrete(value: Any) -> np.ndarray | None:
    """Returns `value` as a NumPy array, or None if it is only known when the program runs."""
    return None if isinstance(value, Tracer) else np.asarray(value)


def check_shapes(**arrays: jax.Array) -> None:
    """Raises ValueError, with names and shapes, unless all arrays have the same shape."""
    try:
        chex.assert_equal_shape(list(arrays.values()))
    except AssertionError:
        shapes = ", ".join(f"{name} {tuple(array.shape)}" for name, array in arrays.items())
        raise ValueError(f"arrays must have the same shape, got {shapes}") from None

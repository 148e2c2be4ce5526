"""Array helpers that the whole package uses."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend.core import get_opaque_trace_state

ApplyFn = Callable[..., Any]  # a network: (params, x, t, **cond) -> model_output


def combine(*terms: tuple[Any, jax.Array]) -> jax.Array:
    """Returns the sum of `coefficient * array` over the terms.

    The sum is computed in float32, or in float64 if the first array is float64, and returned in
    the dtype of the first array.

    Args:
        *terms: pairs of a coefficient, a scalar or `[B]`, and an array `[B, ...]`. Coefficients are
            aligned with the leading axis of their array.
    """
    # Half precision would round each term; one sum in float32 is rounded once, at the end.
    dtype = jnp.float64 if terms[0][1].dtype == jnp.float64 else jnp.float32

    def scaled(coefficient, array):
        coefficient = jnp.asarray(coefficient).astype(dtype)

        # [B] -> [B, 1, ...], since NumPy's broadcasting would align it with the last axis.
        trailing = (1,) * (array.ndim - coefficient.ndim)
        return coefficient.reshape(coefficient.shape + trailing) * array.astype(dtype)

    # From the first term on: a sum that starts at 0 would turn -0 into 0.
    total = scaled(*terms[0])
    for term in terms[1:]:
        total = total + scaled(*term)
    return total.astype(terms[0][1].dtype)


def at_least_float32(x: jax.Array) -> jax.Array:
    """Casts to float32, unless the array is float64."""
    return x.astype(jnp.float64 if x.dtype == jnp.float64 else jnp.float32)


def concrete(value: Any) -> np.ndarray | None:
    """Returns `value` as a NumPy array, or None if it is traced: its value is not known yet."""
    return None if isinstance(value, Tracer) else np.asarray(value)


with jax.ensure_compile_time_eval():
    _EAGER = get_opaque_trace_state(convention="flax")


def is_tracing() -> bool:
    """Whether JAX is tracing the caller, under `jit`, `vmap`, `grad` and the like."""
    return get_opaque_trace_state(convention="flax") != _EAGER


def hashable(*values: Any) -> bool:
    """Whether all values can be part of a cache's key."""
    try:
        hash(values)
    except TypeError:
        return False
    return True


def check_floating(name: str, dtype: Any) -> None:
    """Raises ValueError, naming the argument, unless a dtype is one of floating-point numbers."""
    if not jnp.issubdtype(jnp.dtype(dtype), jnp.floating):
        raise ValueError(f"{name} must be a floating-point dtype, got {jnp.dtype(dtype)}")


def as_pytree(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a plain function as a pytree without leaves, to be an argument of jitted functions.

    Functions that are pytrees already, such as those of `cmjax.constraints`, stay as they are.
    """
    # An object of a type that is no pytree, such as a function, is its own single leaf.
    leaves = jax.tree.leaves(function)
    is_plain = len(leaves) == 1 and leaves[0] is function
    return jax.tree_util.Partial(function) if is_plain else function


def check_shapes(**arrays: jax.Array) -> None:
    """Raises ValueError, with names and shapes, unless all arrays have the same shape."""
    shapes = {name: tuple(np.shape(array)) for name, array in arrays.items()}
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"arrays must have the same shape, got {listed}")

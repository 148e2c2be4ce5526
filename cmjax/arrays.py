"""Array helpers that the whole package uses."""

from collections.abc import Callable
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from cmjax.configs import shown

# Samples without negative values may be as large as this; larger ones must be pixels.
_BRIGHTEST = 8

_FLOAT32 = np.dtype(np.float32)

# A network: (params, x, t, **cond) -> model_output.
ApplyFn = Callable[..., Any]


def weighted_sum(*terms: tuple[Any, jax.Array]) -> jax.Array:
    """Returns the sum of `coefficient * array` over the terms.

    The sum is computed in float32, or in float64 if the first array is float64, and returned in
    the dtype of the first array.

    Args:
        *terms: pairs of a coefficient, a scalar or `[B]`, and an array `[B, ...]`. Coefficients are
            aligned with the leading axis of their array.
    """
    # Half precision would round each term; one sum in float32 is rounded once, at the end.
    dtype = jnp.float64 if terms[0][1].dtype == jnp.float64 else jnp.float32

    def term(coefficient, array):
        coefficient = jnp.asarray(coefficient).astype(dtype)

        # [B] -> [B, 1, ...], since NumPy's broadcasting would align it with the last axis.
        trailing = (1,) * (array.ndim - coefficient.ndim)
        return coefficient.reshape(coefficient.shape + trailing) * array.astype(dtype)

    # The sum starts with the first term. A start at 0 would turn -0 into 0.
    total = term(*terms[0])
    for coefficient, array in terms[1:]:
        total = total + term(coefficient, array)
    return total.astype(terms[0][1].dtype)


def scaled(coefficient: Any, array: jax.Array) -> jax.Array:
    """Returns `coefficient * array`, computed and returned as a `weighted_sum` of one term."""
    return weighted_sum((coefficient, array))


def at_least_float32(x: jax.Array) -> jax.Array:
    """Casts to float32, unless the array is float64."""
    return x.astype(jnp.float64 if x.dtype == jnp.float64 else jnp.float32)


def safe_sqrt(square: jax.Array) -> jax.Array:
    """Returns the square root of numbers: 0 where they are 0 or less, NaN where they are NaN.

    Its gradient at 0 is 0, too: that of `jnp.sqrt` there is infinite, and times 0 it is NaN.
    """
    # NaN is compared as what it is not: as "not positive" it would become 0, a perfect loss.
    is_least = square <= 0
    return jnp.where(is_least, 0, jnp.sqrt(jnp.where(is_least, 1, square)))


def inverse_or_zero(values: Any) -> jax.Array:
    """Returns `1 / values`, and 0 where they are 0, with finite gradients there too."""
    is_known = jnp.asarray(values) != 0
    return jnp.where(is_known, 1 / jnp.where(is_known, values, 1), 0)


def along_batch(values: jax.Array, ndim: int) -> jax.Array:
    """Returns `[B]` as `[B, 1, ..., 1]` with that many axes, one value for each sample."""
    return values.reshape((-1,) + (1,) * (ndim - 1))


def along_channels(values: jax.Array, ndim: int) -> jax.Array:
    """Returns `[C]` as `[1, ..., 1, C]` with that many axes, one value for each channel."""
    return values.reshape((1,) * (ndim - 1) + (-1,))


def add_to_digest(digest: Any, header: str, array: Any) -> None:
    """Adds a text and the values of an array to a digest of `hashlib`.

    Args:
        digest: the digest.
        header: what tells arrays of equal bytes from each other, such as dtype and shape.
        array: an array of NumPy or JAX.
    """
    digest.update(header.encode())

    # As bytes, since bfloat16 arrays do not support Python's buffer protocol.
    values = np.ascontiguousarray(array).reshape(-1)
    digest.update(values.view(np.uint8).data)


def concrete(value: Any) -> np.ndarray | None:
    """Returns `value` as a NumPy array, or None if it is traced: its value is not known yet."""
    return None if isinstance(value, Tracer) else np.asarray(value)


def is_symbolic(size: Any) -> bool:
    """Whether the size of an axis is a symbol: `jax.export` then traces for any size."""
    return jax.export.is_symbolic_dim(size)


def is_floating(dtype: Any) -> bool:
    """Whether a dtype is one that samples may have: floating-point, of 16, 32 or 64 bits."""
    # Dtypes of 8 bits and fewer are too coarse for noise, and some have no negative numbers.
    return jnp.issubdtype(dtype, jnp.floating) and np.dtype(dtype).itemsize in (2, 4, 8)


def floating_dtype(name: str, dtype: Any) -> np.dtype:
    """Returns a dtype of samples or parameters, such as `jnp.bfloat16`, "float32" or `float`.

    Args:
        name: the argument's name, for the error.
        dtype: the dtype, or what names it.

    Raises:
        ValueError: unless it is a floating-point dtype of 16 or 32 bits, or of 64 where JAX is set
            to compute in float64.
    """
    # The default of all arguments comes first: the rest takes time at every call.
    if dtype is jnp.float32:
        return _FLOAT32

    # Python's own `float` is JAX's default; None would be NumPy's, float64.
    if dtype is float:
        return jax.dtypes.canonicalize_dtype(dtype)
    try:
        found = jnp.dtype(dtype)
    except Exception:  # NumPy raises errors of many kinds
        found = None
    if dtype is None or found is None or not is_floating(found):
        raise ValueError(
            f"{name} must be a floating-point dtype such as 'float32', got {shown(dtype)}"
        )

    # Without x64 JAX computes in float32 where float64 is asked for.
    if jax.dtypes.canonicalize_dtype(found) != found:
        raise ValueError(f"{name}={found} needs jax.config.update('jax_enable_x64', True)")
    return found


def as_array(name: str, value: Any) -> np.ndarray | jax.Array:
    """Returns numbers or booleans as an array, of JAX if they are one of JAX or traced.

    Args:
        name: the argument's name, for the error.
        value: an array, a number, or lists of these.

    Raises:
        ValueError: for anything else, such as text or a list of lists of different lengths.
    """
    array = value if isinstance(value, jax.Array) else _numpy_or_traced(value)
    # NumPy counts lengths of time, of kind "m", among its integers.
    is_number = array is not None and (
        array.dtype == bool
        or (jnp.issubdtype(array.dtype, np.number) and array.dtype.kind != "m")
    )
    if array is None or not is_number:
        raise ValueError(f"{name} must be numbers, got {shown(value)}")
    return array


def as_numpy(name: str, value: Any) -> np.ndarray:
    """Returns numbers or booleans as an array of NumPy.

    Args:
        name: the argument's name, for the error.
        value: what `as_array` takes.

    Raises:
        ValueError: for anything else, or numbers that are traced.
    """
    known = concrete(as_array(name, value))
    if known is None:
        raise ValueError(
            f"{name} must be numbers that are known, got {shown(value)}; "
            "call this function outside of jax.jit and the like"
        )
    return known


def _numpy_or_traced(value: Any) -> Any:
    """The value as an array, or None if it is none."""
    # Without its mask, a masked array would be other numbers.
    if isinstance(value, np.ma.MaskedArray):
        return None

    # NumPy refuses lists that hold traced numbers, and JAX takes them.
    for convert in (np.asarray, jnp.asarray):
        try:
            array = convert(value)
        except Exception:  # what objects of foreign types raise is up to them
            continue

        # JAX has no floats beyond float64.
        return array.astype(np.float64) if array.dtype == np.longdouble else array
    return None


def as_floats(name: str, value: Any) -> jax.Array:
    """Returns samples, or anything like them, as an array of JAX.

    Args:
        name: the argument's name, for the error.
        value: an array of floats, or what `as_array` takes.

    Raises:
        ValueError: for bytes and other integers, booleans, complex numbers, and what is no array.
    """
    array = as_array(name, value)
    if is_floating(array.dtype):
        return _on_device(array)

    # Bytes are most likely pixels of 0 to 255, and models take values in [-1, 1].
    hint = ""
    if jnp.issubdtype(array.dtype, jnp.integer):
        hint = "; bytes become an image by x / 127.5 - 1"
    raise ValueError(f"{name} must hold floats, got {array.dtype}{hint}")


def _on_device(array):
    """The array as one of JAX. Numbers beyond float32 become infinite, without NumPy's warning."""
    with np.errstate(over="ignore"):
        return jnp.asarray(array)


def as_samples(name: str, value: Any) -> jax.Array:
    """Returns samples as an array of JAX; raises ValueError unless they are floats `[B, ...]`."""
    array = as_floats(name, value)
    if not array.ndim or not all(array.shape):
        raise ValueError(
            f"{name} must be (B, ...) with sizes of at least 1, got shape {array.shape}; "
            "a single one is (1, ...)"
        )
    return array


def as_categories(name: str, value: Any) -> jax.Array:
    """Returns categories as an array; raises ValueError unless they are integers `[B, ...]`."""
    array = as_array(name, value)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise ValueError(f"{name} must hold integers, the classes, got {array.dtype}")
    if not array.ndim or not all(array.shape):
        raise ValueError(
            f"{name} must be (B, ...) with sizes of at least 1, got shape {array.shape}"
        )
    return jnp.asarray(array)


def check_pixels(name: str, array: Any) -> None:
    """Raises ValueError for pixels of 0 to 255, where samples in [-1, 1] belong.

    Traced values are not checked, and very dark pictures cannot be told from samples.
    """
    known = concrete(array)
    if known is None:
        return

    # Samples of standard deviation 1 or less, however far from [-1, 1], have both signs.
    numbers = known[np.isfinite(known)]
    if numbers.size and numbers.min() >= 0 and numbers.max() > _BRIGHTEST:
        raise ValueError(
            f"{name} goes from {numbers.min():g} to {numbers.max():g}, as pixels do; "
            "samples lie in [-1, 1], which pixels become by x / 127.5 - 1"
        )


def as_reals(name: str, value: Any) -> jax.Array:
    """Returns noise levels, weights or other coefficients, whole or not, in at least float32.

    Args:
        name: the argument's name, for the error.
        value: real numbers, as `as_array` takes them.

    Raises:
        ValueError: for booleans, complex numbers, and what is no array.
    """
    array = as_array(name, value)
    if is_floating(array.dtype):
        return at_least_float32(_on_device(array))
    if jnp.issubdtype(array.dtype, jnp.integer):
        # Converted by NumPy, before JAX cuts integers to 32 bits.
        return jnp.asarray(array.astype(jnp.float32))
    raise ValueError(f"{name} must be real numbers, got {array.dtype}")


def reals_of_batch(name: str, value: Any, batch: Any) -> jax.Array:
    """Returns a number for all samples, f32[], or one per sample, f32[batch].

    Raises:
        ValueError: if it is neither.
    """
    numbers = as_reals(name, value).astype(jnp.float32)
    if numbers.shape not in ((), (batch,)):
        raise ValueError(
            f"{name} must be a number or one per sample {(batch,)}, got shape {numbers.shape}"
        )
    return numbers


def known_reals(name: str, value: Any) -> np.ndarray | None:
    """Returns the values of real numbers, or None if they are traced.

    Call it before numbers become arrays of JAX: within `jax.jit`, constants are traced, too.

    Args:
        name: the argument's name, for the error.
        value: real numbers, as `as_array` takes them.

    Raises:
        ValueError: for booleans, complex numbers, and what is no array.
    """
    array = as_array(name, value)
    if not (is_floating(array.dtype) or jnp.issubdtype(array.dtype, jnp.integer)):
        raise ValueError(f"{name} must be real numbers, got {array.dtype}")
    return concrete(array)


def other_shapes(params: Any, like: Any) -> str | None:
    """Returns how the shapes of two pytrees differ, as text that begins with those of `params`.

    A bias of one channel in place of many would be broadcast without an error.

    Args:
        params: a pytree of arrays.
        like: a pytree of arrays, or of anything with a shape; its containers may be others.

    Returns:
        The text, or None if the leaves have the same shapes in the same order.
    """
    found = jax.tree.leaves_with_path(params)
    expected = jax.tree.leaves(like)
    if len(found) != len(expected):
        return f"{len(found)} arrays for {len(expected)}"
    for (path, leaf), wanted in zip(found, expected, strict=True):
        shape = getattr(leaf, "shape", ())
        if shape != wanted.shape:
            return f"the shape {shape} for {wanted.shape} at {jax.tree_util.keystr(path)}"
    return None


def check_shapes(**arrays: jax.Array) -> None:
    """Raises ValueError, with names and shapes, unless all arrays have the same shape."""
    shapes = {name: tuple(np.shape(array)) for name, array in arrays.items()}
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"arrays must have the same shape, got {listed}")

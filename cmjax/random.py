"""Keys per sample and noise per level: why a sample never depends on its neighbours.

All noise that cmjax draws is drawn here, so that a seed gives the same numbers whatever JAX's
settings are: the generator and the dtypes are named, and `same_numbers` holds the rest.
"""

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from cmjax.arrays import as_array, concrete, is_symbolic
from cmjax.configs import is_int, shown

GENERATOR = "threefry2x32"  # JAX's default, unless jax_default_prng_impl is set


def same_numbers() -> contextlib.AbstractContextManager:
    """Returns the context in which a key gives the same numbers whatever JAX's settings are."""
    # It holds where an operation is traced, also if it is compiled after the context has ended.
    return jax.threefry_partitionable(True)


def key_of_seed(seed: int) -> jax.Array:
    """Returns `jax.random.key(seed)` as JAX's own defaults make it.

    Raises:
        ValueError: unless `seed` is an integer from 0 to 2^32 - 1.
    """
    if not is_int(seed, 0, 2**32 - 1):
        raise ValueError(f"seed must be an integer from 0 to 2^32 - 1, got {shown(seed)}")

    # `jax.random.key` would add jax_random_seed_offset.
    data = jnp.asarray(np.array([0, seed], np.uint32))
    return jax.random.wrap_key_data(data, impl=GENERATOR)


def split(key: jax.Array, num: int = 2) -> jax.Array:
    """Returns `num` new keys, `[num]`.

    Raises:
        ValueError: as `as_one_key` does.
    """
    with same_numbers():
        return jax.random.split(as_one_key(key), num)


def normal(key: jax.Array, shape: Sequence[int]) -> jax.Array:
    """Returns standard normal numbers, f32[shape]."""
    with same_numbers():
        return jax.random.normal(_typed(key), shape, jnp.float32)


def uniform(key: jax.Array, shape: Sequence[int]) -> jax.Array:
    """Returns uniform numbers in [0, 1), f32[shape]."""
    with same_numbers():
        return jax.random.uniform(_typed(key), shape, jnp.float32)


def gumbel(key: jax.Array, shape: Sequence[int]) -> jax.Array:
    """Returns numbers of the standard Gumbel distribution, f32[shape].

    With them added to log-probabilities, the largest is at a class drawn by these.
    """
    # Without a mode jax_high_dynamic_range_gumbel decides.
    with same_numbers():
        return jax.random.gumbel(_typed(key), shape, jnp.float32, mode="low")


def truncated_normal(
    key: jax.Array, lower: float, upper: float, shape: Sequence[int]
) -> jax.Array:
    """Returns standard normal numbers between `lower` and `upper`, f32[shape]."""
    with same_numbers():
        return jax.random.truncated_normal(_typed(key), lower, upper, shape, jnp.float32)


def randint(
    key: jax.Array, shape: Sequence[int], minval: ArrayLike, maxval: ArrayLike
) -> jax.Array:
    """Returns uniform integers from `minval` to `maxval - 1`, i32[shape]."""
    with same_numbers():
        return jax.random.randint(_typed(key), shape, minval, maxval, jnp.int32)


def as_key(key: Any) -> jax.Array:
    """Returns `key` as new-style keys, scalar or `[B]`; raw uint32 keys are wrapped.

    Raises:
        ValueError: if `key` is not a PRNG key, or its generator draws different numbers under
            `vmap`.
    """
    # What nearly every call has, first: the rest takes as long as a small network.
    if isinstance(key, jax.Array) and key.dtype == _dtype_of_keys() and key.ndim <= 1:
        return key
    key = _typed(key)

    # What holds keys, such as Flax's `Rngs`, and tensors of PyTorch have a dtype, too.
    if not isinstance(key, jax.Array) or not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise ValueError(
            f"key must be a JAX PRNG key, got {shown(key)}; make one with jax.random.key(0)"
        )

    # The generators "rbg" and "unsafe_rbg" ignore the key of all but the first sample under vmap.
    if "rbg" in str(jax.random.key_impl(key)):
        raise ValueError(
            f"key uses the generator {jax.random.key_impl(key)!r}, whose numbers depend on "
            "the batch; use jax.random.key(seed, impl='threefry2x32')"
        )
    if key.ndim > 1:
        raise ValueError(
            f"key must be one key or one per sample [B], got shape {key.shape}"
        )
    return key


def as_one_key(key: Any) -> jax.Array:
    """Returns `key` as a new-style key, scalar.

    Raises:
        ValueError: as `as_key` does, and if there are several keys.
    """
    key = as_key(key)
    if key.ndim:
        raise ValueError(
            f"key must be one key, got keys of shape {key.shape}; jax.vmap maps over several"
        )
    return key


def sample_index(index: int | jax.Array, batch: int = 1) -> jax.Array | np.uint32:
    """Returns the global index of the first sample of a batch, u32[].

    The value is not checked if it is traced.

    Args:
        index: the index.
        batch: number of samples, the last of which must have an index, too. It is not checked if
            it is a symbol of `jax.export`.

    Raises:
        ValueError: unless it is an integer from 0 to 2^32 - 1.
    """
    # The default, first: looking at arrays takes as long as a small network.
    known_batch = 1 if is_symbolic(batch) else batch
    if type(index) is int and 0 <= index <= 2**32 - known_batch:
        return np.uint32(index)

    # Under jit only the dtype and the shape are known.
    array = as_array("first_index", index)
    known = concrete(array)
    is_integer = array.shape == () and np.issubdtype(array.dtype, np.integer)
    if not is_integer or (known is not None and not 0 <= known < 2**32):
        raise ValueError(
            f"first_index must be an integer from 0 to 2^32 - 1, got {shown(index)}"
        )
    if known is None:
        return jnp.asarray(array).astype(jnp.uint32)

    # fold_in takes 32 bits: a larger index would repeat the noise of a smaller one.
    if int(known) + known_batch > 2**32:
        raise ValueError(
            f"first_index {int(known)} leaves {2**32 - int(known)} of 2^32 samples, "
            f"for a batch of {batch}"
        )
    return np.uint32(known)


def sample_keys(key: jax.Array, batch: int, first_index: int | jax.Array = 0) -> jax.Array:
    """Returns one key per sample, `[batch]`.

    One key gives sample *i* the key `fold_in(key, first_index + i)`; keys that are already one per
    sample are returned as they are.

    Example:
        >>> import jax
        >>> from cmjax.random import sample_keys
        >>> keys = sample_keys(jax.random.key(0), 4)
        >>> bool((keys[2:] == sample_keys(jax.random.key(0), 2, first_index=2)).all())
        True

    Args:
        key: one key, or one per sample `[batch]`.
        batch: number of samples.
        first_index: global index of the first of them, from 0 to 2^32 - 1.

    Raises:
        ValueError: if `key` is not a key, or holds a number of keys other than `batch`.
    """
    key = as_key(key)
    if key.ndim == 0:
        # The global index, and not the place in the batch: batches of any size give one sequence.
        indices = jnp.arange(batch, dtype=jnp.uint32) + sample_index(first_index, batch)
        return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, indices)
    if key.shape[0] != batch:
        raise ValueError(
            f"key holds {key.shape[0]} keys for a batch of {batch}; pass one key, or one per sample"
        )
    return key


def level_noise(
    keys: jax.Array,
    level: int | jax.Array,
    shape: Sequence[int],
    dtype: DTypeLike = jnp.float32,
    draw: Callable[[jax.Array, Sequence[int]], jax.Array] = normal,
) -> jax.Array:
    """Returns the standard normal noise `dtype[shape]` of samples that arrive at a noise level.

    Level 0 is the initial noise; step *i* arrives at level *i* + 1. The numbers are drawn in
    float32 and then cast, so that a seed gives the same picture in every dtype.

    Args:
        keys: one key per sample, `[B]`, from `sample_keys`.
        level: index into `state.sigmas`.
        shape: of the result, `(B, ...)`.
        dtype: of the result.
        draw: the distribution, such as `gumbel` for categories.
    """

    def one(key):
        # The key is derived from the level, not split on the way, so that a step's noise does not
        # depend on the steps before.
        return draw(jax.random.fold_in(key, level), tuple(shape[1:]))

    return jax.vmap(one)(keys).astype(dtype)


@functools.cache
def _dtype_of_keys() -> Any:
    """The dtype of JAX's keys of `GENERATOR`."""
    return jax.eval_shape(lambda: jax.random.key(0, impl=GENERATOR)).dtype


def _typed(key: Any) -> Any:
    """Returns raw keys, arrays u32[..., 2], as new-style ones, and anything else as it is."""
    # JAX would take them for keys of the generator that it is configured to use. The keys of "rbg"
    # are u32[..., 4].
    is_raw = getattr(key, "dtype", None) == jnp.uint32 and key.ndim > 0
    if not is_raw or key.shape[-1] not in (2, 4):
        return key
    impl = GENERATOR if key.shape[-1] == 2 else "rbg"
    return jax.random.wrap_key_data(jnp.asarray(key), impl=impl)

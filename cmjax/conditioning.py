"""The null of conditioning: what it becomes where a network is to know nothing of it.

Guidance calls a network with the null, and training puts it in the place of the conditioning of
some samples.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cmjax import random
from cmjax.arrays import along_batch, as_array, concrete, is_floating
from cmjax.configs import shown
from cmjax.labels import check_class_labels
from cmjax.meshes import sharded_like


def check_null(null: Any, classes: int | None = None) -> None:
    """Checks what conditioning becomes, as far as it is known before there is any.

    Args:
        null: names of conditioning to pytrees of numbers or arrays, or to None.
        classes: number of the network's classes, of which the null class is one; None if it has
            none, or they are not known.

    Raises:
        ValueError: if it is no such mapping, or its class is none of the network's.
    """
    is_mapping = isinstance(null, Mapping) and all(isinstance(name, str) for name in null)
    if not is_mapping or not null:
        raise ValueError(
            "null must map names of conditioning to what they become, such as "
            f"{{'class_labels': 10}}, got {shown(null)}"
        )

    # Numbers that are not finite would make all outputs NaN. Traced ones are not known.
    for name, value in null.items():
        for leaf in jax.tree.leaves(value):
            known = concrete(as_array(_title(name), leaf))
            if known is None or not is_floating(known.dtype):
                continue
            if not np.all(np.isfinite(known)):
                raise ValueError(f"{_title(name)} must be finite, got {shown(leaf)}")

    # The null class is one of the network's classes, usually the last.
    label = null.get("class_labels")
    if label is not None and classes is not None:
        check_class_labels(_title("class_labels"), label, classes)


def with_null(cond: Mapping[str, Any], null: Mapping[str, Any]) -> dict[str, Any]:
    """Returns conditioning with the entries that `null` names replaced, for every sample.

    Args:
        cond: names to pytrees of arrays `[B, ...]`.
        null: of some of these names, what they become: one number for all of the entry, or a pytree
            like it, of arrays `[...]` for all samples or `[B, ...]` for each; None leaves the entry
            out. Dtypes become those of `cond`.

    Raises:
        ValueError: for names that `cond` does not have, or values that do not take their place.
    """
    replaced = dict(cond)
    for name, value in null.items():
        if name not in cond:
            raise ValueError(
                f"null has {name!r}, but cond has {sorted(cond) or 'nothing'}; "
                "give the conditioning that it is to replace"
            )
        if value is None:
            del replaced[name]
        else:
            replaced[name] = _entry(name, cond[name], value)
    return replaced


def without_some(
    key: jax.Array, cond: Mapping[str, Any], null: Mapping[str, Any], rate: float
) -> dict[str, Any]:
    """Returns conditioning with that of some samples replaced by the null, as training drops it.

    Args:
        key: PRNG key that says which samples.
        cond: names to pytrees of arrays `[B, ...]`.
        null: as for `with_null`; it may leave nothing out.
        rate: probability of each sample, 0 to 1.

    Raises:
        ValueError: as `with_null`.
    """
    replaced = with_null(cond, null)

    # One draw for each sample, bool[B], whatever it is conditioned on.
    leaves = jax.tree.leaves([cond[name] for name in null])
    if not leaves:
        raise ValueError(
            f"null replaces {sorted(null)}, of which the batch has no arrays; give them"
        )
    drops = random.uniform(key, leaves[0].shape[:1]) < rate

    def choose(there, absent):
        mask = along_batch(sharded_like(drops, there), there.ndim)
        return jnp.where(mask, absent, there)

    chosen = {name: jax.tree.map(choose, cond[name], replaced[name]) for name in null}
    return {**cond, **chosen}


def _entry(name: str, entry: Any, value: Any) -> Any:
    """The null of one entry of the conditioning, a pytree of arrays `[B, ...]`."""
    # One number stands for all arrays of the entry.
    leaves, structure = jax.tree.flatten(entry)
    if isinstance(value, int | float) or getattr(value, "shape", None) == ():
        return jax.tree.map(lambda like: _leaf(name, like, value), entry)

    # Otherwise the null has an array, or a list of numbers, for each array of the entry.
    try:
        values = structure.flatten_up_to(value)
    except (ValueError, TypeError):
        raise ValueError(
            f"{_title(name)} must be a pytree like cond[{name!r}], {structure}, "
            f"got {jax.tree.structure(value)}"
        ) from None
    made = [_leaf(name, like, one) for like, one in zip(leaves, values, strict=True)]
    return jax.tree.unflatten(structure, made)


def _leaf(name: str, like: jax.Array, value: Any) -> jax.Array:
    """One array of the null, in the shape, dtype and division over devices of `like`."""
    array = as_array(_title(name), value)
    if array.shape not in ((), like.shape[1:], like.shape):
        raise ValueError(
            f"{_title(name)} must have the shape {like.shape[1:]} or {like.shape} for "
            f"cond[{name!r}], got {array.shape}"
        )

    # It must survive the cast to the dtype of the entry: a label of 0.5 would become another class,
    # and so would 256 as an integer of 8 bits.
    if _kind(array.dtype) > _kind(like.dtype):
        raise ValueError(
            f"{_title(name)} must be {like.dtype}, as cond[{name!r}] is, got {array.dtype}"
        )
    check_fits(_title(name), array, like.dtype)
    full = jnp.broadcast_to(jnp.asarray(array).astype(like.dtype), like.shape)
    return sharded_like(full, like)


def check_fits(name: str, value: Any, dtype: Any) -> None:
    """Raises ValueError for numbers that a dtype cannot hold; traced ones are not known.

    Args:
        name: the argument's name, for the error.
        value: the numbers.
        dtype: of the array that they are to be written into.
    """
    known = concrete(value)
    if known is None or not known.size or jnp.issubdtype(dtype, jnp.complexfloating):
        return
    if jnp.issubdtype(dtype, jnp.bool_):
        return

    # Compared as numbers of Python, which do not overflow.
    is_integer = jnp.issubdtype(dtype, jnp.integer)
    limits = jnp.iinfo(dtype) if is_integer else jnp.finfo(dtype)
    number = int if is_integer else float
    low = number(limits.min)
    high = number(limits.max)
    if number(known.min()) < low or number(known.max()) > high:
        raise ValueError(
            f"{name} must be numbers that {np.dtype(dtype)} holds, got {shown(value)}; "
            "give conditioning of a larger dtype"
        )


def _kind(dtype: Any) -> int:
    """The rank of a dtype's kind, 0 to 3: boolean, integer, floating, complex.

    Each kind can hold the numbers of those before it.
    """
    if jnp.issubdtype(dtype, jnp.bool_):
        return 0
    if jnp.issubdtype(dtype, jnp.integer):
        return 1
    return 2 if is_floating(dtype) else 3


def _title(name: str) -> str:
    """What errors call an entry of the null."""
    return f"null[{name!r}]"

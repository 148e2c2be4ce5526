"""Whether JAX is tracing, and functions that are kept from one call to the next."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jax.extend.core import get_opaque_trace_state

# The state in which nothing is traced, whatever is traced while this module is imported.
with jax.ensure_compile_time_eval():
    _EAGER = get_opaque_trace_state(convention="flax")

# Settings of JAX that may refuse transfers of arrays to a device.
_GUARDS = ("jax_transfer_guard", "jax_transfer_guard_host_to_device")


def is_tracing() -> bool:
    """Whether JAX is tracing the caller, under `jit`, `vmap`, `grad` and the like."""
    return get_opaque_trace_state(convention="flax") != _EAGER


def as_input(value: Any) -> Any:
    """Returns a number or an array of NumPy as an argument of a compiled program.

    Where `jax.transfer_guard` is not "allow", it is put on JAX's default device explicitly.
    """
    # Only there: putting a number takes as long as the program of a small network.
    is_guarded = any(getattr(jax.config, name) not in (None, "allow") for name in _GUARDS)
    return jax.device_put(value) if is_guarded and not is_tracing() else value


def hashable(*values: Any) -> bool:
    """Whether all values can be part of a cache's key."""
    try:
        hash(values)
    except TypeError:
        return False
    return True


@dataclasses.dataclass(frozen=True, eq=False)
class ByValue:
    """A pytree of numbers and arrays as part of a cache's key, equal where all its values are.

    Numbers of other types are other values: 1, 1.0 and True are different labels. It cannot be
    hashed if anything in it is traced.

    Attributes:
        tree: the pytree, with copies of NumPy's arrays, which their owner may change later.
    """

    tree: Any

    def __post_init__(self):
        def own(leaf):
            return leaf.copy() if isinstance(leaf, np.ndarray) else leaf

        object.__setattr__(self, "tree", jax.tree.map(own, self.tree))

    def _key(self) -> Any:
        leaves, structure = jax.tree.flatten(self.tree)
        values = []
        for leaf in leaves:
            if isinstance(leaf, Tracer):
                raise TypeError("traced values have no hash")
            array = np.asarray(leaf)
            values.append((array.dtype.name, array.shape, array.tobytes()))
        return structure, tuple(values)

    def __hash__(self) -> int:
        return hash(self._key())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ByValue) and self._key() == other._key()


def plain_or_pytree(function: Any) -> tuple[Any, Any]:
    """Returns a function as (plain function, pytree), of which at most one is not None.

    A plain function is compiled in, and part of a program's key; a pytree, such as what
    `cmjax.constraints` return, is an argument. JAX's own caches would never let go of the function
    of an argument.
    """
    # An object of a type that is no pytree, such as a function, is its own single leaf.
    leaves = jax.tree.leaves(function)
    is_plain = len(leaves) == 1 and leaves[0] is function
    return (function, None) if is_plain else (None, function)


def as_pytree(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a plain function as a pytree without leaves, to be an argument of jitted functions.

    Functions that are pytrees already, such as those of `cmjax.constraints`, stay as they are.
    """
    plain, pytree = plain_or_pytree(function)
    return pytree if plain is None else jax.tree_util.Partial(plain)


def cached_unless_tracing(make: Any, *static: Any) -> Any:
    """Returns `make(*static)`, a function, which is kept for the next call where that is safe.

    Outside of JAX's transformations, a second call with equal arguments returns the same function,
    so that what it is compiled into is found again. Under a transformation, a network may close
    over traced values, and a function that holds these must not outlive the trace.

    Args:
        make: a function under `functools.lru_cache`.
        *static: its arguments; those that cannot be hashed are never kept.
    """
    if is_tracing() or not hashable(*static):
        return make.__wrapped__(*static)
    return make(*static)

"""Makes the pair `(apply_fn, params)` that cmjax's functions take of a Flax module.

Each pair is pure: it holds copies, so that nothing that happens to the module afterwards changes
its results, and a call changes nothing. Without a key dropout is off; with `dropout_key=` it is on,
and the same key drops out the same units.
"""

import functools
import inspect
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen, nnx
from flax.errors import ModifyScopeVariableError

from cmjax.arrays import ApplyFn, floating_dtype, other_shapes
from cmjax.configs import shown
from cmjax.networks import (
    check_network,
    with_arguments_of,
    with_attributes_of,
    with_classes,
)
from cmjax.tracing import cached_unless_tracing

# Number of networks of `compute_in` to keep, so that programs compiled for them are found again.
_NETWORKS = 64


def from_nnx(module: nnx.Module) -> tuple[ApplyFn, nnx.State]:
    """Splits an NNX module whose `__call__` takes `(x, t, **cond)`.

    The module is copied, and the copy set to evaluation: its dropout is off, and its batch
    normalisation uses the running averages.

    Example:
        >>> import cmjax
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> class Network(nnx.Module):
        ...     def __init__(self, rngs):
        ...         self.linear = nnx.Linear(2, 2, rngs=rngs)
        ...     def __call__(self, x, t):
        ...         return self.linear(x) + t[:, None]
        >>> apply_fn, params = cmjax.from_nnx(Network(nnx.Rngs(0)))
        >>> apply_fn(params, jnp.ones((4, 2)), jnp.zeros(4)).shape
        (4, 2)

    Args:
        module: any NNX module.

    Returns:
        `apply_fn(params, x, t, *, dropout_key=None, **cond)`, a pure function, and `params`, the
        state of the module's `nnx.Param` variables. Other variables, such as statistics, are
        constants of `apply_fn`. With a `dropout_key` dropout is on, and all random numbers of the
        module follow from that key.

    Raises:
        ValueError: if `module` is not an NNX module that can be called.
    """
    if isinstance(module, linen.Module):
        raise ValueError(
            f"module is a {type(module).__name__}, which is a Linen module; use "
            "from_linen(module, variables) with variables = module.init(...)"
        )
    if not isinstance(module, nnx.Module) or not callable(module):
        raise ValueError(
            f"module must be an NNX module with a __call__(x, t), got {shown(module)}"
        )

    # Only parameters are differentiated, averaged and stored, so they are split from the rest.
    module = nnx.clone(module)
    module.eval()
    graph, *states = nnx.split(module, nnx.Param, nnx.RngState, ...)
    params, streams, rest = jax.tree.map(_copy, states)
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)

    # Merging happens while JAX traces; a compiled program has nothing of it.
    def apply_fn(params, *args, dropout_key=None, **cond):
        trains = dropout_key is not None
        seeded = _reseed(streams, dropout_key) if trains else streams

        # A module may write to its variables, as counters do: only to those of this copy.
        called = _merged(graph, like, params, seeded, rest)
        if trains:
            called.set_attributes(deterministic=False, raise_if_not_found=False)
        return called(*args, **cond)

    # How many classes the network has, as diffusers' configs and cmjax's own name it; with that of
    # none of them, which cmjax's may have.
    config = getattr(module, "config", None)
    classes = getattr(config, "num_class_embeds", None)
    if classes is not None:
        classes += getattr(config, "null_class", False)
    return with_classes(with_arguments_of(apply_fn, module), classes), params


def from_linen(
    module: linen.Module, variables: Mapping[str, Any]
) -> tuple[ApplyFn, Mapping[str, Any]]:
    """Pairs a Linen module, whose `__call__` takes `(x, t, **cond)`, with its variables.

    Example:
        >>> import cmjax, jax
        >>> import jax.numpy as jnp
        >>> from flax import linen
        >>> class Network(linen.Module):
        ...     @linen.compact
        ...     def __call__(self, x, t):
        ...         return linen.Dense(2)(x) + t[:, None]
        >>> x, t = jnp.ones((4, 2)), jnp.zeros(4)
        >>> module = Network()
        >>> apply_fn, params = cmjax.from_linen(module, module.init(jax.random.key(0), x, t))
        >>> apply_fn(params, x, t).shape
        (4, 2)

    Args:
        module: any Linen module. An argument `train`, `training` or `deterministic` of its
            `__call__` is set: a call trains if it has a `dropout_key`.
        variables: the result of `module.init`, such as `{"params": ..., "batch_stats": ...}`.

    Returns:
        `apply_fn(params, x, t, *, dropout_key=None, **cond)`, a pure function, and `params`, the
        collection of that name. Other collections are constants of `apply_fn`, and are not updated:
        a call that would update one raises ValueError. With a `dropout_key` dropout is on, and all
        random numbers of the module follow from it.

    Raises:
        ValueError: if `module` is not a Linen module, or `variables` lack the collection `params`.
    """
    if isinstance(module, nnx.Module):
        raise ValueError(
            f"module is a {type(module).__name__}, which is an NNX module; use from_nnx(module)"
        )
    if not isinstance(module, linen.Module):
        raise ValueError(f"module must be a Linen module, got {shown(module)}")
    if not isinstance(variables, Mapping) or (variables and "params" not in variables):
        raise ValueError(
            "variables must have the collection 'params', as the result of module.init(...) has, "
            f"got {shown(variables)}"
        )

    # Statistics and caches are not parameters: a gradient would move them, and integers have none.
    constants = jax.tree.map(_copy, dict(variables))
    params = constants.pop("params", {})
    modes = inspect.signature(type(module).__call__).parameters

    def apply_fn(params, *args, dropout_key=None, **cond):
        trains = dropout_key is not None
        mode = {"train": trains, "training": trains, "deterministic": not trains}
        mode = {name: value for name, value in mode.items() if name in modes}
        rngs = {"rngs": {"params": dropout_key}} if trains else {}

        # No collection is mutable: what a call would update would be lost without an error.
        try:
            return module.apply(
                {**constants, "params": params}, *args, **rngs, **{**mode, **cond}
            )
        except ModifyScopeVariableError as error:
            raise ValueError(
                f"the module {type(module).__name__} must not update its collections, which are "
                "constants of the network; normalise by running averages also where it trains, "
                f"use_running_average=True ({error})"
            ) from error

    return with_arguments_of(apply_fn, module), params


def compute_in(apply_fn: ApplyFn, dtype: Any) -> ApplyFn:
    """Returns a network that computes in `dtype`, such as bfloat16.

    `x` is cast to it; the parameters, the output and the times keep their dtypes. cmjax's own
    networks compute in the dtype of their input, whatever that of their parameters. Flax's layers
    promote both, so give them `dtype=` as well.

    Example:
        >>> import jax.numpy as jnp
        >>> from cmjax.models import compute_in
        >>> def apply_fn(params, x, t):
        ...     assert x.dtype == jnp.bfloat16
        ...     return x
        >>> compute_in(apply_fn, jnp.bfloat16)(None, jnp.ones((4, 2)), jnp.zeros(4)).dtype
        dtype('float32')

    Args:
        apply_fn: `(params, x, t, **cond) -> model_output`.
        dtype: the dtype that `x` is cast to.

    Returns:
        A function with the same arguments as `apply_fn`.

    Raises:
        ValueError: if `apply_fn` is no function, or `dtype` no floating-point dtype.
    """
    check_network(apply_fn)
    return cached_unless_tracing(_computing_in, apply_fn, floating_dtype("dtype", dtype))


@functools.lru_cache(_NETWORKS)
def _computing_in(apply_fn, dtype):
    """The network of `compute_in`, from checked arguments."""

    # Times stay float32: bfloat16 has 8 bits of precision, and would merge neighbouring levels.
    def cast(params, x, *times, **cond):
        return apply_fn(params, x.astype(dtype), *times, **cond).astype(x.dtype)

    return with_attributes_of(apply_fn, cast)


def _copy(leaf: Any) -> Any:
    """A copy of an array, so that neither writing to it nor donating it affects the original."""
    # Modules made by `nnx.eval_shape` hold shapes in place of arrays.
    return leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jnp.array(leaf, copy=True)


def _merged(graph: Any, like: Any, params: Any, *others: nnx.State) -> nnx.Module:
    """The module with these parameters; raises ValueError for other shapes than those of `like`."""
    try:
        module = nnx.merge(graph, params, *others, copy=True)
    except ValueError as error:
        raise _of_another_module(f"{shown(params)}: {error}") from error
    difference = other_shapes(params, like)
    if difference is not None:
        raise _of_another_module(difference)
    return module


def _of_another_module(found: str) -> ValueError:
    """The error for parameters that are not those of the module."""
    return ValueError(
        "params must be the parameters that came with apply_fn, or a pytree like them, "
        f"got {found}"
    )


def _reseed(streams: nnx.State, key: jax.Array) -> nnx.State:
    """The state of a module's random streams that all start from `key`, each in its own way."""
    leaves, structure = jax.tree.flatten(streams)
    fresh = []
    for i, leaf in enumerate(leaves):
        # A stream has a key and the number of keys that were drawn from it.
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            fresh.append(jax.random.fold_in(key, i))
        else:
            fresh.append(jnp.zeros(leaf.shape, leaf.dtype))
    return jax.tree.unflatten(structure, fresh)

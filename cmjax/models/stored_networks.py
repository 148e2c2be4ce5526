"""The network of a config without parameters, made once for all that have the same config."""

import dataclasses
import functools
import weakref
from typing import Any

import jax
from flax import nnx

from cmjax.arrays import ApplyFn
from cmjax.models.adapters import from_nnx
from cmjax.models.registry import abstract_network, module_class, network_name
from cmjax.tracing import cached_unless_tracing

# Number of networks without parameters to keep.
_NETWORKS = 16

# The config of each network that was made of one, for as long as the network is used.
_CONFIGS: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


def function_and_shapes(config: Any) -> tuple[ApplyFn, Any]:
    """Returns `apply_fn` and the parameters as `jax.ShapeDtypeStruct`s.

    Raises:
        ValueError: if the config is of no network, or the network has variables other than
            parameters, which files do not store.
    """
    # Equal configs have one function, so that a model that is loaded again, or the next checkpoint
    # of a run, finds the programs that are compiled for it. The same name may get another class,
    # fields with `compare=False` make no difference to `==`, and dtypes may depend on x64.
    differences = (
        module_class(config),
        dataclasses.astuple(config),
        jax.dtypes.canonicalize_dtype(float),
    )
    return cached_unless_tracing(_network_of, config, differences)


def is_function_of(apply_fn: ApplyFn, config: Any) -> bool:
    """Returns whether a network is one that `function_and_shapes` made of a config."""
    if apply_fn not in _CONFIGS:
        return False
    own = _CONFIGS[apply_fn]
    return type(own) is type(config) and dataclasses.astuple(own) == dataclasses.astuple(
        config
    )


@functools.lru_cache(_NETWORKS)
def _network_of(config, differences):
    """The network of a config; `differences` only distinguish the networks that are kept."""
    del differences
    module = abstract_network(config)

    # Statistics of a batch normalisation, for instance, would silently be lost. Random streams are
    # those of dropout, which a `dropout_key` seeds.
    unstored = nnx.state(module, nnx.Not(nnx.Any(nnx.Param, nnx.RngState)))
    others = jax.tree.leaves(unstored, is_leaf=_is_variable)
    if others:
        kinds = sorted({type(variable).__name__ for variable in others})
        raise ValueError(
            f"the network {network_name(config)!r} has variables of type {', '.join(kinds)}; "
            "only nnx.Param is stored, so keep constants in plain attributes, or compute them when "
            "called"
        )
    apply_fn, shapes = from_nnx(module)
    _CONFIGS[apply_fn] = config
    return apply_fn, shapes


def _is_variable(node: Any) -> bool:
    return isinstance(node, nnx.Variable)

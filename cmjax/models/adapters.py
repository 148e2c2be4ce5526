"""Makes the pair `(apply_fn, params)` that cmjax's functions take of a Flax module."""

from collections.abc import Mapping
from typing import Any

from flax import linen, nnx

from cmjax.arrays import ApplyFn, floating_dtype
from cmjax.networks import (
    check_network,
    with_arguments_of,
    with_classes,
    with_classes_of,
)


def from_nnx(module: nnx.Module) -> tuple[ApplyFn, nnx.State]:
    """Splits an NNX module whose `__call__` takes `(x, t, **cond)`.

    Args:
        module: any NNX module. Call its `eval()` first if it has dropout or batch normalisation.

    Returns:
        `apply_fn(params, x, t, **cond)`, a pure function, and `params`, the state of the module's
        `nnx.Param` variables. Other variables, such as statistics, are constants of `apply_fn`.
    """
    # Only parameters are differentiated, averaged and stored, so they are split from the rest.
    graph, params, rest = nnx.split(module, nnx.Param, ...)

    # Merging happens while JAX traces; a compiled program has nothing of it.
    def apply_fn(params, *args, **cond):
        return nnx.merge(graph, params, rest)(*args, **cond)

    # How many classes the network has, as diffusers' configs and cmjax's own name it.
    classes = getattr(getattr(module, "config", None), "num_class_embeds", None)
    return with_classes(with_arguments_of(apply_fn, module), classes), params


def from_linen(
    module: linen.Module, variables: Mapping[str, Any]
) -> tuple[ApplyFn, Mapping[str, Any]]:
    """Pairs a Linen module, whose `__call__` takes `(x, t, **cond)`, with its variables.

    Args:
        module: any Linen module.
        variables: the result of `module.init`, such as `{"params": ...}`.

    Returns:
        `apply_fn(variables, x, t, **cond)` and `variables`.
    """
    # All collections are passed as they are. None is mutable, so statistics are not updated.

    def apply_fn(variables, *args, **cond):
        return module.apply(variables, *args, **cond)

    return with_arguments_of(apply_fn, module), variables


def compute_in(apply_fn: ApplyFn, dtype: Any) -> ApplyFn:
    """Returns a network that computes in `dtype`, such as bfloat16.

    The parameters, the output and the times keep their dtypes. cmjax's own networks compute in the
    dtype of their input, whatever that of their parameters.

    Args:
        apply_fn: `(params, x, t, **cond) -> model_output`.
        dtype: the dtype that `x` is cast to.

    Returns:
        A function with the same arguments as `apply_fn`.

    Raises:
        ValueError: if `apply_fn` is no function, or `dtype` no floating-point dtype.
    """
    check_network(apply_fn)
    dtype = floating_dtype("dtype", dtype)

    # Times stay float32: bfloat16 has 8 bits of precision, and would merge neighbouring levels.
    def cast(params, x, *times, **cond):
        return apply_fn(params, x.astype(dtype), *times, **cond).astype(x.dtype)

    return with_classes_of(apply_fn, cast)

"""From a Flax module to the pair `(apply_fn, params)` that cmjax's functions take."""

from collections.abc import Mapping
from typing import Any

from flax import linen, nnx

from cmjax.arrays import ApplyFn


def from_nnx(module: nnx.Module) -> tuple[ApplyFn, nnx.State]:
    """Splits an NNX module whose `__call__` takes `(x, t, **cond)`.

    Args:
        module: any NNX module; put it in evaluation mode first if it has one.

    Returns:
        `apply_fn(params, x, t, **cond)`, which merges the module inside jit, and `params`, the
        state of its `nnx.Param` variables. Other variables are constants of `apply_fn`.
    """
    graph, params, rest = nnx.split(module, nnx.Param, ...)

    def apply_fn(params, *args, **cond):
        return nnx.merge(graph, params, rest)(*args, **cond)

    return apply_fn, params


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

    def apply_fn(variables, *args, **cond):
        return module.apply(variables, *args, **cond)

    return apply_fn, variables


def compute_in(apply_fn: ApplyFn, dtype: Any) -> ApplyFn:
    """Returns a network that computes in `dtype`, such as bfloat16.

    The parameters, the output and the times keep their dtypes. cmjax's own networks compute in the
    dtype of their input, whatever that of their parameters.

    Args:
        apply_fn: `(params, x, t, **cond) -> model_output`.
        dtype: the dtype that x is cast to.
    """

    def cast(params, x, t, **cond):
        return apply_fn(params, x.astype(dtype), t, **cond).astype(x.dtype)

    return cast

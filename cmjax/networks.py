"""Calls of networks, with checks of their conditioning and of what they return.

Samplers, editing and losses call networks by `call_network`. The number of a network's classes is
an attribute of its function, so that labels can be checked outside of `jit`, where their values are
known.
"""

import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from cmjax.arrays import (
    ApplyFn,
    as_array,
    as_categories,
    as_floats,
    as_samples,
    check_shapes,
    known_reals,
)
from cmjax.configs import shown
from cmjax.labels import check_class_labels
from cmjax.tracing import as_input

Network = TypeVar("Network", bound=Callable[..., Any])

# What splits Flax's modules into functions and parameters.
_SPLIT_BY = {
    "flax.linen": "from_linen(module, variables)",
    "flax.nnx": "from_nnx(module)",
}


def call_network(
    apply_fn: ApplyFn,
    params: Any,
    x: jax.Array,
    times: tuple[jax.Array, ...],
    cond: Mapping[str, Any] | None = None,
    *,
    output_shape: tuple[int, ...] | None = None,
    or_shape: tuple[int, ...] | None = None,
) -> jax.Array:
    """Returns `apply_fn(params, x, *times, **cond)`, the model output, `[B, ...]`.

    Args:
        apply_fn: the network.
        params: of the network.
        x: scaled samples, `[B, ...]`.
        times: the network's times, f32[B] each: one, or two for flow maps.
        cond: per-sample conditioning.
        output_shape: what the network must return; None for the shape of `x`.
        or_shape: another shape that it may return; None for no other.

    Raises:
        ValueError: for conditioning that is not of this batch or network, if the network cannot be
            called with these arguments, or if it returns anything but floats of that shape.
    """
    check_network(apply_fn)
    x = as_samples("x", x)
    return _checked_call(apply_fn, params, x, times, cond, output_shape, or_shape)


def call_classifier(
    apply_fn: ApplyFn,
    params: Any,
    x: jax.Array,
    times: tuple[jax.Array, ...],
    cond: Mapping[str, Any] | None,
    classes: int,
) -> jax.Array:
    """Returns the logits of a network that takes categories, `[B, ..., classes]`.

    Args:
        apply_fn: the network.
        params: of the network.
        x: categories, integers `[B, ...]`.
        times: the network's times, f32[B] each.
        cond: per-sample conditioning.
        classes: number of the classes of x0.

    Raises:
        ValueError: as `call_network`.
    """
    check_network(apply_fn)
    x = as_categories("x", x)
    return _checked_call(apply_fn, params, x, times, cond, (*x.shape, classes))


def _checked_call(apply_fn, params, x, times, cond, output_shape, or_shape=None):
    """Calls a network; see `call_network`."""
    cond = parse_cond(cond, x.shape[0], num_classes(apply_fn))
    try:
        output = apply_fn(params, x, *times, **cond)
    except TypeError as error:
        _check_arguments(apply_fn, len(times), cond, error)
        raise

    # Some networks return a pair (output, auxiliary), or an object that holds the output.
    if not hasattr(output, "shape"):
        raise ValueError(
            "apply_fn must return one array, the model output, got a "
            f"{type(output).__name__}; wrap it in a function that returns the array alone"
        )
    output = as_floats("apply_fn's model_output", output)

    # Checked, since [B, 1, 1, 1] or a scalar would be broadcast without an error.
    if output.shape != or_shape:
        check_output(output, x, output_shape)
    return output


def check_output(
    model_output: jax.Array,
    sample: jax.Array,
    output_shape: tuple[int, ...] | None = None,
    name: str = "model_output",
) -> None:
    """Raises ValueError unless a model output has the shape that goes with a sample.

    Args:
        model_output: what a network returned, or another array that must have such a shape.
        sample: `[B, ...]`.
        output_shape: the shape; None for that of the sample.
        name: what the error calls the array.
    """
    twice = (*sample.shape[:-1], 2 * sample.shape[-1])
    if output_shape in (None, sample.shape):
        if model_output.shape == twice:
            raise ValueError(
                f"arrays must have the same shape, got {name} {twice}, sample {sample.shape}; "
                "where a network predicts variances too, return the first half: "
                "jnp.split(output, 2, -1)[0]"
            )
        check_shapes(**{name: model_output, "sample": sample})
    elif model_output.shape != output_shape:
        # Twice the channels: a prediction, and its variance in the second half.
        hint = ""
        if output_shape == twice:
            hint = "; set another variance_type for a network that predicts no variance"
        raise ValueError(
            f"{name} must have shape {output_shape} for samples {sample.shape}, "
            f"got {model_output.shape}{hint}"
        )


def check_network(apply_fn: Any) -> None:
    """Raises ValueError unless `apply_fn` is a function, as a network must be."""
    if not callable(apply_fn):
        raise ValueError(
            "apply_fn must be a function (params, x, t, **cond) -> model_output, "
            f"got {shown(apply_fn)}"
        )

    # A Linen module has no parameters of its own. Those of an NNX module would be constants of
    # compiled programs, which would not see them change. Flax is not imported for this: without it
    # there are no modules either.
    for package, way in _SPLIT_BY.items():
        imported = sys.modules.get(package)
        if imported is not None and isinstance(apply_fn, imported.Module):
            raise ValueError(
                f"apply_fn is a {type(apply_fn).__name__}, a module of {package}; split it into a "
                f"function and its parameters: apply_fn, params = cmjax.{way}"
            )


def parse_cond(cond: Any, batch: int, classes: int | None = None) -> dict[str, Any]:
    """Returns the conditioning as pytrees of arrays `[B, ...]`; lists of numbers become arrays.

    Args:
        cond: names to pytrees of arrays whose leading axis is B, or None.
        batch: number B of samples.
        classes: number of the network's classes, of which `class_labels` must be; None if it has
            none, or they are not known.

    Raises:
        ValueError: for what is no array, another leading axis, labels that are no classes, or a
            scale or an interval of guidance that is not finite, or a scale of 0 or less.
    """
    if cond is None:
        return {}
    if not isinstance(cond, Mapping) or not all(isinstance(name, str) for name in cond):
        raise ValueError(f"cond must map names to arrays, got {shown(cond)}")

    # Labels are checked as they were given: JAX would cut those beyond 32 bits.
    labels = cond.get("class_labels")
    if labels is not None and classes is not None:
        check_class_labels("cond['class_labels']", labels, classes)
    for name in ("guidance_scale", "guidance_interval"):
        _check_guidance(name, cond.get(name))
    return {name: _per_sample(name, value, batch) for name, value in cond.items()}


def _check_guidance(name, value):
    """Raises ValueError for guidance that networks would silently turn into NaN samples."""
    if value is None:
        return
    known = known_reals(f"cond[{name!r}]", value)
    if known is not None and not np.all(np.isfinite(known)):
        raise ValueError(f"cond[{name!r}] must be finite, got {shown(value)}")
    if known is not None and name == "guidance_scale" and not np.all(known > 0):
        raise ValueError(
            f"cond[{name!r}] must be above 0, where 1 is no guidance, got {shown(value)}"
        )


def _per_sample(name, value, batch):
    """One entry of the conditioning, as a pytree of arrays `[B, ...]`."""
    array = functools.partial(_array_of_32_bits, f"cond[{name!r}]")

    # JAX takes a list of B numbers for a pytree of B scalars; here it is one array [B], whatever
    # holds the numbers. Under `jax.jit` they are traced scalars.
    leaves = jax.tree.leaves(value)
    if leaves and type(value) in (list, tuple) and all(map(_is_scalar, leaves)):
        value = array(value)
    value = jax.tree.map(array, value)

    # What is the same for all samples must be repeated: networks may `vmap` over samples.
    for leaf in jax.tree.leaves(value):
        if leaf.shape[:1] != (batch,):
            raise ValueError(
                f"cond[{name!r}] must have the leading axis of the batch, {batch}, "
                f"got {leaf.shape}; repeat what is the same for all samples, or let apply_fn "
                "hold it"
            )
    return value


def _is_scalar(leaf):
    """Whether a leaf of the conditioning is one number: of Python, NumPy or JAX."""
    is_array = isinstance(leaf, np.generic | np.ndarray | jax.Array)
    is_key = is_array and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return isinstance(leaf, bool | int | float) or (
        is_array and not leaf.ndim and not is_key
    )


def _array_of_32_bits(name, value):
    """An array of JAX; raises ValueError for integers that JAX would cut to 32 bits."""
    # Any array of JAX, also one of keys.
    if isinstance(value, jax.Array):
        return value

    array = as_array(name, value)
    check_integers(name, array)
    return jnp.asarray(as_input(array))


def check_integers(name: str, array: Any) -> None:
    """Raises ValueError for integers that JAX would cut to 32 bits, and so to other numbers.

    Args:
        name: the argument's name, for the error.
        array: any array of NumPy or JAX.
    """
    cut = np.dtype(jax.dtypes.canonicalize_dtype(array.dtype))
    if array.size and np.issubdtype(cut, np.integer) and cut != array.dtype:
        limits = np.iinfo(cut)
        if array.min() < limits.min or array.max() > limits.max:
            raise ValueError(f"{name} has numbers beyond {cut}, up to {array.max()}")


def _check_arguments(apply_fn, num_times, cond, error):
    """Raises a ValueError in place of a TypeError if the network does not take its arguments."""
    names = ["params", "x", "t", "r"][: 2 + num_times]
    try:
        signature = inspect.signature(apply_fn)
        signature.bind(*names, **cond)
    except (TypeError, ValueError) as mismatch:
        # A ValueError means that the function is not written in Python, so its arguments are not
        # known.
        call = ", ".join([*names, *(f"{name}=..." for name in cond)])
        way_out = ""
        if isinstance(cond.get("cond"), Mapping):
            way_out = "; to pass what is in cond, write **cond"
        raise ValueError(
            f"apply_fn must take ({call}), as this sampler and cond have it: {mismatch}{way_out}"
        ) from error


def with_arguments_of(network: Network, function: Callable[..., Any]) -> Network:
    """Returns the function `network`, with the arguments of the function that it calls.

    `inspect.signature` then shows params and these arguments, which errors list.

    Args:
        network: `(params, *args, **kwargs) -> model_output`.
        function: the module's function, without params.
    """
    try:
        own = inspect.signature(function)
        params = inspect.Parameter("params", inspect.Parameter.POSITIONAL_ONLY)
        signature = own.replace(parameters=[params, *own.parameters.values()])
    except Exception:
        # The function has an argument `params` of its own, or its signature is not known.
        return network
    network.__signature__ = signature  # pyright: ignore[reportFunctionMemberAccess]
    return network


def takes(apply_fn: ApplyFn, name: str) -> bool:
    """Returns whether a network has a conditioning of this name, or any (`**cond`)."""
    try:
        parameters = inspect.signature(apply_fn).parameters
    except (TypeError, ValueError):
        return True  # not written in Python: its arguments are not known, and the call will say
    kinds = {parameter.kind for parameter in parameters.values()}
    return name in parameters or inspect.Parameter.VAR_KEYWORD in kinds


def num_classes(apply_fn: ApplyFn) -> int | None:
    """Returns the number of a network's classes; None if it has none, or they are not known."""
    return getattr(apply_fn, "num_classes", None)


def with_attributes_of(apply_fn: ApplyFn, network: Network) -> Network:
    """Returns `network`, a function that calls `apply_fn`, with what is known of the latter.

    That is the number of its classes, what it was adapted to, and whether it is guided.
    """
    network = with_classes(network, num_classes(apply_fn))
    network = with_adapted_to(network, adapted_to(apply_fn))
    return with_guidance_mark(network) if is_guided(apply_fn) else network


def with_classes(network: Network, classes: int | None) -> Network:
    """Returns a function that is a network, with the number of its classes."""
    # `jax.jit` and `functools.wraps` copy attributes of a function to the one that they return.
    if classes is not None:
        network.num_classes = classes  # pyright: ignore[reportFunctionMemberAccess]
    return network


def with_adapted_to(network: Network, parametrization: Any) -> Network:
    """Returns a function that is a network, with the parametrization that it was adapted to."""
    if parametrization is not None:
        network.adapted_to = parametrization  # pyright: ignore[reportFunctionMemberAccess]
    return network


def adapted_to(apply_fn: ApplyFn) -> Any:
    """Returns the parametrization that a network was adapted to by `adapt`; None if it was not."""
    return getattr(apply_fn, "adapted_to", None)


def with_guidance_mark(network: Network) -> Network:
    """Returns a function that extrapolates a network's outputs, marked as one that does."""
    network.is_guided = True  # pyright: ignore[reportFunctionMemberAccess]
    return network


def is_guided(apply_fn: ApplyFn) -> bool:
    """Returns whether a network extrapolates outputs, as one of `classifier_free` does."""
    return getattr(apply_fn, "is_guided", False)

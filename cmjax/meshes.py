"""Arrays that are divided over the devices of a mesh with explicit axes.

Along an automatic axis of a mesh XLA decides how results are divided. Along an explicit one, which
is what `jax.make_mesh` makes, it is part of the type of every array (`f32[8@data, 3]`): some
operations are refused, and a loop must return its carry divided as it was given. All functions here
leave their arguments as they are where no axis is explicit.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def sharded_like(array: jax.Array, samples: jax.Array) -> jax.Array:
    """Returns an array `[B, ...]` whose first axis is divided as that of the samples `[B, ...]`.

    Without it `jax.vmap` over both, as in many networks, would be an error.
    """
    sharding = explicit_sharding(samples)
    if sharding is None or not samples.ndim or not array.ndim:
        return array
    return jax.sharding.reshard(array, _along_batch(sharding, sharding.spec[0]))


def with_sharding(array: jax.Array, sharding: NamedSharding) -> jax.Array:
    """Returns an array that is divided in a given way, within a program that is traced."""
    # What is part of the type of an array along explicit axes is a request to XLA along others.
    if all(kind == AxisType.Explicit for kind in sharding.mesh.axis_types):
        return jax.sharding.reshard(array, sharding)
    return jax.lax.with_sharding_constraint(array, sharding)


def fully_sharded_like(array: jax.Array, samples: jax.Array) -> jax.Array:
    """Returns an array of the samples' shape that is divided as they are, on any kind of axes.

    For arrays that are made of the samples' shape alone: along automatic axes XLA divides what is
    computed of divided arrays, and would have every device make the whole of these.
    """
    array = sharded_like(array, samples)

    # A condition that is never true, which XLA does not see: what is chosen from both arrays is
    # divided as they are.
    never = (samples > 1) & (samples < -1)
    return jnp.where(never, samples.astype(array.dtype), array)


def replicated_array(array: jax.Array) -> jax.Array:
    """Returns an array that is not divided along explicit axes, and so can be cut anywhere."""
    sharding = explicit_sharding(array)
    if sharding is None:
        return array
    return jax.sharding.reshard(array, NamedSharding(sharding.mesh, PartitionSpec()))


def batch_sharded_alike(samples: Any) -> Any:
    """Returns a pytree of arrays `[B, ...]`, with all first axes divided as the first that is.

    Inside of `jax.shard_map` all differ from device to device where one of them does.
    """
    samples = pvaried_alike(samples)
    batch = _batch_sharding(samples)
    if batch is None or batch.spec[0] is None:
        return samples

    # Only the first axis changes how it is divided.
    def divide(leaf):
        own = explicit_sharding(leaf)
        others = () if own is None else own.spec[1:]
        spec = PartitionSpec(batch.spec[0], *others)
        return jax.sharding.reshard(leaf, NamedSharding(batch.mesh, spec))

    return jax.tree.map(divide, samples)


def pvaried_alike(arrays: Any) -> Any:
    """Returns a pytree of arrays, all of which differ from device to device if one of them does.

    Arrays may differ so inside of `jax.shard_map` only.
    """
    types = [_varying(jax.typeof(leaf)) for leaf in jax.tree.leaves(arrays)]
    varying = frozenset().union(*types)
    return jax.tree.map(lambda leaf: _varied(leaf, varying), arrays)


def with_automatic_axes(
    function: Callable[..., jax.Array], samples: Any, params: Any = None
) -> jax.Array:
    """Returns `function(samples, params)`, computed as on a mesh with automatic axes.

    The result is divided along its first axis only, as the first of `samples` that is divided.

    Args:
        function: returns one array `[B, ...]`. It may not close over arrays.
        samples: a pytree of arrays `[B, ...]`.
        params: a pytree of arrays, divided along any of their axes.
    """
    out_sharding = _batch_sharding(samples, params)
    if out_sharding is None:
        return function(samples, params)
    automatic: Any = jax.sharding.auto_axes(function, out_sharding=out_sharding)
    return automatic(samples, params)


def sharded_lookup(
    lookup: Callable[[jax.Array, jax.Array], jax.Array], at: jax.Array, table: jax.Array
) -> jax.Array:
    """Returns `lookup(at, table)`, divided over devices as `at` is.

    On explicit axes a divided index cannot be used on an array that is on no mesh.

    Args:
        lookup: returns an array like `at`. It may not close over arrays.
        at: where to look, `[B]` or one number.
        table: `[N]`.
    """
    if not at.ndim:
        return lookup(at, table)
    return with_automatic_axes(lookup, at, table)


def carry_as_returned(body: Callable[[Any], Any], carry: Any) -> Any:
    """Returns the first carry of a scan, divided over devices as `body` returns it.

    Inside of `jax.shard_map` it differs from device to device where what `body` returns does.

    Args:
        body: from carry to carry.
        carry: the first carry; a pytree of arrays.
    """
    # On automatic axes scan needs no help. Unless the caller set a mesh, only the types of arrays
    # tell that there are others.
    mesh = jax.sharding.get_abstract_mesh()
    of_leaves = jax.tree.leaves(jax.tree.map(explicit_sharding, carry))
    is_manual = AxisType.Manual in mesh.axis_types
    if not (of_leaves or _has_explicit_axes(mesh) or is_manual):
        return carry

    def fit(leaf, returned):
        leaf = _varied(leaf, _varying(returned))
        if returned.sharding is None or not _has_explicit_axes(returned.sharding.mesh):
            return leaf
        return jax.sharding.reshard(leaf, returned.sharding)

    # Until nothing changes: what a sampler remembers is divided as the samples that it is made of,
    # which are divided only after the first pass, and it may remember several of them.
    for _ in range(2 + len(jax.tree.leaves(carry))):
        fitted = jax.tree.map(fit, carry, jax.eval_shape(body, carry))
        if jax.tree.map(jax.typeof, fitted) == jax.tree.map(jax.typeof, carry):
            break
        carry = fitted
    return carry


def check_devices(arguments: Mapping[str, Any]) -> None:
    """Raises ValueError if the caller has put arrays on different devices.

    JAX's own error blames the first argument of the program, wherever that may be.

    Args:
        arguments: pytrees, by the names of the arguments that they are.
    """
    places = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(dict(arguments)):
        is_array = isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer)
        # Arrays that are not committed go where the others are.
        if is_array and leaf.committed:
            places.setdefault(frozenset(leaf.sharding.device_set), str(path[0].key))
    if len(places) > 1:
        found = "; ".join(
            f"{name} on {', '.join(sorted(map(str, devices)))}"
            for devices, name in places.items()
        )
        raise ValueError(
            f"arguments are on different devices, {found}; move them to the same by jax.device_put"
        )


def pvaried_for(function: Callable[[Any], jax.Array], argument: Any) -> Any:
    """Returns an argument that differs from device to device wherever the function's result does.

    Inside of `jax.shard_map` the derivative by what all devices share is a sum over devices.

    Args:
        function: from the argument to an array.
        argument: a pytree of arrays.
    """
    if AxisType.Manual not in jax.sharding.get_abstract_mesh().axis_types:
        return argument
    axes = _varying(jax.eval_shape(function, argument))
    return jax.tree.map(lambda leaf: _varied(leaf, axes), argument)


def cond_on_any_mesh(
    is_wanted: jax.Array, one: Callable[[], Any], other: Callable[[], Any]
) -> Any:
    """Returns `one()` where `is_wanted`, bool[], and otherwise `other()`, by `jax.lax.cond`.

    Inside of `jax.shard_map` one of them alone may differ from device to device.

    Args:
        is_wanted: which of them to compute.
        one: returns a pytree of arrays.
        other: returns arrays of the same shapes and dtypes.
    """
    if AxisType.Manual not in jax.sharding.get_abstract_mesh().axis_types:
        return jax.lax.cond(is_wanted, one, other)

    # `cond` wants results of one type: each leaf as one that differs along the axes of both.
    def axes_of_both(first, second):
        return _varying(first) | _varying(second)

    axes = jax.tree.map(axes_of_both, jax.eval_shape(one), jax.eval_shape(other))

    def varied_one():
        return jax.tree.map(_varied, one(), axes)

    def varied_other():
        return jax.tree.map(_varied, other(), axes)

    return jax.lax.cond(is_wanted, varied_one, varied_other)


def _varying(aval: Any) -> frozenset:
    """The axes of `jax.shard_map` along which arrays of a type differ from device to device."""
    # Some versions of JAX have them in `manual_axis_type`, others in `vma`.
    held = getattr(aval, "manual_axis_type", None)
    axes = getattr(aval, "vma", None) if held is None else held.varying
    return axes or frozenset()


def _varied(leaf: Any, axes: frozenset) -> Any:
    """An array as one that differs from device to device along these axes of `jax.shard_map`."""
    missing = axes - _varying(jax.typeof(leaf))
    return jax.lax.pcast(leaf, tuple(missing), to="varying") if missing else leaf


def explicit_sharding(array: Any) -> NamedSharding | None:
    """The sharding that is part of the array's type, or None if no axis of its mesh is explicit."""
    sharding = jax.typeof(array).sharding
    if not _has_explicit_axes(sharding.mesh):
        return None

    # The type has the names of the axes alone. Outside of programs, what is to be divided in the
    # same way has to know the devices, too.
    if isinstance(array, jax.Array) and not isinstance(array, Tracer):
        of_array = array.sharding
        if isinstance(of_array, NamedSharding):
            return NamedSharding(of_array.mesh, sharding.spec)
    return sharding


def _has_explicit_axes(mesh: Any) -> bool:
    return AxisType.Explicit in mesh.axis_types


def _along_batch(sharding: NamedSharding, axis: Any) -> NamedSharding:
    """The sharding of arrays that are divided along their first axis only."""
    return NamedSharding(sharding.mesh, PartitionSpec(axis))


def _batch_sharding(samples: Any, params: Any = None) -> NamedSharding | None:
    """The sharding along the batch of the first of `samples` that is divided along it.

    None if no axis of a mesh is explicit, and not divided if none of the samples is.
    """
    # Arrays without an explicit sharding give None, which is no leaf of a pytree.
    of_samples = jax.tree.leaves(jax.tree.map(explicit_sharding, samples))
    of_params = jax.tree.leaves(jax.tree.map(explicit_sharding, params))
    known = of_samples + of_params
    if not known:
        return None

    # The axis of the mesh that the batch is divided along. All arrays are on the same mesh.
    axis = None
    for sharding in of_samples:
        if axis is None:
            axis = sharding.spec[0]
    return _along_batch(known[0], axis)

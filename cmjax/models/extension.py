"""Networks with further inputs that start as the network they are made from."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cmjax.arrays import ApplyFn
from cmjax.configs import shown
from cmjax.models.adapters import from_nnx
from cmjax.models.registry import architecture, network_name, network_parts

# Fields of configs whose parts start at zero, with the values of a network without them.
EXTENSIONS = {"second_time": None, "guidance_embeds": False}


def extend(
    config: Any, params: Any, *, rngs: nnx.Rngs | None = None, **changes: Any
) -> tuple[ApplyFn, Any, Any]:
    """Makes a network with further inputs of a trained one, whose outputs it keeps.

    The new inputs have no effect until they are trained: what they add to the embedding of the
    time starts at zero. So a flow map that is made of a network of flow matching is, at first, the
    velocity at t for every r, which is right at r = t.

    Example:
        >>> from flax import nnx
        >>> from cmjax.models import DiT, DiTConfig, extend, from_nnx
        >>> config = DiTConfig(sample_size=4, num_layers=1, num_attention_heads=1)
        >>> _, params = from_nnx(DiT(config, rngs=nnx.Rngs(0)))
        >>> apply_fn, params, config = extend(config, params, second_time="span")
        >>> config.second_time
        'span'

    Args:
        config: of the trained network, a `DiTConfig` or a `UNet2DConfig`.
        params: its parameters.
        rngs: of the new parameters; None for those of seed 0.
        **changes: fields of the config to set: `second_time`, `guidance_embeds`.

    Returns:
        `(apply_fn, params, config)` of the new network.

    Raises:
        ValueError: for other fields, or parameters that are not those of `config`.
    """
    name = network_name(config)
    if rngs is not None and not isinstance(rngs, nnx.Rngs):
        raise ValueError(f"rngs must be flax.nnx.Rngs(...) or None, got {shown(rngs)}")
    _check_changes(config, changes)
    trained = _by_name(params)
    _, needed = network_parts(config)
    missing = sorted(_by_name(needed).keys() - trained.keys())
    if missing:
        raise ValueError(f"params has no {missing[0]}, which config needs")

    # The new network, whose further parts are drawn, or zero.
    extended = dataclasses.replace(config, **changes)
    module_class, _ = architecture(name)
    rngs = nnx.Rngs(0) if rngs is None else rngs
    apply_fn, fresh = from_nnx(module_class(extended, rngs=rngs))

    # All that was trained takes the place of the parameter of that name.
    def kept(path, leaf):
        name = jax.tree_util.keystr(path)
        if name not in trained:
            return leaf
        found = trained.pop(name)
        _check_like(name, found, leaf)
        return found

    params = jax.tree_util.tree_map_with_path(kept, fresh)
    if trained:
        raise ValueError(f"params has {shown(sorted(trained)[0])}, and config has not")
    return apply_fn, params, extended


def _check_changes(config: Any, changes: Mapping[str, Any]) -> None:
    """Raises ValueError unless a trained network can get these fields of its config."""
    for field, value in changes.items():
        if field not in EXTENSIONS or not hasattr(config, field):
            raise ValueError(
                f"{field} cannot be changed with the parameters kept; only "
                f"{', '.join(EXTENSIONS)} of a network of cmjax"
            )

        # What is trained for one meaning of an input says nothing of another.
        has = getattr(config, field)
        if has not in (EXTENSIONS[field], value):
            raise ValueError(
                f"{field}={shown(value)} cannot take the place of {shown(has)}, which "
                "the parameters are trained for; leave it out"
            )


def _check_like(name: str, found: Any, leaf: jax.Array) -> None:
    """Raises ValueError unless a parameter has the shape of the network's, and holds floats."""
    if jnp.shape(found) != leaf.shape:
        raise ValueError(
            f"params{name} has shape {jnp.shape(found)}, and config needs {leaf.shape}"
        )
    dtype = jnp.result_type(found)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"params{name} must be an array of floats, got {dtype}")


def is_extension(config: Any, other: Any) -> bool:
    """Whether `other` differs from `config` by inputs that `extend` adds, and by at least one."""
    if type(config) is not type(other) or not hasattr(config, "second_time"):
        return False
    added = {
        name
        for name, without in EXTENSIONS.items()
        if getattr(config, name) == without != getattr(other, name)
    }
    same = {name: getattr(config, name) for name in added}
    return bool(added) and dataclasses.replace(other, **same) == config


def _by_name(params: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}

"""Checks of what a training step is made of and given; all can be seen before it is compiled."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from cmjax.conditioning import check_null
from cmjax.configs import is_finite, positive_int, shown
from cmjax.networks import check_network


def check_label_dropout(label_dropout: Any, null: Any, classes: int | None) -> None:
    """Raises ValueError for a wrong fraction of dropped labels, or with nothing in their place.

    Args:
        label_dropout: the fraction.
        null: what the conditioning becomes.
        classes: number of the network's classes, or None.
    """
    if not is_finite(label_dropout, 0) or label_dropout >= 1:
        raise ValueError(
            f"label_dropout must be a number in [0, 1), got {shown(label_dropout)}"
        )
    if null is None and label_dropout == 0:
        return
    if null is None:
        raise ValueError(
            "label_dropout needs null, what labels become, such as {'class_labels': 10}"
        )
    check_null(null, classes)
    if any(value is None for value in null.values()):
        raise ValueError(
            "null must have values for label_dropout: of some samples alone nothing can be left out"
        )


def check_step_arguments(
    apply_fn: Any, optimizer: Any, ema_decays: Any, accumulate: Any, mesh: Any
) -> None:
    """Raises ValueError, naming the argument, for a wrong one of `make_train_step`."""
    check_network(apply_fn)
    if not isinstance(optimizer, optax.GradientTransformation):
        raise ValueError(
            "optimizer must be a transformation of optax, such as optax.adam(1e-4), "
            f"got {shown(optimizer)}"
        )

    # At least one average: it is what is sampled, and saved as the model.
    is_list = isinstance(ema_decays, (list, tuple)) and len(ema_decays) > 0
    if not is_list or not all(is_finite(decay, 0) and decay < 1 for decay in ema_decays):
        raise ValueError(
            f"ema_decays must be numbers in [0, 1), at least one, got {shown(ema_decays)}"
        )
    positive_int("accumulate", accumulate)
    if mesh is not None and not isinstance(mesh, Mesh):
        raise ValueError(f"mesh must be a jax.sharding.Mesh or None, got {shown(mesh)}")


def check_trained_params(params: Any) -> None:
    """Raises ValueError unless parameters are arrays of floats, naming the first that is not."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if not leaves:
        raise ValueError(f"params holds no arrays, got {shown(params)}")
    for path, leaf in leaves:
        dtype = getattr(leaf, "dtype", None)
        if dtype is None and isinstance(leaf, float):
            continue
        if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            what = type(leaf).__name__ if dtype is None else dtype
            raise ValueError(
                f"params{jax.tree_util.keystr(path)} must be an array of floats, got {what}"
            )


def check_result(loss: Any, result: Any) -> None:
    """Raises ValueError unless a loss has returned (loss f32[], metrics f32[] by name)."""
    is_pair = isinstance(result, tuple) and len(result) == 2
    if not is_pair or not isinstance(result[1], Mapping):
        raise ValueError(
            f"the loss {type(loss).__name__} must return (loss, metrics), "
            f"got {type(result).__name__}"
        )

    # More than one number would be an error of `jax.grad`, which names neither.
    value, metrics = result
    named = {"loss": value} | {f"metrics[{name!r}]": m for name, m in metrics.items()}
    for name, number in named.items():
        if not isinstance(number, (int, float)) and getattr(number, "shape", None) != ():
            what = getattr(number, "shape", None) or type(number).__name__
            raise ValueError(
                f"the loss {type(loss).__name__} must return numbers, got {name} of {what}"
            )

"""An optimizer that is called at some of the training steps only."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from cmjax.meshes import either


class TurnsState(NamedTuple):
    """State of an optimizer that is called at its turns.

    Attributes:
        step: number of steps so far, i32[].
        inner: state of the optimizer.
    """

    step: jax.Array
    inner: Any


def at_turns(
    optimizer: optax.GradientTransformation, is_turn: Callable[[jax.Array], jax.Array]
) -> optax.GradientTransformationExtraArgs:
    """Returns the optimizer, which at other steps is not called: the updates are 0.

    Unlike `optax.conditionally_mask` it takes optimizers whose updates have other dtypes than the
    gradients, and it may be used inside of `jax.shard_map`.

    Args:
        optimizer: any of optax.
        is_turn: from the number of a step, i32[], to whether the optimizer is called, bool[].
    """
    optimizer = optax.with_extra_args_support(optimizer)

    def init(params):
        return TurnsState(jnp.zeros((), jnp.int32), optimizer.init(params))

    def update(updates, state, params=None, **further):
        def called():
            return optimizer.update(updates, state.inner, params, **further)

        def held():
            types, _ = jax.eval_shape(called)
            zeros = jax.tree.map(
                lambda leaf, type_: jnp.zeros_like(leaf, type_.dtype), updates, types
            )
            return zeros, state.inner

        updates, inner = either(is_turn(state.step), called, held)
        return updates, TurnsState(state.step + 1, inner)

    return optax.GradientTransformationExtraArgs(init, update)

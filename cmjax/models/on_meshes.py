"""Lets networks run on meshes with explicit axes, however samples and parameters are divided."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from cmjax.meshes import with_automatic_axes


def on_any_mesh(call: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Decorates the `__call__` of a network `(x, *times, **cond) -> model_output`.

    Convolutions, gathers and reshapes of a divided axis are errors on explicit axes. Within the
    network they are therefore automatic: XLA decides how what it computes is divided. The output
    is divided along the batch, as `x` is.
    """

    @functools.wraps(call)
    def called(self: Any, *times: Any, **cond: Any) -> jax.Array:
        # The parameters have to be arguments, as they may be divided too.
        graph, state = nnx.split(self)

        def function(samples, state):
            times, cond = samples
            return call(nnx.merge(graph, state), *times, **cond)

        return with_automatic_axes(function, (times, cond), state)

    return called

"""Dropout: a network whose calls within a loss all drop out the same units."""

import dataclasses
import functools
from typing import Any

import jax

from cmjax.arrays import ApplyFn


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["key"], meta_fields=["apply_fn"]
)
@dataclasses.dataclass(frozen=True, eq=False)
class WithDropout:
    """A network whose calls all drop out the same units, as those of student and target must.

    Attributes:
        apply_fn: `(params, x, t, *, dropout_key, **cond) -> model_output`, as `from_nnx` makes it.
        key: PRNG key, from which the units follow.
    """

    apply_fn: ApplyFn
    key: jax.Array

    def __call__(self, params: Any, *args: Any, **cond: Any) -> jax.Array:
        """Returns the model output, `[B, ...]`."""
        try:
            return self.apply_fn(params, *args, dropout_key=self.key, **cond)
        except TypeError as error:
            if "keyword argument 'dropout_key'" not in str(error):
                raise
            raise ValueError(
                "dropout calls the network with dropout_key=, a key, which this one does not take; "
                "from_nnx and from_linen make networks that do, or leave dropout out"
            ) from error


def network_as_pytree(apply_fn: ApplyFn) -> ApplyFn:
    """Returns the network as a pytree of the arrays that it holds, which is the key of dropout."""
    if isinstance(apply_fn, WithDropout):
        return apply_fn
    return jax.tree_util.Partial(apply_fn)


def without_dropout(apply_fn: ApplyFn) -> ApplyFn:
    """Returns the network without dropout, for a teacher, which is evaluated only."""
    if isinstance(apply_fn, WithDropout):
        return apply_fn.apply_fn
    return apply_fn

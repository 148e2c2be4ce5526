"""The columns of a sampler's table, and the arrays that they weigh.

`TableScheduler` (`cmjax.schedulers.table`) reads the table.
"""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cmjax.configs import shown


class Weights(NamedTuple):
    """The columns of a sampler's table: the weight of each array in the next sample.

    Columns are f32[N] for N network calls, or one number for all calls. A column that is None is
    absent: it costs nothing, and the array that it would weigh is neither kept nor drawn.

    Attributes:
        x0: weight of this call's x0 estimate.
        eps: weight of the noise that this estimate implies, `(x - alpha x0) / sigma`.
        noise: weight of fresh standard normal noise.
        earlier_x0: weights of the x0 estimates of the call before, the one before that, and so on.
        last_sample: weight of the sample at which the call before started.
        last_noise: weight of the fresh noise of the call before.
        earlier_eps: weights of the eps of the call before, the one before that, and so on.
    """

    # Arrays of this call.
    x0: Any
    eps: Any
    noise: Any = None

    # Arrays of earlier calls, which `Memory` keeps.
    earlier_x0: tuple[Any, ...] = ()
    last_sample: Any = None
    last_noise: Any = None
    earlier_eps: tuple[Any, ...] = ()


class Memory(NamedTuple):
    """The arrays kept from earlier calls; None where the table has no such column.

    Its fields are the last ones of `Weights`, in their order.

    Attributes:
        earlier_x0: x0 estimates `[B, ...]`, the latest first.
        last_sample: the sample `[B, ...]` at which the call before started.
        last_noise: the fresh noise `[B, ...]` of the call before.
        earlier_eps: eps `[B, ...]` of earlier calls, the latest first, in at least float32.
    """

    earlier_x0: tuple[jax.Array, ...] = ()
    last_sample: jax.Array | None = None
    last_noise: jax.Array | None = None
    earlier_eps: tuple[jax.Array, ...] = ()


def check_columns(weights: Any) -> None:
    """Raises ValueError for what a sampler may by mistake return as its table."""
    if not isinstance(weights, Weights):
        raise ValueError(f"weights(levels) must return Weights(...), got {shown(weights)}")
    if weights.x0 is None or weights.eps is None:
        raise ValueError(
            "weights.x0 and weights.eps must be arrays or numbers; 0.0 for no weight"
        )
    for name in ("earlier_x0", "earlier_eps"):
        columns = getattr(weights, name)
        if not isinstance(columns, tuple):
            raise ValueError(
                f"weights.{name} must be a tuple of columns, such as (column,), "
                f"got {shown(columns)}"
            )


def remember(
    memory: Memory,
    sample: jax.Array,
    denoised: jax.Array,
    eps: jax.Array,
    noise: jax.Array,
) -> Memory:
    """Returns the memory after a call: its x0 and eps come first, and the oldest are dropped."""
    # As many as there were: the structure must not change within a scan.
    latest_x0 = (denoised, *memory.earlier_x0)
    latest_eps = (eps, *memory.earlier_eps)
    return Memory(
        earlier_x0=latest_x0[: len(memory.earlier_x0)],
        last_sample=None if memory.last_sample is None else sample,
        last_noise=None if memory.last_noise is None else noise,
        earlier_eps=latest_eps[: len(memory.earlier_eps)],
    )


def interleave(first: jax.Array, second: jax.Array) -> jax.Array:
    """Returns first[0], second[0], first[1], ... without the last entry, f32[2n-1].

    A solver with two calls per step has this order of calls. Its last step has only one: a run may
    end at sigma = 0, where eps, and so the slope, is not defined.

    Args:
        first: f32[n], an entry for each step's first call.
        second: f32[n], an entry for each step's second call; the last is dropped.
    """
    # [n, 2] -> [2n] -> [2n-1].
    return jnp.stack([first, second], axis=1).reshape(-1)[:-1]


def alternate(first: Weights, second: Weights, num_steps: int) -> Weights:
    """Returns the table of a solver with two calls per step, 2n - 1 rows (see `interleave`).

    Args:
        first: weights of each step's first call, f32[n] or numbers.
        second: weights of its second call, likewise. A column that only one of the two has is 0 in
            the rows of the other.
        num_steps: number n of steps.
    """

    # The rows of one table, f32[n].
    def rows(values):
        if values is None:
            values = 0.0
        return jnp.broadcast_to(jnp.asarray(values, jnp.float32), (num_steps,))

    # A column of the whole table, f32[2n-1]; None if neither table has it.
    def column(of_first, of_second):
        if of_first is None and of_second is None:
            return None
        return interleave(rows(of_first), rows(of_second))

    # Of earlier calls, the tables may have different numbers of columns.
    def columns(of_first, of_second):
        pairs = itertools.zip_longest(of_first, of_second)
        return tuple(column(*pair) for pair in pairs)

    return Weights(
        x0=column(first.x0, second.x0),
        eps=column(first.eps, second.eps),
        noise=column(first.noise, second.noise),
        earlier_x0=columns(first.earlier_x0, second.earlier_x0),
        last_sample=column(first.last_sample, second.last_sample),
        last_noise=column(first.last_noise, second.last_noise),
        earlier_eps=columns(first.earlier_eps, second.earlier_eps),
    )

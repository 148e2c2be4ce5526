"""How two estimates of x0 are compared: functions `(a, b) -> f32[B]` of arrays `[B, ...]`."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from cmjax.arrays import safe_sqrt
from cmjax.configs import check_options, did_you_mean, shown

Metric = Callable[[jax.Array, jax.Array], jax.Array]  # (a, b) [B, ...] -> f32[B]


@dataclasses.dataclass(frozen=True)
class L1:
    """The mean of `|a - b|` over each sample."""

    def __call__(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """Returns the distance of each sample, f32[B]."""
        # In float32: bfloat16 would round the distance of a sample to two or three digits.
        difference = (a - b).astype(jnp.float32)
        return jnp.mean(jnp.abs(difference), axis=tuple(range(1, a.ndim)))


@dataclasses.dataclass(frozen=True)
class L2:
    """The mean of `(a - b)^2` over each sample."""

    def __call__(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """Returns the distance of each sample, f32[B]."""
        return mean_square(a - b)


@dataclasses.dataclass(frozen=True)
class PseudoHuber:
    """`sqrt(|a - b|^2 + c^2 D) - c sqrt(D)` in D dimensions (Song and Dhariwal 2023, equation 8).

    Attributes:
        c: where the metric turns from quadratic to linear, as an error per dimension; with 0 it is
            the Euclidean norm. The paper's constant is `0.00054 sqrt(D)`: c = 0.00054 here.

    Raises:
        ValueError: for a negative c.
    """

    c: float = 0.00054

    _domains = {"c": (0.0, 1e6)}

    def __post_init__(self):
        check_options(self)

    def __call__(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """Returns the distance of each sample, f32[B]; its gradient at a = b is 0."""
        # sqrt(|a - b|^2 + c^2 D), from the mean square, which is computed in float32.
        error = a - b
        dimension = math.prod(error.shape[1:])
        offset = self.c * dimension**0.5
        square = sum_of_squares(error) + offset**2
        return safe_sqrt(square) - offset


METRICS: dict[str, type] = {"l1": L1, "l2": L2, "pseudo_huber": PseudoHuber}


def mean_square(error: jax.Array) -> jax.Array:
    """Returns the mean of the squares over all but the first axis, f32[B]."""
    return jnp.mean(jnp.square(error.astype(jnp.float32)), axis=tuple(range(1, error.ndim)))


def sum_of_squares(error: jax.Array) -> jax.Array:
    """Returns the sum of the squares over all but the first axis, f32[B]."""
    return mean_square(error) * math.prod(error.shape[1:])


def per_sample(name: str, values: Any, count: int) -> jax.Array:
    """Checks the result of a user's function, and returns it, f32[count].

    Args:
        name: of the function, for the error.
        values: its result.
        count: number of samples, B.

    Raises:
        ValueError: unless it is one number per sample. Others would be broadcast without an error.
    """
    dtype = getattr(values, "dtype", None)
    is_floating = dtype is not None and jnp.issubdtype(dtype, jnp.floating)
    if not is_floating or values.shape != (count,):
        what = type(values).__name__ if dtype is None else f"{dtype}{list(values.shape)}"
        raise ValueError(
            f"{name} must return a number per sample, f32[{count}], got {what}"
        )

    # In float32: the mean over a batch in half precision has two or three digits.
    return values.astype(jnp.float32)


def metric_from_options(
    default: Any, metric: Any = None, huber_c: float | None = None
) -> Metric:
    """Returns the metric that a configuration file describes with `metric` and `huber_c`.

    Args:
        default: the metric of the loss where the file says nothing.
        metric: a name of `METRICS`, or a metric; None for the default.
        huber_c: `PseudoHuber.c`; None for that of the default.

    Raises:
        ValueError: for an unknown name, or for `huber_c` with a metric other than `PseudoHuber`.
    """
    if isinstance(metric, str):
        if metric not in METRICS:
            raise ValueError(
                f"metric is {shown(metric)}{did_you_mean(metric, list(METRICS))}"
            )
        # The name of the default keeps the constant of the loss: ECT's c is 0, iCT's 0.00054.
        is_default = type(default) is METRICS[metric]
        metric = default if is_default else METRICS[metric]()
    chosen = default if metric is None else metric

    # The constant belongs to one metric: it must not be ignored with another.
    if huber_c is None:
        return chosen
    if not isinstance(chosen, PseudoHuber):
        raise ValueError(
            f"huber_c={shown(huber_c)} is the constant of metric 'pseudo_huber'; "
            "leave it out for other metrics"
        )
    return PseudoHuber(huber_c)

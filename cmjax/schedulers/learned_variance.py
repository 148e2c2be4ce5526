"""Networks that learned the variance of a step's noise (Nichol and Dhariwal 2021)."""

from typing import Any

import jax
import jax.numpy as jnp

from cmjax.arrays import as_floats, at_least_float32, safe_sqrt
from cmjax.networks import check_output
from cmjax.schedulers.table import TableState


def output_shape(scheduler: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape of the model output for samples of a shape, `(B, ..., C)`.

    It has `2 C` channels, a prediction and then its variance, if the variance is learned.

    Args:
        scheduler: with the field `variance_type`, which may be None.
        shape: of the samples.

    Raises:
        ValueError: for samples without channels.
    """
    variance_type = scheduler.variance_type
    if variance_type is None or not variance_type.startswith("learned"):
        return shape
    if len(shape) < 2:
        raise ValueError(
            f"samples need a last axis of channels with variance_type={variance_type!r}, "
            f"got shape {shape}"
        )
    return (*shape[:-1], 2 * shape[-1])


def split_output(
    scheduler: Any, model_output: jax.Array, sample: jax.Array
) -> tuple[jax.Array, jax.Array | None]:
    """Returns the network's prediction and what it says of the variance, `[B, ..., C]` each.

    Args:
        scheduler: with the field `variance_type`.
        model_output: `[B, ..., 2 C]` if the variance is learned, otherwise `[B, ...]`: all of it is
            the prediction, and the variance is None.
        sample: `[B, ..., C]`.

    Raises:
        ValueError: for an output of another shape, or arrays that hold no floats.
    """
    model_output = as_floats("model_output", model_output)
    sample = as_floats("sample", sample)
    expected = output_shape(scheduler, sample.shape)
    if expected == sample.shape:
        return model_output, None
    check_output(model_output, sample, expected)
    channels = sample.shape[-1]
    return model_output[..., :channels], model_output[..., channels:]


def standard_deviation(
    variance_type: str, variance: jax.Array, state: TableState
) -> jax.Array:
    """Returns the learned standard deviation as a factor of the table's, `[B, ...]`.

    Args:
        variance_type: "learned", for a variance itself, with 1 in the table, or "learned_range",
            for a number from -1 to 1, with the large standard deviation of a step in the table.
        variance: what the network says, `[B, ...]`.
        state: of the run, at this step.
    """
    variance = at_least_float32(variance)
    if variance_type == "learned":
        # The root has no slope at 0, where there is no noise to learn either.
        return safe_sqrt(variance)

    # Nichol and Dhariwal 2021, equation 15: from 1 for the large variance down to sigma' / sigma
    # for the small one. The last step ends at 0, where the table has no noise.
    ratio = state.next_sigma / state.sigma
    log_ratio = jnp.log(jnp.where(ratio > 0, ratio, 1)).astype(variance.dtype)
    return jnp.exp((1 - variance) / 2 * log_ratio)

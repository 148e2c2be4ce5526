"""What the losses of flow matching and of flow maps share: schedulers, times, the straight path."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from cmjax import random
from cmjax.arrays import ApplyFn, combine
from cmjax.conditioning import check_fits
from cmjax.meshes import divided_like
from cmjax.networks import call_network, num_classes
from cmjax.parametrization import FlowMatching

# Valid values of the fields that these losses have.
TIME_DOMAINS = {
    "p_mean": (-50.0, 50.0),
    "p_std": (1e-6, 50.0),
    "uniform_fraction": (0.0, 1.0),
}


def check_flow_scheduler(scheduler: Any, num_times: int) -> None:
    """Checks that a scheduler is for networks that return a velocity of flow matching.

    Args:
        scheduler: the scheduler.
        num_times: number of times that the network must be told.

    Raises:
        ValueError: if it is another kind of scheduler.
    """
    name = scheduler.__name__ if isinstance(scheduler, type) else type(scheduler).__name__
    wanted = "FlowMatchEulerDiscreteScheduler"
    if num_times == 2:
        wanted = "FlowMapEulerDiscreteScheduler"

    # A class has its fields' defaults as attributes, but no parametrization of its own.
    parametrization = getattr(scheduler, "parametrization", None)
    is_velocity = (
        isinstance(parametrization, FlowMatching)
        and parametrization.prediction_type == "flow_prediction"
    )
    if not is_velocity:
        raise ValueError(
            "scheduler must be one of flow matching for this loss, such as "
            f"{wanted}(), got {name}"
        )
    if getattr(scheduler, "num_times", 1) != num_times:
        raise ValueError(
            f"scheduler is a {name}, whose networks take "
            f"{getattr(scheduler, 'num_times', 1)} times, and this loss trains networks of "
            f"{num_times}; take {wanted}()"
        )


def draw_times(
    key: jax.Array, count: int, p_mean: float, p_std: float, uniform_fraction: float = 0.0
) -> jax.Array:
    """Returns times t in (0, 1), f32[count], whose logit is normal (Esser et al. 2024, 3.1).

    The logit of t is the logarithm of the ratio of noise to signal, t / (1 - t). So `p_mean` and
    `p_std` are mean and standard deviation of log sigma in EDM's terms, as of the other losses.
    They hardly ever give times near 1, where one-step sampling starts; the uniform share does.

    Args:
        key: PRNG key.
        count: how many.
        p_mean: mean of the logit.
        p_std: standard deviation of the logit.
        uniform_fraction: share of the times that are drawn uniformly.
    """
    normal_key, uniform_key, choice_key = random.split(key, 3)
    t = jax.nn.sigmoid(p_mean + p_std * random.normal(normal_key, (count,)))
    uniform = random.uniform(uniform_key, (count,))
    is_uniform = random.uniform(choice_key, (count,)) < uniform_fraction
    return jnp.where(is_uniform, uniform, t)


def on_path(data: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
    """Returns `(1 - t) data + t noise`, `[B, ...]`, the samples at the times t f32[B]."""
    return combine((1 - t, data), (t, noise))


def velocity_of(data: jax.Array, noise: jax.Array) -> jax.Array:
    """Returns `noise - data`, `[B, ...]` in the dtype of the data: how the path moves with t."""
    return combine((-1, data), (1, noise))


def mean_velocity(apply_fn: ApplyFn, scheduler: Any) -> Callable[..., jax.Array]:
    """Returns the network of a flow map as a function of times from 0 to 1.

    Args:
        apply_fn: the network, `(params, x, t, r, **cond) -> model_output`.
        scheduler: the scheduler that it is for, which scales its times.

    Returns:
        `(params, x, t, r, cond) -> u`, the mean velocity from t to r, `[B, ...]`, for samples x
        `[B, ...]` and times f32[B].
    """
    parametrization = scheduler.parametrization

    def velocity(params, x, t, r, cond):
        times = [parametrization.time_of(time) for time in (t, r)]
        times = tuple(divided_like(time, x) for time in times)
        return call_network(apply_fn, params, x, times, cond)

    return velocity


def without_class(
    apply_fn: ApplyFn, cond: dict[str, Any], null_class: Any
) -> dict[str, Any]:
    """Returns the conditioning of a batch with all `class_labels` replaced by `null_class`.

    Raises:
        ValueError: if the batch has no labels, or the network no such class.
    """
    labels = cond.get("class_labels")
    if labels is None:
        raise ValueError("guidance is by classes: the batch needs class_labels")

    # Within a compiled step labels are not known, and one that is no class would become NaN.
    classes = num_classes(apply_fn)
    if classes is not None and null_class >= classes:
        raise ValueError(
            f"null_class={null_class} is none of the network's {classes} classes; give it one more "
            "by num_class_embeds"
        )
    check_fits("null_class", null_class, labels.dtype)
    return {**cond, "class_labels": jnp.full_like(labels, null_class)}

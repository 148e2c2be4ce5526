"""What the losses of flow matching and of flow maps share: schedulers, times, the straight path."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from cmjax import random
from cmjax.arrays import ApplyFn, combine
from cmjax.conditioning import check_null, with_null
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
        num_times: number of times that the network must take.

    Raises:
        ValueError: if it is another kind of scheduler.
    """
    is_class = isinstance(scheduler, type)
    name = f"the class {scheduler.__name__}" if is_class else type(scheduler).__name__
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

    # log(t / (1 - t)) ~ N(p_mean, p_std^2).
    t = jax.nn.sigmoid(p_mean + p_std * random.normal(normal_key, (count,)))

    # A uniform t in place of some of them.
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

    # The network's times, divided over devices like the samples.
    def velocity(params, x, t, r, cond):
        start = divided_like(parametrization.time_of(t), x)
        end = divided_like(parametrization.time_of(r), x)
        return call_network(apply_fn, params, x, (start, end), cond)

    return velocity


def without_class(
    apply_fn: ApplyFn, cond: dict[str, Any], null_class: Any
) -> dict[str, Any]:
    """Returns the conditioning of a batch with all `class_labels` replaced by `null_class`.

    Raises:
        ValueError: if the batch has no labels, or the network no such class.
    """
    if "class_labels" not in cond:
        raise ValueError("guidance is by classes: the batch needs class_labels")

    # Checked here: the embedding of a label that is no class is NaN, without an error.
    null = {"class_labels": null_class}
    try:
        check_null(null, num_classes(apply_fn))
    except ValueError as error:
        raise ValueError(
            f"null_class={null_class} is not a class of the network; give it one more, as by "
            f"null_class = true of [network] ({error})"
        ) from None
    return with_null(cond, null)

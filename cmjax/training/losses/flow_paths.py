"""What the losses of flow matching and of flow maps share: schedulers, times, the straight path."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from cmjax import random
from cmjax.arrays import ApplyFn, weighted_sum
from cmjax.conditioning import check_null, with_null
from cmjax.meshes import sharded_like
from cmjax.networks import call_network, num_classes, takes, with_attributes_of
from cmjax.parametrization import FlowMatching


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
    They hardly ever give times near 1, where one-step sampling starts; the uniform fraction does.

    Args:
        key: PRNG key.
        count: how many.
        p_mean: mean of the logit.
        p_std: standard deviation of the logit.
        uniform_fraction: fraction of the times that are drawn uniformly.
    """
    normal_key, uniform_key, choice_key = random.split(key, 3)

    # log(t / (1 - t)) ~ N(p_mean, p_std^2).
    t = jax.nn.sigmoid(p_mean + p_std * random.normal(normal_key, (count,)))

    # A uniform t in place of some of them.
    uniform = random.uniform(uniform_key, (count,))
    is_uniform = random.uniform(choice_key, (count,)) < uniform_fraction
    return jnp.where(is_uniform, uniform, t)


def check_times(data: jax.Array, **times: Any) -> None:
    """Checks that times are given for each sample, f32[B].

    Args:
        data: `[B, ...]`.
        **times: the times by the names of their arguments.

    Raises:
        ValueError: naming the one that has another shape.
    """
    for name, values in times.items():
        if jnp.shape(values) != data.shape[:1]:
            raise ValueError(
                f"{name} must be one time per sample, of shape {data.shape[:1]}, got shape "
                f"{jnp.shape(values)}; repeat what is the same for all by jnp.full"
            )


def draw_noise(key: jax.Array, data: jax.Array, scheduler: Any) -> jax.Array:
    """Returns the noise that the paths of a scheduler end at, f32[B, ...] in the shape of the data.

    It is normal, with the `noise_scale` of the parametrization as its standard deviation.
    """
    return scheduler.parametrization.noise_scale * random.normal(key, data.shape)


def on_path(data: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
    """Returns `(1 - t) data + t noise`, `[B, ...]`, the samples at the times t f32[B]."""
    return weighted_sum((1 - t, data), (t, noise))


def velocity_of(data: jax.Array, noise: jax.Array) -> jax.Array:
    """Returns `noise - data`, `[B, ...]` in the dtype of the data: how the path moves with t."""
    return weighted_sum((-1, data), (1, noise))


def mean_velocity(apply_fn: ApplyFn, scheduler: Any) -> Callable[..., jax.Array]:
    """Returns the network of a flow map as a function of times from 0 to 1.

    Args:
        apply_fn: the network, `(params, x, t, r, **cond) -> model_output`.
        scheduler: the scheduler that it is for, which scales its times.

    Returns:
        `(params, x, t, r, cond) -> u`, the mean velocity from t to r, `[B, ...]`, for samples x
        `[B, ...]` and times f32[B].
    """

    def velocity(params, x, t, r, cond):
        times = _network_times(scheduler, x, t, r)
        return call_network(apply_fn, params, x, times, cond)

    return velocity


def _network_times(scheduler, x, t, r):
    """Returns the network's times of t and r, f32[B] each, divided over devices like x."""
    time_of = scheduler.parametrization.time_of
    return sharded_like(time_of(t), x), sharded_like(time_of(r), x)


def both_velocities(
    apply_fn: ApplyFn, scheduler: Any
) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """Returns a network with a second head as a function of times from 0 to 1.

    Args:
        apply_fn: the network, which with `second_head=True` returns the outputs of both heads, one
            after the other along the last axis.
        scheduler: as of `mean_velocity`.

    Returns:
        `(params, x, t, r, cond) -> (u, v)`: the mean velocity from t to r, and the second head's
        velocity at t, `[B, ...]` each.

    Raises:
        ValueError: if the network does not take `second_head`, does not return both outputs, or
            is compiled for `second_head` as an array.
    """
    if not takes(apply_fn, "second_head"):
        raise ValueError(
            "second_head is for networks that have one, such as a PixelMeanFlow with "
            "second_head_layers; leave it out for others"
        )

    # With both outputs, which are checked here as one of twice the channels.
    def both(params, x, *times, **cond):
        try:
            output = apply_fn(params, x, *times, second_head=True, **cond)
        except jax.errors.TracerBoolConversionError:
            # `jax.jit` around the network traces the argument, which decides what it returns.
            raise ValueError(
                "second_head must be static for this network: name it in static_argnames of "
                "its jax.jit, or give the network without jit"
            ) from None

        # A network that takes anything may pass over what it does not know.
        if jnp.shape(output) == x.shape:
            raise ValueError(
                "second_head: the network returns one velocity; with second_head=True it must "
                "return both heads' along the last axis, as by second_head_layers of its config"
            )
        return output

    both = with_attributes_of(apply_fn, both)

    def velocities(params, x, t, r, cond):
        shape = (*x.shape[:-1], 2 * x.shape[-1])
        times = _network_times(scheduler, x, t, r)
        output = call_network(both, params, x, times, cond, output_shape=shape)
        u, v = jnp.split(output, 2, axis=-1)
        return u, v

    return velocities


def without_class(
    apply_fn: ApplyFn, cond: dict[str, Any], null_class: Any
) -> dict[str, Any]:
    """Returns the conditioning of a batch with all `class_labels` replaced by `null_class`.

    Raises:
        ValueError: if the batch has no labels `[B]`, or the network no such class.
    """
    if "class_labels" not in cond:
        raise ValueError("guidance is by classes: the batch needs class_labels")
    labels = cond["class_labels"]
    if labels.ndim != 1:
        raise ValueError(
            f"batch['class_labels'] must be one class per sample, [B], got {labels.shape}"
        )

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

"""Reads a network as a consistency function or a denoiser, and converts its parametrization.

A `scheduler` here is any object with a `parametrization`, for networks of one time. `adapt` also
reads the `sigma_range` of its source, and `trigflow_network` reads `sigma_data`.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from cmjax.arrays import ApplyFn, inverse_or_zero, scaled, weighted_sum
from cmjax.configs import shown
from cmjax.meshes import sharded_like
from cmjax.networks import check_network, with_adapted_to, with_attributes_of
from cmjax.parametrization.base import Parametrization, denoise
from cmjax.parametrization.trigflow import TrigFlow
from cmjax.tracing import cached_unless_tracing

# Number of adapted networks to keep, so that programs that are compiled for them are found again.
_NETWORKS = 64

# Either of the two functions below: (apply_fn, params, scheduler, x, sigma, **cond) -> x0.
Denoiser = Callable[..., jax.Array]


def consistency_function(
    apply_fn: ApplyFn,
    params: Any,
    scheduler: Any,
    x: jax.Array,
    sigma: jax.Array,
    /,
    **cond: Any,
) -> jax.Array:
    """Returns `f(x, sigma)`, the x0 of a consistency model, `[B, ...]`.

    `f(x, sigma) = c_skip x + c_out F(c_in x, t)` with f(x, sigma_min) = x (Song et al. 2023,
    appendix C); in TrigFlow's terms f(x, 0) = x. Not clipped: training needs the gradient
    everywhere.

    Args:
        apply_fn: `(params, x, t, **cond) -> model_output`.
        params: of the network.
        scheduler: the scheduler that the network is for.
        x: noisy samples `x0 + sigma z`, `[B, ...]`.
        sigma: their noise levels, f32[B].
        **cond: per-sample conditioning, passed to `apply_fn`.
    """
    parametrization = one_time_parametrization("scheduler", scheduler)
    return denoise(apply_fn, params, parametrization, x, sigma, **cond)


def edm_denoiser(
    apply_fn: ApplyFn,
    params: Any,
    scheduler: Any,
    x: jax.Array,
    sigma: jax.Array,
    /,
    **cond: Any,
) -> jax.Array:
    """Returns `D(x, sigma)`, the x0 of a denoiser, `[B, ...]`.

    The scalings are those of the scheduler's parametrization, without the boundary condition of a
    consistency function. For EDM they are those of Karras et al. 2022, table 1.

    Args:
        apply_fn: `(params, x, t, **cond) -> model_output`.
        params: of the network.
        scheduler: the scheduler that the network is for.
        x: noisy samples `x0 + sigma z`, `[B, ...]`.
        sigma: their noise levels, f32[B].
        **cond: per-sample conditioning, passed to `apply_fn`.
    """
    # The boundary condition of consistency models makes c_out = 0 at sigma_min.
    parametrization = one_time_parametrization("scheduler", scheduler).without_boundary()
    return denoise(apply_fn, params, parametrization, x, sigma, **cond)


def trigflow_network(
    apply_fn: ApplyFn, scheduler: Any, denoiser: Denoiser = consistency_function
) -> ApplyFn:
    """Returns a network as TrigFlow's F: `x0 = cos(t) x - sin(t) sigma_data F`.

    Any network is one, up to scalings (Lu and Song 2024, section 3): a sample x at the angle t is
    the sample `x / cos(t)` at EDM's noise level `sigma_data tan(t)`. Unlike `adapt` this puts no
    bounds on the levels, so that it can be differentiated by t everywhere.

    Args:
        apply_fn: the network, `(params, x, t, **cond) -> model_output`.
        scheduler: the scheduler that the network is for; its sigma_data becomes TrigFlow's.
        denoiser: `consistency_function`, or `edm_denoiser` if the network is a denoiser.

    Returns:
        `(params, x, t, **cond) -> F`, for samples x `[B, ...]` of standard deviation sigma_data,
        at angles t f32[B].

    Raises:
        ValueError: if the scheduler has no sigma_data.
    """
    if not hasattr(scheduler, "sigma_data"):
        raise ValueError(
            f"scheduler must have sigma_data, got {shown(scheduler)}; adapt the network to "
            "SCMScheduler or CMStochasticIterativeScheduler, which have it"
        )
    sigma_data = scheduler.sigma_data

    # A TrigFlow network takes x / sigma_data, and returns F itself.
    def unchanged(params, x, t, **cond):
        return apply_fn(params, scaled(1 / sigma_data, x), sharded_like(t, x), **cond)

    # Any other network estimates x0, from which F follows.
    def converted(params, x, t, /, **cond):
        cos = jnp.cos(t)
        sin = sigma_data * jnp.sin(t)

        # To EDM's terms: x / cos(t) = x0 + sigma_data tan(t) z.
        noisy = scaled(1 / cos, x)
        denoised = denoiser(
            apply_fn, params, scheduler, noisy, sigma_data * jnp.tan(t), **cond
        )

        # x0 = cos(t) x - sin(t) sigma_data F, solved for F.
        return weighted_sum((cos / sin, x), (-1 / sin, denoised))

    # TrigFlow's own network needs no conversion, which would divide by sin(t) = 0 at t = 0.
    is_trigflow = scheduler.parametrization == TrigFlow(sigma_data)
    network = with_attributes_of(apply_fn, unchanged if is_trigflow else converted)
    return with_adapted_to(network, TrigFlow(sigma_data))


def adapt(
    apply_fn: ApplyFn, source: Any, target: Any, denoiser: Denoiser = consistency_function
) -> ApplyFn:
    """Converts a network trained for one scheduler into the network that another one expects.

    The target's input is converted to EDM's terms, `x / alpha` at the level `sigma / alpha`. The
    source's network estimates x0 there, and that x0 is converted to the output that the target
    expects. Levels outside the source's range count as its highest or lowest level.

    Example:
        >>> import cmjax, jax
        >>> from cmjax.parametrization import adapt, edm_denoiser
        >>> source = cmjax.CMStochasticIterativeScheduler()
        >>> target = cmjax.DDIMScheduler()
        >>> def apply_fn(params, x, t):
        ...     return params * x
        >>> adapted = adapt(apply_fn, source, target, edm_denoiser)
        >>> x0 = cmjax.sample(
        ...     jax.random.key(0), adapted, 0.1, target, (4, 2), num_inference_steps=20
        ... )
        >>> x0.shape
        (4, 2)

    Args:
        apply_fn: the network, `(params, x, t, **cond) -> model_output`.
        source: the scheduler that the network was trained for.
        target: the scheduler to sample with, or a parametrization. For a teacher, which losses read
            as a denoiser, it is `scheduler.parametrization.without_boundary()` of their scheduler.
        denoiser: `consistency_function`, or `edm_denoiser` if the network is a denoiser.

    Returns:
        `(params, x, t, **cond) -> model_output` in the target's terms.

    Raises:
        ValueError: if a scheduler has no parametrization, or its network takes two times, if the
            source has no sigma_range, or if the target asks for noise where it does not give x0.
    """
    check_network(apply_fn)
    one_time_parametrization("source", source)
    if not isinstance(target, Parametrization):
        _check_first_level(target)
        target = one_time_parametrization("target", target)
    if not hasattr(source, "sigma_range"):
        raise ValueError(
            "source must have sigma_range, the lowest and highest sigma / alpha of its network, as "
            f"cmjax's schedulers do, got {shown(source)}"
        )
    return cached_unless_tracing(_adapted, apply_fn, source, target, denoiser)


def _check_first_level(target):
    """Raises ValueError if the target would have noise predicted at the pure noise of flows.

    There x0 is divided by an alpha of 1e-6, and the network's whole time says another one.
    """
    flow_grid = getattr(target, "flow_grid", None)
    if flow_grid is None or not target.use_flow_sigmas:
        return
    if target.prediction_type == "epsilon" and flow_grid(1)[0] == 1:
        raise ValueError(
            f"a {type(target).__name__} on flow levels begins at pure noise, where predicted noise "
            "(prediction_type='epsilon') does not determine x0; set "
            "prediction_type='flow_prediction', which an adapted network predicts as well"
        )


def read_alike(source: Any, other: Any) -> bool:
    """Returns whether two schedulers read a network's output alike, as a denoiser's too.

    If so, a network for one of them is one for the other. A boundary condition has to be taken off
    for a denoiser, and networks that take two times are trained for their own scheduler.
    """
    if any(getattr(scheduler, "num_times", 1) != 1 for scheduler in (source, other)):
        return False
    own = getattr(source, "parametrization", None)
    if not isinstance(own, Parametrization):
        return False
    return own == getattr(other, "parametrization", None) == own.without_boundary()


def one_time_parametrization(name: str, scheduler: Any) -> Parametrization:
    """Returns the parametrization of a scheduler whose networks take one time.

    A network of two times, a flow map, has no single noise level at which it gives x0.

    Args:
        name: the argument's name, for the error.
        scheduler: the scheduler.

    Raises:
        ValueError: if it has no parametrization, or its networks take two times.
    """
    parametrization = getattr(scheduler, "parametrization", None)
    if not isinstance(parametrization, Parametrization):
        raise ValueError(
            f"{name} must have a parametrization, as cmjax's schedulers do, "
            f"got {shown(scheduler)}"
        )
    if getattr(scheduler, "num_times", 1) != 1:
        raise ValueError(
            f"{name} is a {type(scheduler).__name__}, whose networks take two times and cannot be "
            "converted or read at one level; sample with it, or take another scheduler"
        )
    return parametrization


@functools.lru_cache(_NETWORKS)
def _adapted(apply_fn, source, target, denoiser):
    """The network of `adapt`, from checked arguments."""
    lowest, highest = source.sigma_range

    def adapted(params, network_input, t, /, **cond):
        # The level that the target's time stands for, and what the target does with its network.
        alpha, sigma = target.path(t)
        c_in, c_skip, c_out = target.scalings(alpha, sigma)

        # The target's sample before it was scaled, x = alpha x0 + sigma z.
        x = scaled(1 / c_in, network_input)

        # To EDM's terms: x / alpha at the level sigma / alpha, within the source's range. At
        # alpha = 0 the sample is pure noise, which is scaled to the source's highest level.
        scale = jnp.minimum(1 / jnp.maximum(alpha, 1e-30), highest / sigma)
        level = jnp.maximum(scale * sigma, lowest)
        denoised = denoiser(apply_fn, params, source, scaled(scale, x), level, **cond)

        # x0 = c_skip x + c_out F, solved for the target's F. Where c_out is 0, F does not matter.
        inverse = inverse_or_zero(c_out)
        return weighted_sum((inverse, denoised), (-c_skip * inverse, x))

    return with_adapted_to(with_attributes_of(apply_fn, adapted), target)

"""The functions that a network defines, and networks of one parametrization as those of another.

A `scheduler` here is any object with a `parametrization`; `adapt` also asks for its `sigma_range`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from cmjax.arrays import ApplyFn, combine
from cmjax.parametrization.base import Parametrization, denoise
from cmjax.parametrization.trigflow import TrigFlow

Denoiser = Callable[..., jax.Array]


def consistency_function(
    apply_fn: ApplyFn, params: Any, scheduler: Any, x: jax.Array, sigma: jax.Array, **cond: Any
) -> jax.Array:
    """Returns `f(x, sigma)`, the x0 of a consistency model, `[B, ...]`.

    `f(x, sigma) = c_skip x + c_out F(c_in x, t)` with f(x, sigma_min) = x (Song et al. 2023,
    appendix C); in TrigFlow's terms f(x, 0) = x. Not clipped: training needs the gradient
    everywhere.

    Args:
        apply_fn: `(params, x, t, **cond) -> model_output`.
        params: of the network.
        scheduler: the scheduler it is for.
        x: noisy samples `x0 + sigma z`, `[B, ...]`.
        sigma: their noise levels, f32[B].
        **cond: per-sample conditioning, handed to `apply_fn`.
    """
    return denoise(apply_fn, params, scheduler.parametrization, x, sigma, **cond)


def edm_denoiser(
    apply_fn: ApplyFn, params: Any, scheduler: Any, x: jax.Array, sigma: jax.Array, **cond: Any
) -> jax.Array:
    """Returns `D(x, sigma)`, the x0 of a network that denoises, `[B, ...]`.

    The scalings are those of Karras et al. 2022, table 1, without a boundary condition.

    Args:
        apply_fn: `(params, x, t, **cond) -> model_output`.
        params: of the network.
        scheduler: the scheduler it is for.
        x: noisy samples `x0 + sigma z`, `[B, ...]`.
        sigma: their noise levels, f32[B].
        **cond: per-sample conditioning, handed to `apply_fn`.
    """
    parametrization = scheduler.parametrization.without_boundary()
    return denoise(apply_fn, params, parametrization, x, sigma, **cond)


def trigflow_network(
    apply_fn: ApplyFn, scheduler: Any, denoiser: Denoiser = consistency_function
) -> ApplyFn:
    """Returns a network as TrigFlow's F: `x0 = cos(t) x - sin(t) sigma_data F`.

    Any network is one, up to scalings (Lu and Song 2024, section 3): at the noise level
    `sigma_data tan(t)` it sees `x / cos(t)`. Unlike `adapt` this has no bounds on the levels, and
    so a derivative everywhere.

    Args:
        apply_fn: the network, `(params, x, t, **cond) -> model_output`.
        scheduler: the scheduler it is for; its sigma_data is TrigFlow's.
        denoiser: `consistency_function`, or `edm_denoiser` where the network is one that denoises.

    Returns:
        `(params, x, t, **cond) -> F`, for x `[B, ...]` at angles t f32[B], not divided by
        sigma_data.
    """
    sigma_data = scheduler.sigma_data

    def as_it_is(params, x, t, **cond):
        return apply_fn(params, combine((1 / sigma_data, x)), t, **cond)

    def converted(params, x, t, **cond):
        cos = jnp.cos(t)
        sin = sigma_data * jnp.sin(t)
        noisy = combine((1 / cos, x))
        denoised = denoiser(apply_fn, params, scheduler, noisy, sigma_data * jnp.tan(t), **cond)

        # x0 = cos(t) x - sin(t) sigma_data F, solved for F.
        return combine((cos / sin, x), (-1 / sin, denoised))

    return as_it_is if scheduler.parametrization == TrigFlow(sigma_data) else converted


def adapt(
    apply_fn: ApplyFn, source: Any, target: Any, denoiser: Denoiser = consistency_function
) -> ApplyFn:
    """Returns a network trained for one scheduler as the network that another one expects.

    What the target hands over is taken to EDM's terms, `x / alpha` at the level `sigma / alpha`,
    and the x0 found there to what the target's network would have returned. Levels beyond the
    source's are taken for its highest or lowest.

    Args:
        apply_fn: the network, `(params, x, t, **cond) -> model_output`.
        source: the scheduler it was trained for.
        target: the scheduler that it is to be sampled with.
        denoiser: `consistency_function`, or `edm_denoiser` where the network is one that denoises.

    Returns:
        `(params, x, t, **cond) -> model_output` in the target's terms.

    Raises:
        ValueError: if a scheduler's network is told two times, or its parametrization is not known.
    """
    for name, scheduler in (("source", source), ("target", target)):
        known = isinstance(getattr(scheduler, "parametrization", None), Parametrization)
        if not known or scheduler.num_times != 1:
            raise ValueError(
                f"{name} is a {type(scheduler).__name__}, whose network cannot be converted; "
                "networks told one time can, those told two need a network of their own"
            )
    lowest, highest = source.sigma_range

    def adapted(params, scaled, t, **cond):
        alpha, sigma = target.parametrization.path(t)
        c_in, c_skip, c_out = target.parametrization.scalings(alpha, sigma)
        x = combine((1 / c_in, scaled))

        # To EDM's terms. Where alpha is 0 there is noise only, scaled to the highest level.
        scale = jnp.minimum(1 / jnp.maximum(alpha, 1e-30), highest / sigma)
        level = jnp.maximum(scale * sigma, lowest)
        denoised = denoiser(apply_fn, params, source, combine((scale, x)), level, **cond)

        # x0 = c_skip x + c_out F, solved for the target's F.
        return combine((1 / c_out, denoised), (-c_skip / c_out, x))

    return adapted

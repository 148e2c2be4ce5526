"""The denoiser that a network defines, at any noise level: what training and editing evaluate."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from cmjax.models.adapters import ApplyFn
from cmjax.schedulers.base import combine
from cmjax.schedulers.consistency import CMStochasticIterativeScheduler
from cmjax.schedulers.ctm import CTMScheduler
from cmjax.schedulers.flow_map import FlowMapEulerDiscreteScheduler
from cmjax.schedulers.linear import LinearScheduler


def consistency_function(
    apply_fn: ApplyFn, params, scheduler: CMStochasticIterativeScheduler, x: jax.Array, sigma: jax.Array, **cond
) -> jax.Array:
    """Returns `f(x, sigma) = c_skip x + c_out F(c_in x, t)`, with f(x, sigma_min) = x.

    Song et al. 2023, Appendix C. Not clipped: training needs the gradient everywhere.

    Args:
        apply_fn: `(params, x, t, **cond) -> model_output`.
        params: of the network.
        scheduler: says what c_in, c_skip, c_out and t are.
        x: noisy samples `[B, ...]`.
        sigma: their noise levels, f32[B].
        **cond: per-sample conditioning, handed to `apply_fn`.
    """
    return _denoise(apply_fn, params, scheduler, x, sigma, scheduler.get_scalings_for_boundary_condition(sigma), cond)


def edm_denoiser(
    apply_fn: ApplyFn, params, scheduler: CMStochasticIterativeScheduler, x: jax.Array, sigma: jax.Array, **cond
) -> jax.Array:
    """Returns `D(x, sigma) = c_skip x + c_out F(c_in x, t)` with EDM's scalings (Karras et al. 2022, table 1).

    Arguments as for `consistency_function`.
    """
    return _denoise(apply_fn, params, scheduler, x, sigma, scheduler.get_scalings(sigma), cond)


def adapt(
    apply_fn: ApplyFn,
    source: CMStochasticIterativeScheduler,
    target: LinearScheduler,
    denoiser: Callable[..., jax.Array] = consistency_function,
) -> ApplyFn:
    """Returns a network trained on EDM levels as the network that another scheduler expects.

    What the target hands over is taken back to `x = alpha x0 + sigma z`, that to the level `sigma / alpha` of
    `x / alpha`, and the x0 found there to what the target's network would have returned. Levels beyond the source's
    are taken for its highest or lowest.

    Args:
        apply_fn: the network, `(params, x, t, **cond) -> model_output`.
        source: the scheduler it was trained for.
        target: the scheduler that it is to be sampled with.
        denoiser: `consistency_function`, or `edm_denoiser` where the network was trained to denoise.

    Returns:
        `(params, x, t, **cond) -> model_output` in the target's terms.

    Raises:
        ValueError: if the schedulers are of other kinds, or the target tells its network two times.
    """
    if type(source) is not CMStochasticIterativeScheduler:
        raise ValueError(f"the network must be of a CMStochasticIterativeScheduler, got {type(source).__name__}")
    if not isinstance(target, LinearScheduler) or isinstance(target, (CTMScheduler, FlowMapEulerDiscreteScheduler)):
        raise ValueError(f"{type(target).__name__} needs a network of its own; other schedulers can take any")

    def adapted(params, scaled, t, **cond):
        alpha, sigma = target.path(t)
        c_in, c_skip, c_out = target.preconditioning(alpha, sigma)
        x = combine((1 / c_in, scaled))
        # Where alpha is 0 there is noise only, which is scaled to that of the highest level.
        scale = jnp.minimum(1 / jnp.maximum(alpha, 1e-30), source.sigma_max / sigma)
        level = jnp.maximum(scale * sigma, source.sigma_min)
        denoised = denoiser(apply_fn, params, source, combine((scale, x)), level, **cond)
        return combine((1 / c_out, denoised), (-c_skip / c_out, x))

    return adapted


def guided(apply_fn: ApplyFn, scale: float) -> ApplyFn:
    """Returns a network guided by a weaker version of itself: autoguidance (Karras et al. 2024, arXiv 2406.02507).

    Denoised images are linear in the network's output, so it is the output that is extrapolated.

    Args:
        apply_fn: `(params, x, t, **cond) -> model_output`.
        scale: 1 is the network alone; more moves its output away from the weaker one's.

    Returns:
        `((params, weaker_params), x, t, **cond) -> model_output`.
    """

    def guided_fn(params, *args, **cond):
        output, weaker = (apply_fn(p, *args, **cond) for p in params)
        return combine((scale, output), (1 - scale, weaker))

    return guided_fn


def _denoise(apply_fn, params, scheduler, x, sigma, scalings, cond):
    c_skip, c_out = scalings
    scaled = combine((scheduler.get_input_scaling(sigma), x))
    model_output = apply_fn(params, scaled, scheduler.sigma_to_t(sigma), **cond)
    return combine((c_skip, x), (c_out, model_output))

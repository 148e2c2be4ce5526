"""The denoiser that a network defines, at any noise level: what training and editing evaluate."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from cmjax.arrays import ApplyFn, combine
from cmjax.schedulers.consistency import CMStochasticIterativeScheduler
from cmjax.schedulers.ctm import CTMScheduler
from cmjax.schedulers.flow_map import FlowMapEulerDiscreteScheduler
from cmjax.schedulers.linear import LinearScheduler
from cmjax.schedulers.scm import SCMScheduler

Denoiser = Callable[..., jax.Array]


def consistency_function(
    apply_fn: ApplyFn,
    params,
    scheduler: CMStochasticIterativeScheduler | SCMScheduler,
    x: jax.Array,
    sigma: jax.Array,
    **cond,
) -> jax.Array:
    """Returns `f(x, sigma) = c_skip x + c_out F(c_in x, t)`, with f(x, sigma_min) = x.

    Song et al. 2023, Appendix C. Not clipped: training needs the gradient everywhere. TrigFlow's network
    (`SCMScheduler`) has f(x, 0) = x.

    Args:
        apply_fn: `(params, x, t, **cond) -> model_output`.
        params: of the network.
        scheduler: says what c_in, c_skip, c_out and t are.
        x: noisy samples `[B, ...]`.
        sigma: their noise levels, f32[B].
        **cond: per-sample conditioning, handed to `apply_fn`.
    """
    if isinstance(scheduler, SCMScheduler):
        return _denoise_trigflow(apply_fn, params, scheduler, x, sigma, cond)
    return _denoise(
        apply_fn,
        params,
        scheduler,
        x,
        sigma,
        scheduler.get_scalings_for_boundary_condition(sigma),
        cond,
    )


def edm_denoiser(
    apply_fn: ApplyFn,
    params,
    scheduler: CMStochasticIterativeScheduler | SCMScheduler,
    x: jax.Array,
    sigma: jax.Array,
    **cond,
) -> jax.Array:
    """Returns `D(x, sigma) = c_skip x + c_out F(c_in x, t)` with EDM's scalings (Karras et al. 2022, table 1).

    Arguments as for `consistency_function`.
    """
    if isinstance(scheduler, SCMScheduler):
        return _denoise_trigflow(apply_fn, params, scheduler, x, sigma, cond)
    return _denoise(apply_fn, params, scheduler, x, sigma, scheduler.get_scalings(sigma), cond)


def trigflow_network(
    apply_fn: ApplyFn,
    scheduler: CMStochasticIterativeScheduler | SCMScheduler,
    denoiser: Denoiser = consistency_function,
) -> ApplyFn:
    """Returns a network as TrigFlow's `F` (Lu & Song 2024, section 3): `x0 = cos(t) x - sigma_data sin(t) F`.

    A network on EDM levels is one up to scalings: at `sigma = sigma_data tan(t)` it sees `x / cos(t)`. Unlike
    `adapt` this has no bounds on the levels, and so a derivative everywhere.

    Args:
        apply_fn: the network, `(params, x, t, **cond) -> model_output`.
        scheduler: the scheduler it is for.
        denoiser: `consistency_function`, or `edm_denoiser` where the network is one that denoises.

    Returns:
        `(params, x, t, **cond) -> F`, for x `[B, ...]` at angles t f32[B], not divided by sigma_data.
    """
    sigma_data = scheduler.sigma_data

    def trigflow(params, x, t, **cond):
        if isinstance(scheduler, SCMScheduler):
            return apply_fn(params, combine((1 / sigma_data, x)), t, **cond)
        sigma, cos, sin = sigma_data * jnp.tan(t), jnp.cos(t), sigma_data * jnp.sin(t)
        denoised = denoiser(apply_fn, params, scheduler, combine((1 / cos, x)), sigma, **cond)
        return combine((cos / sin, x), (-1 / sin, denoised))

    return trigflow


def adapt(
    apply_fn: ApplyFn,
    source: CMStochasticIterativeScheduler,
    target: LinearScheduler,
    denoiser: Denoiser = consistency_function,
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
        raise ValueError(
            f"the network must be of a CMStochasticIterativeScheduler, got {type(source).__name__}"
        )
    if not isinstance(target, LinearScheduler) or isinstance(
        target, (CTMScheduler, FlowMapEulerDiscreteScheduler)
    ):
        raise ValueError(
            f"{type(target).__name__} needs a network of its own; other schedulers can take any"
        )

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


def _denoise_trigflow(apply_fn, params, scheduler, x, sigma, cond):
    t = jnp.arctan(sigma / scheduler.sigma_data)
    noisy = combine((jnp.cos(t), x))  # EDM's x is TrigFlow's over cos t
    c_in, c_skip, c_out = scheduler.preconditioning(*scheduler.path(t))
    return combine((c_skip, noisy), (c_out, apply_fn(params, combine((c_in, noisy)), t, **cond)))


def _denoise(apply_fn, params, scheduler, x, sigma, scalings, cond):
    c_skip, c_out = scalings
    scaled = combine((scheduler.get_input_scaling(sigma), x))
    model_output = apply_fn(params, scaled, scheduler.sigma_to_t(sigma), **cond)
    return combine((c_skip, x), (c_out, model_output))

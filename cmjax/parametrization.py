"""The denoiser that a network defines, at any noise level: what training and editing evaluate."""

import jax

from cmjax.models.adapters import ApplyFn
from cmjax.schedulers.base import combine
from cmjax.schedulers.consistency import CMStochasticIterativeScheduler


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

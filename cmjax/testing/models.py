"""Models whose samples are known in closed form, and checks of what models of a kind must keep."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cmjax.arrays import ApplyFn
from cmjax.parametrization import Parametrization, consistency_function
from cmjax.random import key_of_seed, normal
from cmjax.sampling import sample
from cmjax.schedulers.consistency import CMStochasticIterativeScheduler
from cmjax.testing.comparisons import assert_equal, check


def network_of(
    parametrization: Parametrization, x0_fn: Callable[..., jax.Array]
) -> ApplyFn:
    """Returns the network whose x0 estimates are those of a given function.

    With an exact function this is a network without errors, so any error of its samples is the
    sampler's.

    Args:
        parametrization: of the network, such as `scheduler.parametrization`.
        x0_fn: `(params, x, sigma, **cond) -> x0`, for one sample `x = x0 + sigma z`, `[...]`, at
            the noise level sigma, f32[].

    Returns:
        `(params, x, t, **cond) -> model_output`, for batches.
    """

    def one(params, scaled, time, cond):
        alpha, sigma = parametrization.path(time)
        c_in, c_skip, c_out = parametrization.scalings(alpha, sigma)

        # The sample x = alpha x0 + sigma z behind the network's input, then its x0 `[...]` in
        # EDM's terms.
        x = scaled.astype(jnp.float32) / c_in
        # Pure noise has no signal, alpha = 0: its level is finite, but beyond all others.
        signal = jnp.maximum(alpha, 1e-6 * sigma)
        x0 = x0_fn(params, x / signal, sigma / signal, **cond)

        # x0 = c_skip x + c_out F, solved for F. Where c_out is 0, F has no effect.
        known = jnp.abs(c_out) > 1e-6
        output = (x0 - c_skip * x) / jnp.where(known, c_out, 1)
        return output.astype(scaled.dtype)

    def apply_fn(params, x, t, **cond):
        return jax.vmap(one, in_axes=(None, 0, 0, 0))(params, x, t, cond)

    return apply_fn


def gaussian_consistency_model(
    scheduler: CMStochasticIterativeScheduler, mean: Any = 0.0, std: Any = 0.5
) -> tuple[ApplyFn, dict[str, jax.Array]]:
    """Returns `(apply_fn, params)`, the exact consistency model of data distributed N(mean, std^2).

    The probability-flow ODE keeps `(x - mean) / sqrt(std^2 + sigma^2)` constant, hence
    `f(x, sigma) = mean + sqrt((std^2 + sigma_min^2) / (std^2 + sigma^2)) (x - mean)`. Samples have
    mean `mean` and variance `std^2 + sigma_min^2` for any number of steps. The scheduler must have
    `clip_denoised=False`.

    Args:
        scheduler: the scheduler that the network is for.
        mean: of the data; a number, or an array that broadcasts against one sample.
        std: standard deviation of the data, likewise.
    """

    def consistency(params, x, sigma):
        mean = jnp.broadcast_to(params["mean"], x.shape)
        variance = jnp.square(jnp.broadcast_to(params["std"], x.shape))

        # At sigma = sigma_min the factor is 1: the boundary condition holds.
        final = variance + scheduler.sigma_min**2
        return mean + jnp.sqrt(final / (variance + jnp.square(sigma))) * (x - mean)

    params = {"mean": jnp.asarray(mean, jnp.float32), "std": jnp.asarray(std, jnp.float32)}
    return network_of(scheduler.parametrization, consistency), params


def assert_gaussian_moments(
    scheduler: CMStochasticIterativeScheduler,
    mean: Any = 0.3,
    std: Any = 0.5,
    *,
    num_inference_steps: int = 1,
    num_samples: int = 100_000,
) -> None:
    """Checks the mean and variance of samples of the exact model of N(mean, std^2).

    Both must be right in every dimension, within six standard errors (one false alarm in 5e8
    comparisons) plus the error of starting from noise alone: sampling starts from `sigma_max z`,
    while data at that level are `mean + sqrt(std^2 + sigma_max^2) z`.

    Args:
        scheduler: with `clip_denoised=False` and `s_noise=1`.
        mean: of the data, a number or an array of a sample's shape.
        std: standard deviation of the data, likewise.
        num_inference_steps: number of steps.
        num_samples: number of samples to draw.

    Raises:
        AssertionError: if a moment is wrong.
        ValueError: for another scheduler, whose samples have other errors.
    """
    if not isinstance(scheduler, CMStochasticIterativeScheduler):
        raise ValueError(
            "scheduler must be a CMStochasticIterativeScheduler, got "
            f"{type(scheduler).__name__}; for another sampler, draw samples with "
            "network_of(scheduler.parametrization, x0_fn) and compare them with the data"
        )
    apply_fn, params = gaussian_consistency_model(scheduler, mean, std)
    mean, std = np.broadcast_arrays(
        np.asarray(mean, np.float64), np.asarray(std, np.float64)
    )
    shape = (num_samples, *mean.shape)

    @jax.jit
    def draw(key):
        return sample(
            key, apply_fn, params, scheduler, shape, num_inference_steps=num_inference_steps
        )

    # The moments are computed in float64: float32 sums of many samples round too much.
    x = np.asarray(draw(key_of_seed(0)), np.float64)

    # Samples end at sigma_min, with this variance. `start` is about the factor of f at sigma_max,
    # by which the first step shrinks the error of the start.
    variance = std**2 + scheduler.sigma_min**2
    start = variance**0.5 / scheduler.sigma_max

    # The mean's standard error is std / sqrt(num_samples).
    error = abs(x.mean(axis=0) - mean)
    bound = 6 * variance**0.5 / num_samples**0.5 + abs(mean) * start
    check((error < bound).all(), f"the mean is off by {error}, and may be by {bound}")

    # The variance's is variance * sqrt(2 / num_samples).
    error = abs(x.var(axis=0) - variance)
    bound = variance * (6 * (2 / num_samples) ** 0.5 + start**2)
    check((error < bound).all(), f"the variance is off by {error}, and may be by {bound}")


def assert_boundary_condition(
    apply_fn: Callable[..., jax.Array],
    params: Any,
    scheduler: CMStochasticIterativeScheduler,
    shape: Sequence[int],
    **cond: jax.Array,
) -> None:
    """Checks that f(x, sigma_min) = x exactly, for any network (Song et al. 2023, section 3)."""
    x = normal(key_of_seed(0), tuple(shape))
    sigma = jnp.full(shape[0], scheduler.sigma_min, jnp.float32)
    assert_equal(consistency_function(apply_fn, params, scheduler, x, sigma, **cond), x)

"""The levels of solvers in the half log-SNR `log(alpha / sigma)`, by diffusers' options.

`scheduler` is a `cmjax.schedulers.log_snr.LogSNRScheduler` in all of these functions.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cmjax.parametrization import NoiseLevel
from cmjax.schedulers.discrete import check_offset, check_signal, explicit_times
from cmjax.schedulers.flow import explicit_sigmas, shifted, stretched
from cmjax.schedulers.grids import respaced
from cmjax.schedulers.levels import (
    Levels,
    check_num_steps,
    exponential_sigmas,
    ramp,
)

# Lowest alpha of flow levels, and of 1 - sigma: at 0, log(alpha / sigma) is infinite.
LEAST_ALPHA = 1e-6


def level_of_times(scheduler: Any, times: jax.Array) -> NoiseLevel:
    """Returns time, alpha and sigma at whole training times, f32[n] each."""
    ratios = jnp.asarray(scheduler.training.training_ratios(), jnp.float32)
    level = scheduler.parametrization.level(ratios[times.astype(jnp.int32)])
    return level._replace(time=times)


def step_times(scheduler: Any, name: str, value: Any) -> jax.Array:
    """Returns the whole training times of a run, f32[n], descending.

    Args:
        scheduler: whose options space the times.
        name: the argument that `set_timesteps` was given.
        value: its value.

    Raises:
        ValueError: for sigmas, or an invalid value.
    """
    if name != "num_inference_steps":
        return explicit_times(scheduler, name, value)

    # With "leading" spacing there are fewer steps than times: its integer stride must not be 0.
    total = scheduler.num_train_timesteps
    if scheduler.timestep_spacing == "leading" and total > 1:
        n = check_num_steps(value, total - 1)
    else:
        n = check_num_steps(value, total, "num_train_timesteps")
    times = scheduler.spaced_times(n)
    check_offset(scheduler, times)
    check_signal(scheduler, times)
    return jnp.asarray(times, jnp.float32)


def step_starts(scheduler: Any, n: int, last: int) -> np.ndarray:
    """Returns whole times where n steps start that end lower, f64[n], descending.

    The other three rules of diffusers, of its solvers in log(alpha / sigma): of n + 1 times, the
    lowest is not called. "trailing" times above `last` are left out, and are then fewer than n.

    Args:
        scheduler: with `num_train_timesteps`, `timestep_spacing`, `steps_offset`.
        n: number of steps.
        last: the highest time.
    """
    if scheduler.timestep_spacing == "linspace":
        return np.linspace(0, last, n + 1).round()[:0:-1]
    if scheduler.timestep_spacing == "leading":
        stride = (last + 1) // (n + 1)
        return np.arange(n, 0, -1) * stride + float(scheduler.steps_offset)

    # At most n: rounding errors may add one more. They also decide where halves are rounded to.
    stride = scheduler.num_train_timesteps / n
    times = np.round(np.arange(last + 1, 0, -stride)[:n]) - 1

    # Times above `last` may be left out such that the lowest is rounded to -1, which is none: it
    # is 0 then, once.
    return np.unique(np.maximum(times, 0))[::-1]


def last_time(scheduler: Any) -> int:
    """Returns the last training time that `lambda_min_clipped` keeps."""
    # lambda = log(alpha / sigma) falls with the time, so the times that are kept come first.
    lambdas = -np.log(scheduler.training.training_ratios())
    kept = int(np.sum(lambdas >= scheduler.lambda_min_clipped))
    if kept == 0:
        raise ValueError(
            f"lambda_min_clipped={scheduler.lambda_min_clipped} leaves no training times"
        )
    return kept - 1


def grid_levels(scheduler: Any, value: Any, grid: str) -> Levels:
    """Returns the levels of a run on the grid that an option asks for, with that of the end.

    Args:
        scheduler: whose `grid_ends` the levels lie between.
        value: of `num_inference_steps`.
        grid: name of the option.
    """
    n = check_num_steps(value, scheduler.num_train_timesteps, "num_train_timesteps")
    low, high = scheduler.grid_ends()

    # Training times whose alpha is 0 have no finite sigma / alpha to begin at.
    if not scheduler.use_flow_sigmas:
        check_signal(scheduler, [scheduler.num_train_timesteps - 1])

    # Equal steps of lambda, or another grid between the same ends.
    places = jnp.asarray(ramp(n), jnp.float32)
    ratios = respaced(scheduler, exponential_sigmas(places, low, high))
    level = scheduler.parametrization.level(ratios)

    # The network takes whole times, rounded or rounded down as in diffusers.
    rounds = grid in scheduler.rounded_grids() and not scheduler.use_flow_sigmas
    times = jnp.round(level.time) if rounds else cut_off(level.time)
    level = level._replace(time=times)

    # The end: the lowest level of the grid. A single level is the highest one, so that the end of
    # such a run is `low` itself.
    lowest = ratios[-1:] if n > 1 else jnp.full(1, low, jnp.float32)
    end = scheduler.parametrization.level(lowest)
    return with_end(scheduler, level, end.alpha, end.sigma)


def log_snr_flow_levels(scheduler: Any, name: str, value: Any) -> Levels:
    """Returns the shifted levels of flow matching, with that of the end.

    Args:
        scheduler: whose `flow_grid` and `shifted_path` the levels have.
        name: the argument that `set_timesteps` was given.
        value: its value; of timesteps and sigmas, before the shift.
    """
    # Levels before the shift, f[n]: the scheduler's own, or those that are given.
    total = scheduler.num_train_timesteps
    if name == "num_inference_steps":
        unshifted = scheduler.flow_grid(
            check_num_steps(value, total, "num_train_timesteps")
        )
    else:
        unshifted = explicit_sigmas(total, name, value)

    # After the shift, kept away from alpha = 0, where lambda is infinite.
    alphas, sigmas = scheduler.shifted_path(1 - unshifted, unshifted)
    alphas = jnp.maximum(alphas, LEAST_ALPHA)
    sigmas = jnp.minimum(sigmas, 1 - LEAST_ALPHA)

    # The end, if it is not to be without noise.
    end = sigmas[-1:]
    if not scheduler.ends_at_last_flow_level:
        end = jnp.full(1, scheduler.grid_ends()[0], jnp.float32)
    level = NoiseLevel(cut_off(sigmas * total), alphas, sigmas)
    return with_end(scheduler, level, 1 - end, end)


def shifted_path(
    alphas: Any, sigmas: Any, shift: float, terminal: float | None = None
) -> tuple[jax.Array, jax.Array]:
    """Returns alpha and sigma of flow matching after the shift, f32[n] each.

    Args:
        alphas: `1 - sigmas`, f[n].
        sigmas: f[n], descending.
        shift: how far the levels are moved towards noise.
        terminal: stretch the levels so that this is the lowest sigma; None leaves them.
    """
    # alpha is shifted by itself: 1 - sigma would have few digits where there is little signal.
    alphas = jnp.asarray(shifted(alphas, 1 / shift), jnp.float32)
    sigmas = jnp.asarray(shifted(sigmas, shift), jnp.float32)
    if terminal is not None:
        sigmas = stretched(sigmas, terminal)
        alphas = alphas * (1 - sigmas[-1]) / jnp.where(alphas[-1] > 0, alphas[-1], 1)
    return alphas, sigmas


def with_end(
    scheduler: Any, level: NoiseLevel, end_alpha: jax.Array, end_sigma: jax.Array
) -> Levels:
    """Returns the levels of a run, with that of its end.

    Args:
        scheduler: whose `final_sigmas_type` "zero" ends runs without noise.
        level: of the network calls, f32[n] each.
        end_alpha: alpha of the end for another `final_sigmas_type`, f32[1].
        end_sigma: sigma of the end, likewise.
    """
    if scheduler.final_sigmas_type == "zero":
        end_alpha = jnp.ones(1, jnp.float32)
        end_sigma = jnp.zeros(1, jnp.float32)
    alphas = jnp.append(level.alpha, end_alpha)
    sigmas = jnp.append(level.sigma, end_sigma)
    return Levels(level.time, alphas, sigmas)


def cut_off(times: jax.Array) -> jax.Array:
    """Returns times rounded down, as diffusers does."""
    # A time that is a rounding error below a whole number counts as that number.
    return jnp.floor(times * (1 + 3e-7))

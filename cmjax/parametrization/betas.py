"""Beta schedules: how much signal is left at each training time (Ho et al. 2020)."""

import functools
import math

import numpy as np

BETA_SCHEDULES = (
    "linear",
    "scaled_linear",
    "squaredcos_cap_v2",
    "exp",
    "laplace",
    "sigmoid",
)


# Cached, since every method of a parametrization needs the table.
@functools.lru_cache(maxsize=32)
def signal_variances(
    num: int,
    start: float,
    end: float,
    schedule: str,
    trained: tuple[float, ...] | None,
    zero_snr: bool,
) -> np.ndarray:
    """Returns alpha^2 at each training time, f64[num]; do not write to it, the array is shared.

    These are the cumulative products of 1 - beta (Ho et al. 2020).

    Args:
        num: number of training times.
        start: the first beta.
        end: the last beta.
        schedule: one of `BETA_SCHEDULES`.
        trained: betas that replace the schedule.
        zero_snr: shift and stretch alpha so that the last is 0 (Lin et al. 2023, Algorithm 1).
    """
    # The betas, f64[num]. In float64, since a product of a thousand factors follows.
    if trained is not None:
        betas = np.asarray(trained, np.float64)
    elif schedule == "linear":
        betas = np.linspace(start, end, num)
    elif schedule == "scaled_linear":
        # Linear in sqrt(beta), as Stable Diffusion was trained.
        betas = np.linspace(start**0.5, end**0.5, num) ** 2
    elif schedule == "sigmoid":
        # Of GeoDiff (Xu et al. 2022).
        betas = start + (end - start) / (1 + np.exp(-np.linspace(-6, 6, num)))
    else:
        log_signal = _log_signal(schedule, np.arange(num + 1) / num)

        # beta = 1 - alpha_{i+1}^2 / alpha_i^2, at most 0.999: the cosine reaches 0 at the end.
        betas = np.minimum(-np.expm1(np.diff(log_signal)), 0.999)

    alphas = np.cumprod(1 - betas) ** 0.5
    if zero_snr and num > 1:
        # The first alpha stays, the last becomes 0, and those between are shifted and stretched.
        alphas = (alphas - alphas[-1]) * alphas[0] / (alphas[0] - alphas[-1])
    return alphas**2


def _log_signal(schedule: str, t: np.ndarray) -> np.ndarray:
    """The logarithm of the signal's variance at times `t` in [0, 1], up to a constant, f64[N]."""
    if schedule == "squaredcos_cap_v2":  # Nichol and Dhariwal 2021, equation 17
        return 2 * np.log(np.cos((t + 0.008) / 1.008 * math.pi / 2))
    if schedule == "exp":
        return -12.0 * t

    # "laplace" (Hang and Gu 2024): the log of signal to noise has a Laplace distribution. As in
    # diffusers this is the root of what the signal's variance would be.
    away = 0.5 - t
    log_snr = -0.5 * np.copysign(1, away) * np.log(1 - 2 * np.abs(away) + 1e-6)
    return -0.5 * np.log1p(np.exp(-log_snr))

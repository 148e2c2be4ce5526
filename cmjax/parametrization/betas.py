"""Beta schedules: how much signal is left at each training time (Ho et al. 2020)."""

import functools
import math

import numpy as np

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "exp")


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
    elif (
        schedule == "scaled_linear"
    ):  # linear in sqrt(beta), as Stable Diffusion was trained
        betas = np.linspace(start**0.5, end**0.5, num) ** 2
    else:
        t = np.arange(num + 1) / num
        if schedule == "squaredcos_cap_v2":  # Nichol and Dhariwal 2021, equation 17
            log_signal = 2 * np.log(np.cos((t + 0.008) / 1.008 * math.pi / 2))
        else:
            log_signal = -12.0 * t

        # beta = 1 - alpha_{i+1}^2 / alpha_i^2, at most 0.999: the cosine reaches 0 at the end.
        betas = np.minimum(-np.expm1(np.diff(log_signal)), 0.999)

    alphas = np.cumprod(1 - betas) ** 0.5
    if zero_snr and num > 1:
        # The first alpha stays, the last becomes 0, and those between are shifted and stretched.
        alphas = (alphas - alphas[-1]) * alphas[0] / (alphas[0] - alphas[-1])
    return alphas**2

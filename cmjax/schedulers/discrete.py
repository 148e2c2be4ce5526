"""What samplers of models with a thousand discrete times share: beta schedules, spacings, prediction types."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cmjax.schedulers.levels import check_count, descending, exactly_one
from cmjax.schedulers.linear import LinearScheduler

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "exp")
SPACINGS = ("linspace", "leading", "trailing")
PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")


@functools.lru_cache(maxsize=32)
def signal_variances(
    num: int, start: float, end: float, schedule: str, trained: tuple[float, ...] | None, zero_snr: bool
) -> np.ndarray:
    """Returns alpha^2 at each training time, f64[num]: the cumulative products of 1 - beta (Ho et al. 2020).

    Args:
        num: number of training times.
        start: the first beta.
        end: the last beta.
        schedule: one of `BETA_SCHEDULES`.
        trained: betas that replace the schedule.
        zero_snr: shift and stretch alpha so that the last is 0 (Lin et al. 2023, Algorithm 1).
    """
    if trained is not None:
        betas = np.asarray(trained, np.float64)
    elif schedule == "linear":
        betas = np.linspace(start, end, num)
    elif schedule == "scaled_linear":
        betas = np.linspace(start**0.5, end**0.5, num) ** 2
    else:
        log_signal = {
            "squaredcos_cap_v2": lambda t: 2 * np.log(np.cos((t + 0.008) / 1.008 * math.pi / 2)),  # Nichol 2021, eq. 17
            "exp": lambda t: -12.0 * t,
        }[schedule]
        edges = log_signal(np.arange(num + 1) / num)
        betas = np.minimum(-np.expm1(np.diff(edges)), 0.999)
    alphas = np.cumprod(1 - betas) ** 0.5
    if zero_snr and num > 1:
        alphas = (alphas - alphas[-1]) * alphas[0] / (alphas[0] - alphas[-1])
    return alphas**2


@dataclasses.dataclass(frozen=True)
class DiscreteScheduler(LinearScheduler):
    """A sampler of a model trained at times 0..N-1 of a beta schedule (Ho et al. 2020), variance-preserving.

    The sample is `alpha x0 + sigma z` with `alpha^2 + sigma^2 = 1`.

    Attributes:
        num_train_timesteps: number N of training times.
        beta_start: the first beta.
        beta_end: the last beta.
        beta_schedule: "linear", "scaled_linear" (of Stable Diffusion), "squaredcos_cap_v2" or "exp".
        trained_betas: betas that replace the schedule.
        prediction_type: what the network returns: "epsilon" (the noise), "sample" (x0), or "v_prediction"
            (`alpha z - sigma x0`, Salimans and Ho 2022).
        timestep_spacing: "linspace" (first and last time included), "leading" (integer stride) or "trailing".
        steps_offset: added to "leading" times.
        rescale_betas_zero_snr: make the last time pure noise (Lin et al. 2023).

    Raises:
        ValueError: for values outside their domain.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    trained_betas: tuple[float, ...] | None = None
    prediction_type: str = "epsilon"
    timestep_spacing: str = "leading"
    steps_offset: int = 0
    rescale_betas_zero_snr: bool = False

    _domains = {
        "num_train_timesteps": (1, 1_000_000),
        "beta_start": (1e-12, 0.999),
        "beta_end": (1e-12, 0.999),
        "beta_schedule": BETA_SCHEDULES,
        "prediction_type": PREDICTION_TYPES,
        "timestep_spacing": SPACINGS,
        "steps_offset": (0, 1_000_000),
    }

    def __post_init__(self):
        super().__post_init__()
        betas = self.trained_betas
        if betas is not None and (len(betas) != self.num_train_timesteps or not all(0 < beta < 1 for beta in betas)):
            raise ValueError(f"trained_betas must be {self.num_train_timesteps} numbers between 0 and 1, got {betas}")

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the initial noise, 1."""
        return 1.0

    def signal_variances(self) -> np.ndarray:
        """Returns alpha^2 at every training time, f64[num_train_timesteps]."""
        return signal_variances(
            self.num_train_timesteps,
            self.beta_start,
            self.beta_end,
            self.beta_schedule,
            self.trained_betas,
            self.rescale_betas_zero_snr,
        )

    def path(self, times: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns (alpha, sigma) at training times, whole numbers of any dtype, of their shape."""
        variance, index = self.signal_variances(), jnp.asarray(times).astype(jnp.int32)
        alphas, sigmas = (jnp.asarray(np.sqrt(v), jnp.float32)[index] for v in (variance, 1 - variance))
        return alphas, sigmas

    def preconditioning(self, alphas: jax.Array, sigmas: jax.Array) -> tuple[Any, Any, Any]:
        """Returns (c_in, c_skip, c_out) of the prediction type; the network sees the sample as it is."""
        if self.prediction_type == "epsilon":
            return 1.0, 1 / alphas, -sigmas / alphas
        return (1.0, 0.0, 1.0) if self.prediction_type == "sample" else (1.0, alphas, -sigmas)

    def times(self, n: int | None = None, *, timesteps: Any = None, sigmas: Any = None) -> jax.Array:
        """Returns f32[N] training times, descending: n spaced ones, or those written down.

        Raises:
            ValueError: unless exactly one of n and timesteps is given, and valid.
        """
        if sigmas is not None:
            raise ValueError(f"{type(self).__name__} takes timesteps=[999, ...] (training times), not sigmas")
        exactly_one(num_inference_steps=n, timesteps=timesteps)
        last = self.num_train_timesteps - 1
        if timesteps is None:
            times = self._spaced(check_count(n, last + 1, "num_train_timesteps"))
            if times[0] > last:
                raise ValueError(f"steps_offset={self.steps_offset} leads beyond the last training time {last}")
        else:
            times = descending("timesteps", timesteps, 0, last, integers=True)
        if self.rescale_betas_zero_snr and self.prediction_type == "epsilon" and timesteps is None and times[0] == last:
            raise ValueError(
                "rescale_betas_zero_snr leaves no signal at the last training time, where the noise (prediction_type="
                "'epsilon') says nothing of the image; use 'v_prediction', 'sample', or lower timesteps"
            )
        return jnp.asarray(times, jnp.float32)

    def _spaced(self, n: int) -> np.ndarray:
        total = self.num_train_timesteps
        if self.timestep_spacing == "linspace":
            return self._linspace(n).round()
        if self.timestep_spacing == "leading":
            return (np.arange(n) * (total // n))[::-1] + self.steps_offset
        return np.round(total - np.arange(n) * total / n) - 1

    def _linspace(self, n: int) -> np.ndarray:
        last = self.num_train_timesteps - 1
        return np.linspace(0, last, n)[::-1] if n > 1 else np.array([float(last)])  # a single step starts with noise


@dataclasses.dataclass(frozen=True)
class BoundedDiscreteScheduler(DiscreteScheduler):
    """A discrete sampler that keeps its x0 estimates in range.

    Attributes:
        clip_sample: clip x0 estimates.
        clip_sample_range: to plus or minus this.
        set_alpha_to_one: end without noise, rather than at training time 0.
        thresholding: scale x0 estimates that leave the range (Saharia et al. 2022, section 2.3), instead of clipping.
        dynamic_thresholding_ratio: quantile of |x0| of a sample that is scaled to 1, if it is larger.
        sample_max_value: and at most this.
    """

    clip_sample: bool = False
    clip_sample_range: float = 1.0
    set_alpha_to_one: bool = True
    thresholding: bool = False
    dynamic_thresholding_ratio: float = 0.995
    sample_max_value: float = 1.0

    _domains = {
        "clip_sample_range": (1e-6, 1e6),
        "dynamic_thresholding_ratio": (0.0, 1.0),
        "sample_max_value": (1.0, 1e6),
    }

    def bound(self, denoised: jax.Array) -> jax.Array:
        """Returns the x0 estimate thresholded or clipped."""
        if self.thresholding:
            return dynamic_threshold(denoised, self.dynamic_thresholding_ratio, self.sample_max_value)
        if self.clip_sample:
            return jnp.clip(denoised, -self.clip_sample_range, self.clip_sample_range)
        return denoised

    def final_levels(self) -> tuple[jax.Array, jax.Array]:
        """Returns (alpha, sigma) that sampling ends at, f32[1] each."""
        if self.set_alpha_to_one:
            return jnp.ones(1, jnp.float32), jnp.zeros(1, jnp.float32)
        return self.path(jnp.zeros(1, jnp.float32))


def dynamic_threshold(x: jax.Array, ratio: float, largest: float) -> jax.Array:
    """Scales each sample `[B, ...]` down to [-1, 1] by a quantile of |x| (Saharia et al. 2022, section 2.3)."""
    magnitude = jnp.abs(x.astype(jnp.float32)).reshape(x.shape[0], -1)
    limit = jnp.clip(jnp.quantile(magnitude, ratio, axis=-1), 1, largest)
    limit = limit.reshape(-1, *[1] * (x.ndim - 1))
    return (jnp.clip(x.astype(jnp.float32), -limit, limit) / limit).astype(x.dtype)

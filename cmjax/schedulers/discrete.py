"""What samplers of models with a thousand discrete times share: times, spacings, prediction types."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cmjax.arrays import concrete
from cmjax.configs import is_finite
from cmjax.schedulers.betas import BETA_SCHEDULES, signal_variances
from cmjax.schedulers.levels import check_count, descending, exactly_one
from cmjax.schedulers.linear import LinearScheduler, root_of_difference

SPACINGS = ("linspace", "leading", "trailing")
PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")


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
        betas, n = self.trained_betas, self.num_train_timesteps
        if betas is not None and not (
            isinstance(betas, tuple)
            and len(betas) == n
            and all(is_finite(beta) and 0 < beta < 1 for beta in betas)
        ):
            raise ValueError(
                f"trained_betas must be a tuple of {n} numbers between 0 and 1, got {betas!r}"
            )

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
        alphas, sigmas = (
            jnp.asarray(np.sqrt(v), jnp.float32)[index] for v in (variance, 1 - variance)
        )
        return alphas, sigmas

    def preconditioning(self, alphas: jax.Array, sigmas: jax.Array) -> tuple[Any, Any, Any]:
        """Returns (c_in, c_skip, c_out) of the prediction type; the network sees the sample as it is."""
        if self.prediction_type == "epsilon":
            return 1.0, 1 / alphas, -sigmas / alphas
        return (1.0, 0.0, 1.0) if self.prediction_type == "sample" else (1.0, alphas, -sigmas)

    def times(
        self, n: int | None = None, *, timesteps: Any = None, sigmas: Any = None
    ) -> jax.Array:
        """Returns f32[N] training times, descending: n spaced ones, or those written down.

        Raises:
            ValueError: unless exactly one of n and timesteps is given, and valid.
        """
        if sigmas is not None:
            raise ValueError(
                f"{type(self).__name__} takes timesteps=[999, ...] (training times), not sigmas"
            )
        exactly_one(num_inference_steps=n, timesteps=timesteps)
        last = self.num_train_timesteps - 1
        if timesteps is None:
            times = self._spaced(check_count(n, last + 1, "num_train_timesteps"))
            if times[0] > last:
                raise ValueError(
                    f"steps_offset={self.steps_offset} leads beyond the last training time {last}"
                )
        else:
            times = descending("timesteps", timesteps, 0, last, integers=True)
        first = concrete(times)
        if first is not None and self.prediction_type == "epsilon":
            signal = DiscreteScheduler.signal_variances(self)[int(first[0])] ** 0.5
            if np.float32(signal) == 0:
                cause = (
                    "rescale_betas_zero_snr"
                    if self.rescale_betas_zero_snr
                    else f"beta_end={self.beta_end}"
                )
                raise ValueError(
                    f"{cause} leaves no signal at training time {int(first[0])}, where the noise (prediction_type="
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
        return (
            np.linspace(0, last, n)[::-1] if n > 1 else np.array([float(last)])
        )  # a single step starts with noise


def noise_between(low: tuple[jax.Array, jax.Array], high: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Returns sqrt(alpha_low^2 - alpha_high^2), given two levels (alpha, sigma) with alpha^2 + sigma^2 = 1.

    It is sqrt(sigma_high^2 - sigma_low^2) too; the difference of the smaller numbers is the one that rounding spares.
    """
    (alpha_low, sigma_low), (alpha_high, sigma_high) = low, high
    by_signal, by_noise = (
        root_of_difference(alpha_low, alpha_high),
        root_of_difference(sigma_high, sigma_low),
    )
    return jnp.where(sigma_high < alpha_low, by_noise, by_signal)

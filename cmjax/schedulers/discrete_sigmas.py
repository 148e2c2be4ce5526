"""What ODE solvers of models with discrete times share: their training times as noise levels."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cmjax.arrays import combine
from cmjax.schedulers.discrete import DiscreteScheduler
from cmjax.schedulers.levels import descending, exactly_one, exponential_sigmas, karras_sigmas, ramp
from cmjax.schedulers.linear import LinearState

_RHO = 7.0  # of the levels that replace those of the training times, as in the reference
_ZERO_SNR = (
    2.0**-24
)  # alpha^2 of the last training time where zero SNR would make sigma infinite, as in the reference
_SMALLEST = 1e-30  # alpha^2 where large betas leave no signal; float32 holds sigma^2


@dataclasses.dataclass(frozen=True)
class DiscreteSigmasScheduler(DiscreteScheduler):
    """A sampler of a model with discrete times, run on samples `x0 + sigma z`: variance-exploding.

    The level of a training time is `sqrt(1 - alpha^2) / alpha`; levels between two of them have times between.

    Attributes:
        use_karras_sigmas: replace the levels by those of Karras et al. 2022, equation 5, with the same ends.
        use_exponential_sigmas: or by equal steps of log sigma.
        use_beta_sigmas: not supported.

    Others as in `DiscreteScheduler`.
    """

    timestep_spacing: str = "linspace"
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False

    _unsupported = {
        "use_beta_sigmas": "use_karras_sigmas, use_exponential_sigmas, or sigmas=[...] in set_timesteps"
    }

    def __post_init__(self):
        super().__post_init__()
        if self.use_karras_sigmas and self.use_exponential_sigmas:
            raise ValueError("use_karras_sigmas and use_exponential_sigmas exclude each other")

    def signal_variances(self) -> np.ndarray:
        """Returns alpha^2 at every training time, f64[num_train_timesteps], none of them 0."""
        return np.maximum(
            super().signal_variances(), _ZERO_SNR if self.rescale_betas_zero_snr else _SMALLEST
        )

    def training_sigmas(self) -> np.ndarray:
        """Returns the noise level of every training time, f64[num_train_timesteps], ascending."""
        variance = self.signal_variances()
        return np.sqrt((1 - variance) / variance)

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the initial noise at the last training time."""
        return self._first_sigma(float(self.training_sigmas()[-1]))

    def init_sample(self, state: LinearState, noise: jax.Array) -> jax.Array:
        """Returns the sample at the state's first level, from standard normal noise `[B, ...]`."""
        return combine((self._first_sigma(state.sigma), noise))

    def _first_sigma(self, sigma):
        return (sigma**2 + 1) ** 0.5 if self.timestep_spacing == "leading" else sigma

    def levels(self, n: int | None, timesteps: Any, sigmas: Any) -> tuple[jax.Array, jax.Array]:
        """Returns training times f32[n] and noise levels f32[n + 1] down to 0, from exactly one argument.

        Raises:
            ValueError: unless exactly one is given, and valid.
        """
        name, value = exactly_one(num_inference_steps=n, timesteps=timesteps, sigmas=sigmas)
        table = self.training_sigmas()
        replaced = self.use_karras_sigmas or self.use_exponential_sigmas
        if name == "timesteps" and replaced:
            raise ValueError(
                "timesteps have levels of their own: leave out use_karras_sigmas, or give sigmas"
            )
        if name == "sigmas":
            levels = descending("sigmas", value, table[0], table[-1])
            times = self.sigma_to_t(levels)
        else:
            times = self.times(n, timesteps=timesteps)
            levels = self.path(times)[1]
        if name == "num_inference_steps" and replaced:
            first, last, steps = levels[0], levels[-1], jnp.asarray(ramp(len(levels)), jnp.float32)
            karras = self.use_karras_sigmas
            levels = (
                karras_sigmas(steps, last, first, _RHO)
                if karras
                else exponential_sigmas(steps, last, first)
            )
            times = self.sigma_to_t(levels)
        return times, jnp.append(levels, jnp.zeros(1, levels.dtype))

    def sigma_to_t(self, sigma: jax.Array) -> jax.Array:
        """Returns training times, interpolated in log sigma, of the shape of `sigma`."""
        table = np.log(self.training_sigmas())
        return jnp.interp(
            jnp.log(sigma),
            jnp.asarray(table, jnp.float32),
            jnp.arange(len(table), dtype=jnp.float32),
        )

    def path(self, times: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns (1, sigma) at training times, between whole ones interpolated, of their shape."""
        table = jnp.asarray(self.training_sigmas(), jnp.float32)
        sigmas = jnp.interp(times, jnp.arange(len(table), dtype=jnp.float32), table)
        return jnp.ones_like(sigmas), sigmas

    def preconditioning(self, alphas: jax.Array, sigmas: jax.Array) -> tuple[Any, Any, Any]:
        """Returns (c_in, c_skip, c_out) of the prediction type; the network sees a sample of variance 1."""
        c_in = 1 / jnp.sqrt(jnp.square(sigmas) + 1)
        if self.prediction_type == "epsilon":
            return c_in, 1.0, -sigmas
        return (
            (c_in, 0.0, 1.0)
            if self.prediction_type == "sample"
            else (c_in, c_in * c_in, -sigmas * c_in)
        )

    def _spaced(self, n: int) -> np.ndarray:
        if self.timestep_spacing == "linspace":
            return self._linspace(n)
        return super()._spaced(n)

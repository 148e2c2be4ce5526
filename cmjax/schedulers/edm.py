"""What solvers on EDM noise levels share: the levels, the preconditioning and the churn (Karras et al. 2022)."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from cmjax.arrays import combine
from cmjax.schedulers.levels import (
    check_count,
    descending,
    exactly_one,
    exponential_sigmas,
    karras_sigmas,
    ramp,
)
from cmjax.schedulers.linear import LinearScheduler, LinearState, root_of_difference

_MOST_STEPS = 1_000_000


@dataclasses.dataclass(frozen=True)
class EDMScheduler(LinearScheduler):
    """A sampler on the noise levels of EDM: samples are `x0 + sigma z`, the network is told `log(sigma) / 4`.

    Attributes:
        sigma_min: lowest noise level at which the network is called.
        sigma_max: highest noise level, where sampling starts.
        sigma_data: standard deviation of the data.
        sigma_schedule: levels between: "karras" (equation 5) or "exponential".
        num_train_timesteps: of no effect; diffusers writes it.
        prediction_type: "epsilon" is EDM's network, "v_prediction" its negative.
        rho: curvature of the levels.
        final_sigmas_type: sampling ends at "zero" or at "sigma_min".

    Raises:
        ValueError: for values outside their domain, or `sigma_min >= sigma_max`.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    sigma_data: float = 0.5
    sigma_schedule: str = "karras"
    num_train_timesteps: int = 1000
    prediction_type: str = "epsilon"
    rho: float = 7.0
    final_sigmas_type: str = "zero"

    _domains = {
        **dict.fromkeys(("sigma_min", "sigma_max", "sigma_data"), (1e-18, 1e18)),
        "sigma_schedule": ("karras", "exponential"),
        "num_train_timesteps": (1, 1_000_000),
        "prediction_type": ("epsilon", "v_prediction"),
        "rho": (0.1, 1000.0),
        "final_sigmas_type": ("zero", "sigma_min"),
    }

    def __post_init__(self):
        super().__post_init__()
        if self.sigma_min >= self.sigma_max:
            raise ValueError(
                f"sigma_min {self.sigma_min} must be less than sigma_max {self.sigma_max}"
            )

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of noise plus data at the highest level, `sqrt(sigma_max^2 + 1)`."""
        return math.sqrt(self.sigma_max**2 + 1)

    def init_sample(self, state: LinearState, noise: jax.Array) -> jax.Array:
        """Returns `sqrt(sigma^2 + 1) noise` at the first level, which explicit levels may place below sigma_max."""
        return combine((jnp.sqrt(jnp.square(state.sigma) + 1), noise))

    def levels(self, n: int | None, timesteps: Any, sigmas: Any) -> jax.Array:
        """Returns the noise levels of n solver steps and of the end, f32[n + 1], from exactly one argument.

        Args:
            n: number of levels on the grid.
            timesteps: or what the network is told, `log(sigma) / 4`, descending.
            sigmas: or the levels, descending, in [sigma_min, sigma_max].

        Raises:
            ValueError: unless exactly one is given, and valid.
        """
        name, value = exactly_one(num_inference_steps=n, timesteps=timesteps, sigmas=sigmas)
        low, high = self.sigma_min, self.sigma_max
        if name == "sigmas":
            levels = descending(name, value, low, high)
        elif name == "timesteps":
            # A little beyond the ends: the times of sigma_min and sigma_max themselves are rounded.
            low, high = (0.25 * math.log(s) for s in (low * (1 - 1e-5), high * (1 + 1e-5)))
            levels = jnp.clip(
                jnp.exp(4 * descending(name, value, low, high)), self.sigma_min, self.sigma_max
            )
        else:
            steps = ramp(check_count(value, _MOST_STEPS, "the most"))
            karras = self.sigma_schedule == "karras"
            grid = (
                karras_sigmas(steps, low, high, self.rho)
                if karras
                else exponential_sigmas(steps, low, high)
            )
            levels = jnp.asarray(grid, jnp.float32)
        end = 0.0 if self.final_sigmas_type == "zero" else self.sigma_min
        return jnp.append(levels, jnp.float32(end))

    def sigma_to_t(self, sigma: jax.Array) -> jax.Array:
        """Returns what the network is told, `c_noise = log(sigma) / 4` (table 1), of the shape of `sigma`."""
        return 0.25 * jnp.log(sigma)

    def path(self, times: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns (1, sigma) at `times`, of their shape."""
        return jnp.ones_like(times), jnp.exp(4 * times)

    def preconditioning(self, alphas: jax.Array, sigmas: jax.Array) -> tuple[Any, Any, Any]:
        """Returns EDM's (c_in, c_skip, c_out) (table 1)."""
        c_in = 1 / jnp.sqrt(jnp.square(sigmas) + self.sigma_data**2)
        sign = 1 if self.prediction_type == "epsilon" else -1
        return c_in, jnp.square(c_in * self.sigma_data), sign * sigmas * self.sigma_data * c_in

    def solver_state(self, sigmas: jax.Array, weights: jax.Array) -> LinearState:
        """Returns the state of a run whose network calls are at `sigmas[:-1]`, f32[N+1]."""
        return self.new_state(self.sigma_to_t(sigmas[:-1]), jnp.ones_like(sigmas), sigmas, weights)


@dataclasses.dataclass(frozen=True)
class ChurnedEDMScheduler(EDMScheduler):
    """A solver that adds noise before each step (Karras et al. 2022, Algorithm 2).

    Attributes:
        s_churn: how much, spread over all steps; 0 is the deterministic Algorithm 1.
        s_tmin: lowest level that is raised.
        s_tmax: and highest.
        s_noise: factor on the noise.

    Others as in `EDMScheduler`.
    """

    s_churn: float = 0.0
    s_tmin: float = 0.0
    s_tmax: float = 1e18
    s_noise: float = 1.0

    _domains = dict.fromkeys(("s_churn", "s_tmin", "s_tmax", "s_noise"), (0.0, 1e18))

    @property
    def stochastic(self) -> bool:
        """Whether steps add fresh noise."""
        return self.s_churn > 0

    def churn(self, sigmas: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the raised levels f32[n + 1], but for the end, and the noise f32[n] added on arrival at the next."""
        levels = sigmas[:-1]
        gamma = min(self.s_churn / len(levels), math.sqrt(2) - 1)
        gammas = jnp.where((self.s_tmin <= levels) & (levels <= self.s_tmax), gamma, 0.0)
        raised = jnp.append(levels * (1 + gammas), sigmas[-1:])
        return raised, self.s_noise * root_of_difference(raised[1:], sigmas[1:])


def log_middle(high: Any, low: Any) -> Any:
    """Returns the geometric mean of two noise levels, at which DPM-Solver-2 evaluates."""
    return jnp.sqrt(high * low)

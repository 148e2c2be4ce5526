"""Shared base of solvers on EDM noise levels (Karras et al. 2022)."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from cmjax.parametrization import EDM
from cmjax.parametrization.edm import EDM_TIME_FACTOR
from cmjax.schedulers.config_files import FileOption
from cmjax.schedulers.exploding import ExplodingScheduler
from cmjax.schedulers.facts import Facts
from cmjax.schedulers.levels import (
    MOST_STEPS,
    Levels,
    check_num_steps,
    exploding_levels,
    karras_sigmas,
    parse_levels,
    ramp,
)
from cmjax.schedulers.table import TableState


@dataclasses.dataclass(frozen=True)
class EDMScheduler(ExplodingScheduler):
    """A solver of the probability-flow ODE on samples `x0 + sigma z`; the network denoises.

    The network's time input is `log(sigma) / 4`. `set_timesteps` takes as `num_inference_steps` a
    number of solver steps, on a grid from sigma_max to sigma_min; as `timesteps` the network's
    times, `log(sigma) / 4`; as `sigmas` any levels in [sigma_min, sigma_max].

    Attributes:
        sigma_min: lowest noise level at which the network is called.
        sigma_max: highest noise level, where sampling starts.
        sigma_data: standard deviation of the data.
        sigma_schedule: spacing of the levels: "karras" (equation 5) or "exponential".
        prediction_type: "epsilon" is EDM's network, "v_prediction" its negative.
        rho: curvature of the levels.
        final_sigmas_type: sampling ends at "zero" or at "sigma_min".

    Raises:
        ValueError: for values outside their domain, or `sigma_min >= sigma_max`.
    """

    # The network, the levels of a run, and where it ends.
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    sigma_data: float = 0.5
    sigma_schedule: str = "karras"
    prediction_type: str = "epsilon"
    rho: float = 7.0
    final_sigmas_type: str = "zero"

    facts = Facts(predicts="EDM's F", levels="Karras or exponential")
    solves_ode = True
    _file_options = {"num_train_timesteps": FileOption(1000, numbers=(1, 1_000_000))}
    _domains = {
        "sigma_data": (1e-18, 1e18),
        "sigma_schedule": ("karras", "exponential"),
        "prediction_type": ("epsilon", "v_prediction"),
        "rho": (0.1, 1000.0),  # float64 holds sigma ** (1 / rho)
        "final_sigmas_type": ("zero", "sigma_min"),
    }

    @property
    def parametrization(self) -> EDM:
        """EDM's parametrization, without a boundary: the network is a denoiser."""
        sign = 1 if self.prediction_type == "epsilon" else -1
        return EDM(self.sigma_data, sign=sign)

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of noise plus data at the highest level, `sqrt(sigma_max^2 + 1)`."""
        return math.sqrt(self.sigma_max**2 + 1)

    def first_scale(self, state: TableState) -> jax.Array:
        """Returns `sqrt(sigma^2 + 1)` of the first level, which may be below sigma_max, f32[]."""
        return jnp.sqrt(jnp.square(state.sigma) + 1)

    def levels(self, name: str, value: Any) -> Levels:
        """Returns the noise levels of the solver's steps, and of the end."""
        # The levels where steps start, f32[n], descending.
        if name == "sigmas":
            sigmas = parse_levels(name, value, self.sigma_min, self.sigma_max)
        elif name == "timesteps":
            sigmas = self._sigmas_of_times(value)
        else:
            sigmas = self._grid(check_num_steps(value, MOST_STEPS))

        end = 0.0 if self.final_sigmas_type == "zero" else self.sigma_min
        return exploding_levels(self.parametrization, jnp.append(sigmas, jnp.float32(end)))

    def _sigmas_of_times(self, times: Any) -> jax.Array:
        """The noise levels at the network's times, f32[n]."""
        # Valid up to a little beyond sigma_min and sigma_max: a caller's time of these is rounded.
        low = EDM_TIME_FACTOR * math.log(self.sigma_min * (1 - 1e-5))
        high = EDM_TIME_FACTOR * math.log(self.sigma_max * (1 + 1e-5))
        _, sigmas = self.parametrization.path(parse_levels("timesteps", times, low, high))
        return jnp.clip(sigmas, self.sigma_min, self.sigma_max)

    def _grid(self, n: int) -> jax.Array:
        """The noise levels of n steps, f32[n]."""
        if self.sigma_schedule == "exponential":
            return self.exponential_sigmas(ramp(n))
        sigmas = karras_sigmas(ramp(n), self.sigma_min, self.sigma_max, self.rho)
        return jnp.asarray(sigmas, jnp.float32)

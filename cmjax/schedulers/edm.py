"""Shared base of solvers on EDM noise levels: levels, scalings, churn (Karras et al. 2022)."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cmjax.parametrization import EDM
from cmjax.parametrization.edm import EDM_TIME_FACTOR
from cmjax.schedulers.checks import check_sigma_order
from cmjax.schedulers.config_files import FileOption
from cmjax.schedulers.facts import Facts
from cmjax.schedulers.levels import (
    MOST_STEPS,
    Levels,
    check_num_steps,
    exploding_levels,
    exponential_sigmas,
    karras_sigmas,
    parse_levels,
    ramp,
    root_of_difference,
)
from cmjax.schedulers.table import TableScheduler, TableState

# Valid values of the fields of schedulers with churn.
CHURN_DOMAINS = {
    "s_churn": (0.0, 1e18),
    "s_tmin": (0.0, 1e18),
    "s_tmax": (0.0, 1e18),
    "s_noise": (0.0, 1e18),
}


@dataclasses.dataclass(frozen=True)
class EDMScheduler(TableScheduler):
    """A solver of the probability-flow ODE on samples `x0 + sigma z`; the network denoises.

    The network is told `log(sigma) / 4`. `set_timesteps` takes as `num_inference_steps` a number of
    solver steps, on a grid from sigma_max to sigma_min; as `timesteps` the network's times,
    `log(sigma) / 4`; as `sigmas` any levels in [sigma_min, sigma_max].

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
        "sigma_min": (1e-18, 1e18),  # float32 holds their squares
        "sigma_max": (1e-18, 1e18),
        "sigma_data": (1e-18, 1e18),
        "sigma_schedule": ("karras", "exponential"),
        "prediction_type": ("epsilon", "v_prediction"),
        "rho": (0.1, 1000.0),  # float64 holds sigma ** (1 / rho)
        "final_sigmas_type": ("zero", "sigma_min"),
        **CHURN_DOMAINS,  # of the subclasses with churn
    }

    def __post_init__(self):
        super().__post_init__()
        check_sigma_order(self.sigma_min, self.sigma_max)

    @property
    def parametrization(self) -> EDM:
        """EDM's parametrization, without a boundary: the network is a denoiser."""
        sign = 1 if self.prediction_type == "epsilon" else -1
        return EDM(self.sigma_data, sign=sign)

    @property
    def sigma_range(self) -> tuple[float, float]:
        """The noise levels that the network knows, (sigma_min, sigma_max)."""
        return self.sigma_min, self.sigma_max

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
        if self.sigma_schedule == "karras":
            sigmas = karras_sigmas(ramp(n), self.sigma_min, self.sigma_max, self.rho)
        else:
            sigmas = exponential_sigmas(ramp(n), self.sigma_min, self.sigma_max)
        return jnp.asarray(sigmas, jnp.float32)


class Churn(NamedTuple):
    """Noise that is added before each step (Karras et al. 2022, Algorithm 2, lines 4 to 6).

    Attributes:
        raised: f32[N+1], the levels that steps start from; the end is not raised.
        noise: f32[N], standard deviation of the noise added on arrival at the next level, which
            raises it; None without churn.
    """

    raised: jax.Array
    noise: jax.Array | None


def churn(
    scheduler: Any, sigmas: jax.Array, within: tuple[float, float] | None = None
) -> Churn:
    """Returns the noise levels raised by `s_churn`, and the noise that raises the sample to them.

    Args:
        scheduler: with the fields `s_churn`, `s_noise` and, for `within`, `s_tmin` and `s_tmax`.
        sigmas: f32[N+1], noise levels of a run.
        within: the lowest and highest level before which noise is added; None for
            (s_tmin, s_tmax).
    """
    # Without churn there is no column of noise, and none is drawn.
    if scheduler.s_churn == 0:
        return Churn(sigmas, None)
    levels = sigmas[:-1]

    # sigma_hat = (1 + gamma) sigma within [s_tmin, s_tmax].
    gamma = min(scheduler.s_churn / len(levels), math.sqrt(2) - 1)
    low, high = within or (scheduler.s_tmin, scheduler.s_tmax)
    inside = (low <= levels) & (levels <= high)
    raised = jnp.append(levels * (1 + jnp.where(inside, gamma, 0.0)), sigmas[-1:])

    # sqrt(sigma_hat^2 - sigma^2) of fresh noise, added by the step that arrives at sigma. The first
    # level needs none: sampling starts from noise of sigma_hat.
    return Churn(raised, scheduler.s_noise * root_of_difference(raised[1:], sigmas[1:]))

"""Shared base of samplers for models with discrete training times (Ho et al. 2020)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cmjax.arrays import as_array, concrete
from cmjax.configs import is_finite, shown
from cmjax.parametrization import Discrete
from cmjax.parametrization.betas import BETA_SCHEDULES
from cmjax.parametrization.discrete import LEAST_SIGNAL, PREDICTION_TYPES
from cmjax.schedulers.facts import Facts
from cmjax.schedulers.field_docs import inherit_field_docs
from cmjax.schedulers.levels import (
    Levels,
    append_zero,
    check_num_steps,
    parse_levels,
    root_of_difference,
)
from cmjax.schedulers.table import TableScheduler

# diffusers' names for how `num_inference_steps` are spread over the training times.
SPACINGS = ("linspace", "leading", "trailing")

# Valid values of the fields of all samplers for discrete times, in this file and others.
DISCRETE_DOMAINS = {
    "num_train_timesteps": (1, 1_000_000),
    "beta_start": (1e-12, 0.999),
    "beta_end": (1e-12, 0.999),
    "beta_schedule": BETA_SCHEDULES,
    "prediction_type": PREDICTION_TYPES,
    "timestep_spacing": SPACINGS,
    "steps_offset": (0, 1_000_000),
}


@dataclasses.dataclass(frozen=True)
class NetworkOptions:
    """What a network with discrete times was trained on, and what it predicts.

    The fields that the families of such samplers share; `cmjax.parametrization.Discrete` has them.

    Attributes:
        num_train_timesteps: number N of training times.
        beta_start: the first beta.
        beta_end: the last beta.
        beta_schedule: "linear", "scaled_linear" (of Stable Diffusion), "squaredcos_cap_v2", "exp",
            "laplace" or "sigmoid".
        trained_betas: betas that replace the schedule, or None.
        prediction_type: what the network returns: "epsilon" (the noise), "sample" (x0), or
            "v_prediction" (`alpha z - sigma x0`, Salimans and Ho 2022).
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    trained_betas: tuple[float, ...] | None = None
    prediction_type: str = "epsilon"


@inherit_field_docs
@dataclasses.dataclass(frozen=True)
class DiscreteScheduler(NetworkOptions, TableScheduler):
    """A sampler of a model trained at times 0..N-1 of a beta schedule, variance-preserving.

    The sample is `alpha x0 + sigma z` with `alpha^2 + sigma^2 = 1`; the network's time input is a
    training time, 0..N-1.

    Attributes:
        rescale_betas_zero_snr: make the last time pure noise (Lin et al. 2023).

    Raises:
        ValueError: for values outside their domain.
    """

    rescale_betas_zero_snr: bool = False

    facts = Facts(predicts="epsilon, sample or v", levels="training times")
    _domains = DISCRETE_DOMAINS

    def __post_init__(self):
        super().__post_init__()
        check_betas(self.trained_betas, self.num_train_timesteps)

    @property
    def parametrization(self) -> Discrete:
        """The variance-preserving path of the beta schedule."""
        return Discrete(*network_options(self))

    @property
    def sigma_range(self) -> tuple[float, float]:
        """The lowest and highest sigma / alpha of the training times."""
        return self.parametrization.ratio_range

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the initial noise, 1."""
        return 1.0


@inherit_field_docs
@dataclasses.dataclass(frozen=True)
class SpacedScheduler(DiscreteScheduler):
    """A sampler of a model with discrete times that takes its steps at some of these times.

    The network's time input is a training time, 0..N-1. `set_timesteps` takes as
    `num_inference_steps` a number of times spaced by `timestep_spacing`, or as `timesteps` whole
    training times.

    Attributes:
        timestep_spacing: "linspace" (first and last time included), "leading" (integer stride) or
            "trailing".
        steps_offset: added to "leading" times.
    """

    timestep_spacing: str = "leading"
    steps_offset: int = 0

    solves_ode = True

    # Whether a run ends at x0, or at training time 0, which has a little noise. Samplers that leave
    # the choice to the caller have a field of this name.
    set_alpha_to_one = True

    def levels(self, name: str, value: Any) -> Levels:
        """Returns the levels of the training times, and of the end."""
        return self.levels_at(training_times(self, name, value))

    def levels_at(self, times: jax.Array) -> Levels:
        """Returns the levels of training times, f32[N] and descending, and of the end."""
        alphas, sigmas = self.parametrization.path(append_zero(times))
        if self.set_alpha_to_one:
            alphas = alphas.at[-1].set(1)
            sigmas = sigmas.at[-1].set(0)

        # Steps divide by the alpha that they arrive at: only the first level may have none.
        return Levels(times, alphas.at[1:].set(with_signal(alphas[1:])), sigmas)


def network_options(scheduler: Any) -> tuple[Any, ...]:
    """Returns a scheduler's values of the fields of `Discrete`, in the order of its fields."""
    return tuple(getattr(scheduler, field.name) for field in dataclasses.fields(Discrete))


def check_betas(betas: Any, num: int) -> None:
    """Raises ValueError unless `trained_betas` is None or a tuple of `num` numbers in (0, 1)."""
    if betas is None:
        return

    # A tuple, since a scheduler must be hashable; `from_config` converts JSON's lists.
    valid = isinstance(betas, tuple) and len(betas) == num
    if not valid or not all(is_finite(beta) and 0 < beta < 1 for beta in betas):
        raise ValueError(
            f"trained_betas must be a tuple of {num} numbers between 0 and 1, got {shown(betas)}"
        )


def training_times(scheduler: Any, name: str, value: Any) -> jax.Array:
    """Returns the training times of a run, f32[N], descending.

    Args:
        scheduler: with `num_train_timesteps`, `timestep_spacing`, `steps_offset`.
        name: the argument that `set_timesteps` was given: "num_inference_steps", for spaced times,
            or "timesteps", for explicit ones.
        value: the value of that argument.

    Raises:
        ValueError: for sigmas, or an invalid value.
    """
    if name != "num_inference_steps":
        return explicit_times(scheduler, name, value)

    # Spaced times pass the same checks as explicit ones; only an offset can make them too large.
    last = scheduler.num_train_timesteps - 1
    n = check_num_steps(value, last + 1, "num_train_timesteps")
    times = spaced_times(scheduler, n)
    check_offset(scheduler, times)
    return explicit_times(scheduler, "timesteps", times.astype(int))


def check_offset(scheduler: Any, times: np.ndarray) -> None:
    """Raises ValueError if `steps_offset` leads beyond the last training time."""
    last = scheduler.num_train_timesteps - 1
    if times[0] > last:
        raise ValueError(
            f"steps_offset={scheduler.steps_offset} leads beyond the last training time {last}"
        )


def explicit_times(scheduler: Any, name: str, value: Any) -> jax.Array:
    """Returns explicit training times, f32[N], descending.

    Raises:
        ValueError: for sigmas, or an invalid value.
    """
    if name == "sigmas":
        kind = type(scheduler).__name__
        raise ValueError(f"{kind} takes timesteps=[999, ...] (training times), not sigmas")
    times = parse_levels(name, value, 0, scheduler.num_train_timesteps - 1, integers=True)
    check_signal(scheduler, value)
    return times


def check_signal(scheduler: Any, times: Any) -> None:
    """Raises ValueError if a network that predicts noise would be called at pure noise.

    There `x0 = (x - sigma F) / alpha` would divide by alpha = 0.
    """
    known = concrete(as_array("timesteps", times))
    if scheduler.prediction_type != "epsilon" or known is None:
        return

    # The first time is the noisiest. Of a smaller alpha float32 does not hold the inverse.
    first = int(known[0])
    variances = Discrete(*network_options(scheduler)).signal_variances()
    if variances[first] < LEAST_SIGNAL:
        cause = f"beta_end={scheduler.beta_end}"
        if scheduler.rescale_betas_zero_snr:
            cause = "rescale_betas_zero_snr"
        raise ValueError(
            f"{cause} leaves no signal at training time {first}, where predicted noise "
            "(prediction_type='epsilon') does not determine x0; use 'v_prediction', 'sample', "
            "or lower timesteps"
        )


def spaced_times(scheduler: Any, n: int) -> np.ndarray:
    """Returns whole training times by `timestep_spacing` and `steps_offset`, f64[n], descending."""
    # The three rules of diffusers, compared in Lin et al. 2023, table 2.
    total = scheduler.num_train_timesteps
    if scheduler.timestep_spacing == "linspace":
        return linspace_times(total, n).round()
    if scheduler.timestep_spacing == "leading":
        return (np.arange(n) * (total // n))[::-1] + float(scheduler.steps_offset)
    # Made as in diffusers, since rounding decides times that end in 1/2.
    return np.round(np.arange(total, 0, -total / n)[:n]) - 1


def linspace_times(total: int, n: int) -> np.ndarray:
    """Returns equally spaced times from `total - 1` to 0, f64[n]; for n = 1 only the noisiest."""
    # NumPy's single point would be the lower end.
    if n == 1:
        return np.array([float(total - 1)])
    return np.linspace(0, total - 1, n)[::-1]


def with_signal(alphas: jax.Array) -> jax.Array:
    """Returns signal levels that weights may be divided by: the least that counts in place of 0."""
    # Large betas leave at many times no signal that float32 holds.
    return jnp.maximum(alphas, LEAST_SIGNAL**0.5)


def noise_between(
    low: tuple[jax.Array, jax.Array], high: tuple[jax.Array, jax.Array]
) -> jax.Array:
    """Returns sqrt(alpha_low^2 - alpha_high^2) of two levels (alpha, sigma) of this path.

    Since alpha^2 + sigma^2 = 1, this also is sqrt(sigma_high^2 - sigma_low^2). The difference of
    the smaller numbers is the more accurate one.

    Args:
        low: the level with less noise.
        high: the level with more noise.
    """
    alpha_low, sigma_low = low
    alpha_high, sigma_high = high

    # Both are computed, and each element takes the one of the smaller numbers.
    by_signal = root_of_difference(alpha_low, alpha_high)
    by_noise = root_of_difference(sigma_high, sigma_low)
    return jnp.where(sigma_high < alpha_low, by_noise, by_signal)

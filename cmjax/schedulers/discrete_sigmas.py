"""Shared base of ODE solvers for models with discrete times, on EDM's noise levels."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from cmjax.parametrization import DiscreteExploding, Parametrization
from cmjax.schedulers.discrete import (
    DISCRETE_DOMAINS,
    NetworkOptions,
    check_betas,
    check_signal,
    linspace_times,
    network_options,
    training_times,
)
from cmjax.schedulers.facts import Facts
from cmjax.schedulers.field_docs import inherit_field_docs
from cmjax.schedulers.grids import grid_option, respaced
from cmjax.schedulers.levels import (
    Levels,
    append_zero,
    check_num_steps,
    exploding_levels,
    parse_levels,
)
from cmjax.schedulers.table import TableScheduler, TableState


@inherit_field_docs
@dataclasses.dataclass(frozen=True)
class DiscreteSigmasScheduler(NetworkOptions, TableScheduler):
    """A solver for a model with discrete times, on samples `x0 + sigma z`: variance-exploding.

    The level of a training time is `sqrt(1 - alpha^2) / alpha`; levels between two of them have
    fractional times. The network's time input is such a time, from 0 to N-1.

    `set_timesteps` takes as `num_inference_steps` a number of solver steps, spaced by
    `timestep_spacing`; as `timesteps` whole training times; as `sigmas` any levels between those of
    the first and last training time. Sampling ends at 0.

    Attributes:
        timestep_spacing: "linspace" (first and last time included), "leading" (integer stride) or
            "trailing".
        steps_offset: added to "leading" times.
        rescale_betas_zero_snr: make the last time all but pure noise (Lin et al. 2023).
        use_karras_sigmas: replace the levels by those of Karras et al. 2022, equation 5, with the
            same ends.
        use_exponential_sigmas: replace the levels by equal steps of log sigma.
        use_beta_sigmas: replace the levels by quantiles of a beta distribution (Lee et al. 2024),
            close together at both ends.

    Raises:
        ValueError: for values outside their domain.
    """

    # The levels of a run.
    timestep_spacing: str = "linspace"
    steps_offset: int = 0
    rescale_betas_zero_snr: bool = False
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False

    facts = Facts(predicts="epsilon, sample or v", levels="training times as sigmas")
    solves_ode = True
    _domains = DISCRETE_DOMAINS

    def __post_init__(self):
        super().__post_init__()
        check_betas(self.trained_betas, self.num_train_timesteps)
        grid_option(self)  # at most one

    @property
    def training(self) -> DiscreteExploding:
        """The training times of the beta schedule as noise levels."""
        return DiscreteExploding(*network_options(self))

    @property
    def parametrization(self) -> Parametrization:
        """What the network means: by default it takes training times."""
        return self.training

    @property
    def sigma_range(self) -> tuple[float, float]:
        """The noise levels of the first and last training time."""
        return self.training.ratio_range

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the initial noise at the last training time."""
        return self._scale_at(self.sigma_range[1])

    def first_scale(self, state: TableState) -> jax.Array:
        """Returns the standard deviation of the first sample, f32[]."""
        return self._scale_at(state.sigma)

    def _scale_at(self, sigma):
        """Standard deviation of the first sample: as in diffusers it depends on the spacing."""
        # "leading" times start below the last training time, where data still count: data of
        # variance 1 and noise together have sqrt(sigma^2 + 1).
        if self.timestep_spacing == "leading":
            return (sigma**2 + 1) ** 0.5
        return sigma

    def levels(self, name: str, value: Any) -> Levels:
        """Returns the noise levels of the solver's steps, ending at 0."""
        option = grid_option(self)
        if name == "timesteps" and option:
            raise ValueError(
                f"timesteps already determine the levels: leave out {option}, or give sigmas"
            )

        # The levels f32[n] and the network's times there, each from the other.
        if name == "sigmas":
            sigmas = parse_levels(name, value, *self.sigma_range)
            times = self.parametrization.time(sigmas)
        else:
            times = self._times(name, value)
            _, sigmas = self.training.path(times)

        # Another grid between the same ends. Its levels lie between training times.
        if name == "num_inference_steps" and option:
            sigmas = self.respaced(sigmas)
            times = self.parametrization.time(sigmas)
        return exploding_levels(self.parametrization, append_zero(sigmas), times)

    def respaced(self, sigmas: jax.Array) -> jax.Array:
        """Returns the grid that replaces levels f32[n], by default with the same ends."""
        return respaced(self, sigmas)

    def _times(self, name, value):
        """Training times, f32[n]; those of "linspace" are not rounded."""
        # Explicit times, and spacings that give whole ones.
        if name != "num_inference_steps" or self.timestep_spacing != "linspace":
            return training_times(self, name, value)

        # Fractional times, as in diffusers: this network is also called between training times.
        total = self.num_train_timesteps
        times = linspace_times(total, check_num_steps(value, total, "num_train_timesteps"))
        check_signal(self, times)
        return jnp.asarray(times, jnp.float32)

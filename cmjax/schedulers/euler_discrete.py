"""Euler's method for models with discrete times (Karras et al. 2022; k-diffusion)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from cmjax.parametrization import EDM, Parametrization
from cmjax.schedulers.checks import check_sigma_order
from cmjax.schedulers.churn import ChurnOptions
from cmjax.schedulers.discrete_sigmas import DiscreteSigmasScheduler
from cmjax.schedulers.euler import euler_calls, euler_weights
from cmjax.schedulers.field_docs import inherit_field_docs
from cmjax.schedulers.grids import grid_option, respaced
from cmjax.schedulers.levels import Levels, exploding_levels, exponential_sigmas, ramp
from cmjax.schedulers.weights import Weights


@inherit_field_docs
@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class EulerDiscreteScheduler(ChurnOptions, DiscreteSigmasScheduler):
    """Euler's method for models with discrete times: `x' = x + (sigma' - sigma) (x - x0) / sigma`.

    The network's time input is a training time, 0..N-1, also between two; or, with continuous
    times, `log(sigma) / 4`. `set_timesteps` takes what `DiscreteSigmasScheduler.set_timesteps`
    takes; as `timesteps` always training times.

    Attributes:
        use_karras_sigmas: replace the levels by those of Karras et al. 2022, equation 5.
        interpolation_type: "linear" levels at the spaced times, or "log_linear": n + 1 levels in
            equal steps of log sigma over all training times, the last of which ends the run.
        sigma_min: lowest level of Karras, exponential and beta levels; None for that of the levels
            that they replace.
        sigma_max: highest level of these three, likewise.
        timestep_type: "continuous" for networks of "v_prediction" that take `log(sigma) / 4`
            (Stable Video Diffusion); of no effect for other predictions.
        final_sigmas_type: sampling ends at "zero", or at "sigma_min", the lowest training level.
    """

    # The levels of a run, and where it ends.
    interpolation_type: str = "linear"
    sigma_min: float | None = None
    sigma_max: float | None = None
    timestep_type: str = "discrete"
    final_sigmas_type: str = "zero"

    facts = DiscreteSigmasScheduler.facts.replace(
        levels="training times as sigmas, or continuous",
        order="1",
        noise="`s_churn`",
        paper="Karras et al. 2022",
    )
    _domains = {
        "interpolation_type": ("linear", "log_linear"),
        "sigma_min": (1e-18, 1e18),  # float32 holds their squares
        "sigma_max": (1e-18, 1e18),
        "timestep_type": ("discrete", "continuous"),
        "final_sigmas_type": ("zero", "sigma_min"),
    }

    def __post_init__(self):
        super().__post_init__()
        if self.sigma_min or self.sigma_max:
            check_sigma_order(*self.sigma_range)

    @property
    def parametrization(self) -> Parametrization:
        """The training times as noise levels, or with continuous times EDM's with data of std 1."""
        if self.timestep_type == "continuous" and self.prediction_type == "v_prediction":
            return EDM(sigma_data=1.0, sign=-1)  # has the same scalings
        return self.training

    @property
    def sigma_range(self) -> tuple[float, float]:
        """The lowest and highest level: sigma_min and sigma_max, or those of the training times."""
        low, high = super().sigma_range
        return self.sigma_min or low, self.sigma_max or high

    def respaced(self, sigmas: jax.Array) -> jax.Array:
        """Returns the grid that replaces levels f32[n], from sigma_max to sigma_min if given."""
        # A grid in place of log-linear levels has their ends, those of the training times.
        if self.interpolation_type == "log_linear":
            return respaced(self, sigmas, *self.sigma_range)
        return respaced(self, sigmas, self.sigma_min, self.sigma_max)

    def levels(self, name: str, value: Any) -> Levels:
        """Returns the noise levels of the solver's steps, and of the end."""
        levels = super().levels(name, value)
        times = levels.times
        sigmas = levels.sigmas
        lowest, highest = super().sigma_range
        if self.final_sigmas_type == "sigma_min":
            sigmas = jnp.append(sigmas[:-1], jnp.float32(lowest))

        is_spaced = name == "num_inference_steps" and not grid_option(self)
        is_log_linear = is_spaced and self.interpolation_type == "log_linear"
        if is_log_linear:
            places = ramp(len(sigmas))
            sigmas = jnp.asarray(exponential_sigmas(places, lowest, highest), jnp.float32)

        # These are not the levels of the spaced times, and continuous times are none of training.
        if is_log_linear or self.parametrization != self.training:
            times = None
        return exploding_levels(self.parametrization, sigmas, times)

    def calls(self, levels: Levels) -> Levels:
        """Returns where the network is called: at the raised levels."""
        return euler_calls(self, levels)

    def weights(self, levels: Levels) -> Weights:
        """Returns the table of `x' = x0 + sigma' eps`, with the noise of the next level's churn."""
        return euler_weights(self, levels)

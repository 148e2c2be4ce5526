"""Shared base of solvers in the half log-SNR `log(alpha / sigma)`, for models with training times.

They run on samples of variance 1, or, with `use_flow_sigmas`, on the straight path of flow
matching.
"""

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from cmjax.configs import is_finite
from cmjax.parametrization import Discrete, FlowMatching
from cmjax.parametrization.discrete import PREDICTION_TYPES
from cmjax.schedulers.bounds import Thresholded
from cmjax.schedulers.config_files import FileOption
from cmjax.schedulers.discrete import (
    DISCRETE_DOMAINS,
    NetworkOptions,
    check_betas,
    network_options,
)
from cmjax.schedulers.facts import Facts
from cmjax.schedulers.field_docs import inherit_field_docs
from cmjax.schedulers.grids import grid_option
from cmjax.schedulers.learned_variance import output_shape, split_output
from cmjax.schedulers.levels import Levels, ramp
from cmjax.schedulers.log_snr_levels import (
    LEAST_ALPHA,
    grid_levels,
    last_time,
    level_of_times,
    log_snr_flow_levels,
    shifted_path,
    step_starts,
    step_times,
    with_end,
)
from cmjax.schedulers.table import TableScheduler, TableState


@inherit_field_docs
@dataclasses.dataclass(frozen=True)
class LogSNRScheduler(NetworkOptions, Thresholded, TableScheduler):
    """A solver in the half log-SNR `lambda = log(alpha / sigma)`, for models with training times.

    The network's time input is a training time, 0..N-1; for a level between two of them, a whole
    number near it, as in diffusers. `set_timesteps` takes `num_inference_steps`, a number of steps,
    or `timesteps`, whole training times. With `use_flow_sigmas` the network takes N times the
    level, rounded down, and `set_timesteps` takes levels before the shift: `sigmas` in (0, 1], or
    `timesteps`, which are N times these.

    Attributes:
        prediction_type: what the network returns: "epsilon", "sample", "v_prediction", or, with
            `use_flow_sigmas`, "flow_prediction" (z - x0).
        rescale_betas_zero_snr: make the last time all but pure noise (Lin et al. 2023).
        timestep_spacing: "linspace" (down to time 0, which is not called), "leading" (integer
            stride) or "trailing".
        steps_offset: added to "leading" times.
        lambda_min_clipped: leave out training times whose log(alpha / sigma) is lower.
        final_sigmas_type: sampling ends at "zero" or, as "sigma_min", at the lowest level.
        use_karras_sigmas: levels of Karras et al. 2022, equation 5, over all training times.
        use_exponential_sigmas: levels in equal steps of log sigma, over all training times.
        use_beta_sigmas: levels at quantiles of a beta distribution, over all training times.
        use_lu_lambdas: as use_exponential_sigmas, with times rounded rather than cut off.
        use_flow_sigmas: follow the straight path `(1 - sigma) x0 + sigma z` of flow matching.
        flow_shift: how far flow levels are moved towards noise (Esser et al. 2024, equation 23).
        variance_type: "learned" or "learned_range" for networks whose output has the variance,
            which is not used, in a second half of the channels (the last axis); or None.
        solver_order: order of the solver, 1 to 3.
        lower_order_final: end with steps of second and first order in runs of fewer than 15 steps.

    Raises:
        ValueError: for values outside their domain, or that exclude each other.
    """

    rescale_betas_zero_snr: bool = False

    # The levels of a run.
    timestep_spacing: str = "linspace"
    steps_offset: int = 0
    lambda_min_clipped: float = -math.inf
    final_sigmas_type: str = "zero"
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False
    use_lu_lambdas: bool = False
    use_flow_sigmas: bool = False
    flow_shift: float = 1.0

    # The x0 estimate.
    thresholding: bool = False
    dynamic_thresholding_ratio: float = 0.995
    sample_max_value: float = 1.0
    variance_type: str | None = None

    # The order of steps.
    solver_order: int = 2
    lower_order_final: bool = True

    facts = Facts(
        predicts="epsilon, sample, v or flow", levels="training times, or flow levels"
    )
    solves_ode = True

    # Whether runs over flow levels with final_sigmas_type="sigma_min" end at the level where their
    # last step starts, rather than at the lowest training level. diffusers' solvers differ in this.
    ends_at_last_flow_level: ClassVar[bool] = False

    _domains = {
        **DISCRETE_DOMAINS,
        "prediction_type": (*PREDICTION_TYPES, "flow_prediction"),
        "final_sigmas_type": ("zero", "sigma_min"),
        "flow_shift": (1e-6, 1e6),
        "dynamic_thresholding_ratio": (0.0, 1.0),
        "sample_max_value": (1.0, 1e6),
        "variance_type": ("learned", "learned_range"),
        "solver_order": (1, 3),
    }
    # DDPM's other variance types, with which the network's output has no variance.
    _others_values = {
        "variance_type": dict.fromkeys(
            ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log")
        ),
    }
    _file_options = {
        "use_dynamic_shifting": FileOption(False, hint="set flow_shift=exp(mu)"),
        "time_shift_type": FileOption("exponential", values=("linear",)),
    }

    def __post_init__(self):
        super().__post_init__()
        check_betas(self.trained_betas, self.num_train_timesteps)

        # -inf keeps all training times.
        lowest = self.lambda_min_clipped
        if lowest != -math.inf and not is_finite(lowest, -100, 100):
            raise ValueError(
                f"lambda_min_clipped must be a number from -100 to 100, or -inf, got {lowest!r}"
            )
        if grid_option(self) and self.use_lu_lambdas:
            raise ValueError(f"{grid_option(self)} and use_lu_lambdas exclude each other")

        # On the other path the network's velocity does not give x0.
        wrong = "v_prediction" if self.use_flow_sigmas else "flow_prediction"
        if self.prediction_type == wrong:
            raise ValueError(
                f"prediction_type={wrong!r} does not go with use_flow_sigmas="
                f"{self.use_flow_sigmas}: the network's velocity is that of the other noise path"
            )

    @property
    def parametrization(self) -> Any:
        """The variance-preserving path, or the straight one with `use_flow_sigmas`."""
        if self.use_flow_sigmas:
            return FlowMatching(self.num_train_timesteps, self.prediction_type)
        return self.training

    @property
    def training(self) -> Discrete:
        """The training times of the beta schedule."""
        return Discrete(*network_options(self))

    @property
    def sigma_range(self) -> tuple[float, float]:
        """The lowest and highest sigma / alpha of the network."""
        if self.use_flow_sigmas:
            return LEAST_ALPHA, 1 / LEAST_ALPHA
        return self.training.ratio_range

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the initial noise, 1."""
        return 1.0

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape of the model output: with twice the channels of learned variances."""
        return output_shape(self, shape)

    def estimate(
        self, state: TableState, model_output: jax.Array, sample: jax.Array
    ) -> jax.Array:
        """Returns the x0 estimate of the model output without the network's variance."""
        prediction, _ = split_output(self, model_output, sample)
        return super().estimate(state, prediction, sample)

    def levels(self, name: str, value: Any) -> Levels:
        """Returns the levels of the steps, and of the end."""
        # A grid of levels replaces the training times, or the flow levels, of a number of steps.
        grid = "use_lu_lambdas" if self.use_lu_lambdas else grid_option(self)
        if grid and name != "num_inference_steps":
            raise ValueError(
                f"{name} already determine the levels: leave out {grid}, "
                "or give num_inference_steps"
            )
        if grid:
            return grid_levels(self, value, grid)
        if self.use_flow_sigmas:
            return log_snr_flow_levels(self, name, value)

        # Otherwise the levels of training times; the end has no noise, or the lowest of all levels.
        times = step_times(self, name, value)
        lowest = level_of_times(self, jnp.zeros(1, jnp.float32))
        return with_end(self, level_of_times(self, times), lowest.alpha, lowest.sigma)

    # The methods below are overridden by solvers that differ in them, as in diffusers.

    def spaced_times(self, n: int) -> np.ndarray:
        """Returns whole training times by `timestep_spacing`, f64[n], descending."""
        return step_starts(self, n, last_time(self))

    def rounded_grids(self) -> tuple[str, ...]:
        """Returns the grids whose times are rounded; others are rounded down, as in diffusers."""
        return ("use_karras_sigmas", "use_lu_lambdas")

    def grid_ends(self) -> tuple[float, float]:
        """Returns the lowest and highest sigma / alpha of Karras, exponential and beta levels."""
        return self.training.ratio_range

    def flow_grid(self, n: int) -> np.ndarray:
        """Returns n equally spaced flow levels before the shift, f64[n]: to 0, not included."""
        return (1 - 1 / self.num_train_timesteps) * (1 - ramp(n + 1)[:-1])

    def shifted_path(self, alphas: Any, sigmas: Any) -> tuple[jax.Array, jax.Array]:
        """Returns alpha and sigma after the shift, f32[n] each."""
        return shifted_path(alphas, sigmas, self.flow_shift)

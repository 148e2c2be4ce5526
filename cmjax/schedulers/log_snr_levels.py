"""The levels of solvers in the half log-SNR `log(alpha / sigma)`: diffusers' options for them."""

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from cmjax.configs import is_finite
from cmjax.parametrization import Discrete, FlowMatching
from cmjax.parametrization.discrete import PREDICTION_TYPES
from cmjax.schedulers.discrete import (
    DiscreteScheduler,
    check_signal,
    explicit_times,
    network_options,
    step_starts,
)
from cmjax.schedulers.flow import shifted
from cmjax.schedulers.grids import grid_option, respaced
from cmjax.schedulers.levels import (
    Levels,
    check_num_steps,
    exponential_sigmas,
    parse_levels,
    ramp,
)

_LEAST_ALPHA = 1e-6  # of flow levels: at 0, log(alpha / sigma) is infinite


@dataclasses.dataclass(frozen=True)
class LogSNRLevels(DiscreteScheduler):
    """Levels on the variance-preserving path of training times, or on that of flow matching.

    `LogSNRScheduler`, which inherits from this class, explains the fields and what `set_timesteps`
    takes.

    Raises:
        ValueError: for values outside their domain, or that exclude each other.
    """

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

    # Where runs over flow levels end with "sigma_min": at the lowest training level, or where their
    # last step starts. Both are as in diffusers.
    _flow_ends_where_it_is: ClassVar[bool] = False

    _domains = {
        "prediction_type": (*PREDICTION_TYPES, "flow_prediction"),
        "final_sigmas_type": ("zero", "sigma_min"),
        "flow_shift": (1e-6, 1e6),
    }

    def __post_init__(self):
        super().__post_init__()
        lowest = self.lambda_min_clipped
        if lowest != -math.inf and not is_finite(lowest, -100, 100):
            raise ValueError(
                f"lambda_min_clipped must be a number from -100 to 100, or -inf, got {lowest!r}"
            )
        if grid_option(self) and self.use_lu_lambdas:
            raise ValueError(f"{grid_option(self)} and use_lu_lambdas exclude each other")

        # A velocity of the one path does not give x0 on the other.
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
        return self._training

    @property
    def _training(self) -> Discrete:
        """The training times of the beta schedule."""
        return Discrete(*network_options(self))

    @property
    def sigma_range(self) -> tuple[float, float]:
        """The lowest and highest sigma / alpha of the network."""
        if self.use_flow_sigmas:
            return _LEAST_ALPHA, 1 / _LEAST_ALPHA
        return super().sigma_range

    def levels(self, name: str, value: Any) -> Levels:
        """Returns the levels of the steps, and of the end."""
        grid = grid_option(self)
        if self.use_lu_lambdas:
            grid = "use_lu_lambdas"
        if grid and name != "num_inference_steps":
            raise ValueError(
                f"{name} already determine the levels: leave out {grid}, "
                "or give num_inference_steps"
            )
        if grid:
            return self._respaced_levels(value, grid)
        if self.use_flow_sigmas:
            return self._flow_levels(name, value)

        levels = self.training_levels(self.training_times(name, value))
        lowest = self.training_levels(jnp.zeros(1, jnp.float32))
        return self._ending(levels, lowest.alphas, lowest.sigmas)

    @property
    def has_own_levels(self) -> bool:
        """Whether the levels of a run are other than those of spaced training times."""
        return bool(grid_option(self)) or self.use_lu_lambdas or self.use_flow_sigmas

    def training_levels(self, times: jax.Array) -> Levels:
        """Returns the levels of whole training times, f32[n], without that of an end."""
        ratios = jnp.asarray(self._training.training_ratios(), jnp.float32)
        level = self.parametrization.level(ratios[times.astype(jnp.int32)])
        return Levels(times, level.alpha, level.sigma)

    def training_times(self, name: str, value: Any) -> jax.Array:
        """Returns whole training times, f32[n], descending.

        Raises:
            ValueError: for sigmas, or an invalid value.
        """
        if name != "num_inference_steps":
            return explicit_times(self, name, value)

        # The stride of "leading" times would be 0 for as many steps as times.
        total = self.num_train_timesteps
        if self.timestep_spacing == "leading" and total > 1:
            n = check_num_steps(value, total - 1)
        else:
            n = check_num_steps(value, total, "num_train_timesteps")
        times = self.spaced_times(n)
        if times[0] > total - 1:
            raise ValueError(
                f"steps_offset={self.steps_offset} leads beyond the last training time {total - 1}"
            )
        check_signal(self, times)
        return jnp.asarray(times, jnp.float32)

    def spaced_times(self, n: int) -> np.ndarray:
        """Returns whole training times by `timestep_spacing`, f64[n], descending."""
        return step_starts(self, n, self.last_time())

    def last_time(self) -> int:
        """Returns the last training time that `lambda_min_clipped` keeps."""
        lambdas = -np.log(self._training.training_ratios())
        kept = int(np.sum(lambdas >= self.lambda_min_clipped))
        if kept == 0:
            raise ValueError(
                f"lambda_min_clipped={self.lambda_min_clipped} leaves no training times"
            )
        return kept - 1

    def _rounded_grids(self) -> tuple[str, ...]:
        """The grids whose times are rounded; those of others are rounded down, as in diffusers."""
        return ("use_karras_sigmas", "use_lu_lambdas")

    def grid_ends(self) -> tuple[float, float]:
        """Returns the lowest and highest sigma / alpha of Karras and exponential levels."""
        ratios = self._training.training_ratios()
        return float(ratios[0]), float(ratios[-1])

    def _respaced_levels(self, value, grid):
        """Levels between the same ends on another grid, and those of the end."""
        n = check_num_steps(value, self.num_train_timesteps, "num_train_timesteps")
        low, high = self.grid_ends()
        if not self.use_flow_sigmas:
            check_signal(self, [self.num_train_timesteps - 1])

        # Equal steps of lambda, or another grid between the same ends.
        places = jnp.asarray(ramp(n), jnp.float32)
        ratios = respaced(self, exponential_sigmas(places, low, high))
        level = self.parametrization.level(ratios)

        # The network is told whole times.
        rounds = grid in self._rounded_grids() and not self.use_flow_sigmas
        times = jnp.round(level.time) if rounds else cut_off(level.time)
        levels = Levels(times, level.alpha, level.sigma)

        # The last level is the lowest, unless there is one level only.
        lowest = ratios[-1:] if n > 1 else jnp.full(1, low, jnp.float32)
        end = self.parametrization.level(lowest)
        return self._ending(levels, end.alpha, end.sigma)

    def _flow_levels(self, name, value):
        """Shifted levels of flow matching, and those of the end."""
        alphas, sigmas = self.flow_path(*self.unshifted(name, value))
        alphas = jnp.maximum(alphas, _LEAST_ALPHA)
        sigmas = jnp.minimum(sigmas, 1 - _LEAST_ALPHA)
        end = sigmas[-1:]
        if not self._flow_ends_where_it_is:
            end = jnp.full(1, self.grid_ends()[0], jnp.float32)
        times = cut_off(sigmas * self.num_train_timesteps)
        return self._ending(Levels(times, alphas, sigmas), 1 - end, end)

    def unshifted(self, name: str, value: Any) -> tuple[Any, Any]:
        """Returns alpha and sigma of the flow levels before the shift, `[n]` each, descending."""
        if name != "num_inference_steps":
            scale = 1 if name == "sigmas" else self.num_train_timesteps
            sigmas = parse_levels(name, value, 1e-6 * scale, scale) / scale
            return 1 - sigmas, sigmas
        n = check_num_steps(value, self.num_train_timesteps, "num_train_timesteps")
        sigmas = self.flow_grid(n)
        return 1 - sigmas, sigmas

    def flow_grid(self, n: int) -> np.ndarray:
        """Returns n equally spaced flow levels before the shift, f64[n]: to 0, not included."""
        return (1 - 1 / self.num_train_timesteps) * (1 - ramp(n + 1)[:-1])

    def flow_path(self, alphas: Any, sigmas: Any) -> tuple[jax.Array, jax.Array]:
        """Returns alpha and sigma after the shift, f32[n] each."""
        # alpha is not 1 - sigma, which would be rounded where there is little signal.
        alphas = shifted(alphas, 1 / self.flow_shift)
        sigmas = shifted(sigmas, self.flow_shift)
        return jnp.asarray(alphas, jnp.float32), jnp.asarray(sigmas, jnp.float32)

    def _ending(self, levels, alpha, sigma):
        """The levels with that of the end: alpha and sigma f32[1], or without noise."""
        if self.final_sigmas_type == "zero":
            alpha = jnp.ones(1, jnp.float32)
            sigma = jnp.zeros(1, jnp.float32)
        alphas = jnp.append(levels.alphas, alpha)
        return Levels(levels.times, alphas, jnp.append(levels.sigmas, sigma))


def cut_off(times: jax.Array) -> jax.Array:
    """Returns times rounded down, as by diffusers; a rounding error below a number counts as it."""
    return jnp.floor(times * (1 + 3e-7))

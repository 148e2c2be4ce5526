"""UniPC: a predictor and a corrector with one network call a step (Zhao et al. 2023)."""

import dataclasses
from typing import Any

import jax
import numpy as np

from cmjax.schedulers.checks import check_sigma_order
from cmjax.schedulers.config_files import FileOption
from cmjax.schedulers.differences import (
    multistep_differences,
    multistep_orders,
    with_correction,
)
from cmjax.schedulers.exponential import steps_of, table_of
from cmjax.schedulers.field_docs import inherit_field_docs
from cmjax.schedulers.levels import Levels, ramp
from cmjax.schedulers.log_snr import LogSNRScheduler
from cmjax.schedulers.log_snr_levels import shifted_path
from cmjax.schedulers.weights import Weights


@inherit_field_docs
@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class UniPCMultistepScheduler(LogSNRScheduler):
    """UniPC (Zhao et al. 2023, arXiv 2302.04867, Algorithms 5 to 8).

    A step of order p predicts by the polynomial through p estimates, and is corrected by the one
    through the next call's estimate, too. The network is called at predicted samples only.

    The network's time input is a whole training time, 0..N-1. `set_timesteps` takes what
    `LogSNRScheduler.set_timesteps` takes.

    Attributes:
        lower_order_final: end with steps of lower order.
        predict_x0: integrate x0 rather than eps.
        solver_type: "bh1" or "bh2", the function B(h) of predictors of order 2 and correctors of
            order 1. Higher orders do not depend on it.
        disable_corrector: indices of steps that are not corrected.
        sigma_min: lowest sigma / alpha of Karras, exponential and beta levels; None for that of the
            training times.
        sigma_max: highest sigma / alpha of these three, likewise.
        shift_terminal: stretch the shifted flow levels so that this is the lowest, or None.
    """

    # The step.
    predict_x0: bool = True
    solver_type: str = "bh2"
    disable_corrector: tuple[int, ...] = ()

    # The levels of a run.
    sigma_min: float | None = None
    sigma_max: float | None = None
    shift_terminal: float | None = None

    facts = LogSNRScheduler.facts.replace(
        order="1 to 3, corrected 2 to 4", memory="1 to 3", paper="Zhao et al. 2023"
    )

    # Options that diffusers' class of this name does not have.
    _sibling_options = frozenset({"lambda_min_clipped", "use_lu_lambdas", "variance_type"})
    ends_at_last_flow_level = True
    _file_options = {"solver_p": FileOption(None, hint="leave it out: UniPC has its own")}
    # diffusers reads the names of DPM-Solver's and DEIS's solver types so.
    _others_values = {"solver_type": dict.fromkeys(("midpoint", "heun", "logrho"), "bh2")}
    _domains = {
        "solver_type": ("bh2", "bh1"),
        "disable_corrector": (0, 1_000_000),
        "sigma_min": (1e-18, 1e18),
        "sigma_max": (1e-18, 1e18),
        "shift_terminal": (1e-6, 0.999),
    }

    def __post_init__(self):
        super().__post_init__()
        if self.shift_terminal is not None and not self.use_flow_sigmas:
            raise ValueError(
                f"shift_terminal={self.shift_terminal} is for use_flow_sigmas=True"
            )
        if self.sigma_min or self.sigma_max:
            check_sigma_order(*self.grid_ends())

    def grid_ends(self) -> tuple[float, float]:
        """Returns the lowest and highest sigma / alpha of Karras, exponential and beta levels."""
        low, high = super().grid_ends()
        return self.sigma_min or low, self.sigma_max or high

    def flow_grid(self, n: int) -> np.ndarray:
        """Returns n equally spaced flow levels before the shift, f64[n], from 1 down."""
        return 1 - (1 - 1 / self.num_train_timesteps) * ramp(n + 1)[:-1]

    def shifted_path(self, alphas: Any, sigmas: Any) -> tuple[jax.Array, jax.Array]:
        """Returns alpha and sigma after the shift, stretched if so configured, f32[n] each."""
        return shifted_path(alphas, sigmas, self.flow_shift, self.shift_terminal)

    def weights(self, levels: Levels) -> Weights:
        """Returns the table of the predictor, with the correction of the step before."""
        steps = steps_of(levels, by_x0=self.predict_x0)

        # Steps with one other value take B(h) / 2 for the integral of u.
        half = steps.moments[0] / 2
        if self.solver_type == "bh1":
            half = steps.h * (steps.x0 if self.predict_x0 else -steps.eps) / 2

        # The predictor: the polynomial through this and earlier values.
        n = len(levels.times)
        highest = self.solver_order
        orders = multistep_orders(highest, n, lower_order_final=self.lower_order_final)
        predicted = multistep_differences(steps, orders, highest, half)

        # The corrector: the same with one value more, at the step's end.
        index = np.arange(n)
        is_corrected = (index + 1 < n) & ~np.isin(index, self.disable_corrector)
        if not is_corrected.any():
            return table_of(steps, predicted)
        corrected = multistep_differences(steps, orders, highest, half, implicit=True)
        differences = with_correction(steps, predicted, corrected, is_corrected)
        return table_of(steps, differences)

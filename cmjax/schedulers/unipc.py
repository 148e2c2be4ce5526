"""UniPC: a predictor and a corrector with one network call a step (Zhao et al. 2023)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cmjax.schedulers.config_files import FileOption
from cmjax.schedulers.exponential import (
    chosen_by_order,
    earlier_nodes,
    steps_of,
    table_of,
)
from cmjax.schedulers.flow import stretched
from cmjax.schedulers.levels import Levels, ramp
from cmjax.schedulers.log_snr import LogSNRScheduler
from cmjax.schedulers.weights import Weights


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class UniPCMultistepScheduler(LogSNRScheduler):
    """UniPC (Zhao et al. 2023, arXiv 2302.04867, Algorithms 5 to 8).

    A step of order p predicts by the polynomial through p estimates. The next call's estimate then
    corrects the step: its polynomial passes through that one, too. The network is called at the
    predicted sample only; its correction is part of the next row of the table.

    The network is told a whole training time, 0..N-1. `set_timesteps` takes what that of
    `LogSNRScheduler` takes.

    Attributes:
        num_train_timesteps: number N of training times.
        beta_start: the first beta.
        beta_end: the last beta.
        beta_schedule: "linear", "scaled_linear", "squaredcos_cap_v2" or "exp".
        trained_betas: betas that replace the schedule, or None.
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
        thresholding: scale x0 estimates that leave [-1, 1] (Saharia et al. 2022, section 2.3).
        dynamic_thresholding_ratio: which quantile of |x0| is scaled to 1, if it is above 1.
        sample_max_value: the largest number that a sample is divided by.
        variance_type: "learned" or "learned_range" for networks whose output has the variance,
            which is not used, in a second half of the channels (the last axis); or None.
        solver_order: order p of the solver, 1 to 3.
        lower_order_final: end with steps of lower order.
        predict_x0: integrate x0 rather than eps.
        solver_type: "bh1" or "bh2", the function B(h) of predictors of order 2 and correctors of
            order 1. Higher orders do not depend on it.
        disable_corrector: indices of steps that are not corrected.
        sigma_min: lowest sigma / alpha of Karras, exponential and beta levels; None for that of the
            training times.
        sigma_max: highest one, likewise.
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
        order="1 to 3, and 1 more by the corrector",
        memory="1 to 3",
        paper="Zhao et al. 2023",
    )

    # Options that diffusers' class of this name does not have.
    _sibling_options = frozenset({"lambda_min_clipped", "use_lu_lambdas", "variance_type"})

    flow_ends_where_it_is = True
    _file_options = {
        "solver_p": FileOption(None, hint="predictors of other classes are not supported"),
    }
    # As diffusers reads the names of DPM-Solver and DEIS.
    _others_values = {
        "solver_type": {"midpoint": "bh2", "heun": "bh2", "logrho": "bh2"},
    }
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
        low, high = self.grid_ends()
        if low >= high and self.num_train_timesteps > 1:
            raise ValueError(f"sigma_min {low:g} must be below sigma_max {high:g}")

    def grid_ends(self) -> tuple[float, float]:
        """Returns the lowest and highest sigma / alpha of Karras and exponential levels."""
        low, high = super().grid_ends()
        if self.sigma_min is not None:
            low = self.sigma_min
        if self.sigma_max is not None:
            high = self.sigma_max
        return low, high

    def flow_grid(self, n: int) -> np.ndarray:
        """Returns n equally spaced flow levels before the shift, f64[n], from 1 down."""
        return 1 - (1 - 1 / self.num_train_timesteps) * ramp(n + 1)[:-1]

    def flow_path(self, alphas: Any, sigmas: Any) -> tuple[jax.Array, jax.Array]:
        """Returns alpha and sigma after the shift, stretched if so configured, f32[n] each."""
        alphas, sigmas = super().flow_path(alphas, sigmas)
        if self.shift_terminal is not None:
            sigmas = stretched(sigmas, self.shift_terminal)
            alphas = alphas * (1 - sigmas[-1]) / jnp.where(alphas[-1] > 0, alphas[-1], 1)
        return alphas, sigmas

    def weights(self, levels: Levels) -> Weights:
        """Returns the table of the predictor, with the correction of the step before."""
        n = len(levels.times)
        index = np.arange(n)
        steps = steps_of(levels, by_x0=self.predict_x0)

        # B(h) / 2 replaces the integral of u where a step has one other value only.
        half = steps.moments[0] / 2
        if self.solver_type == "bh1":
            signed = steps.x0 * steps.h if self.predict_x0 else -steps.eps * steps.h
            half = signed / 2

        # The predictor, with weights of differences to earlier values.
        orders = np.minimum(index + 1, self.solver_order)
        if self.lower_order_final:
            orders = np.minimum(orders, n - index)
        nodes, usable = earlier_nodes(steps.h, steps.moving, self.solver_order - 1)
        order = jnp.minimum(orders, usable + 1)
        predicted = chosen_by_order(nodes, steps.moments, half, order)

        # The corrector has one value more, at the step's end.
        is_corrected = (index + 1 < n) & ~np.isin(index, self.disable_corrector)
        if not is_corrected.any():
            return table_of(steps, predicted)
        order = jnp.where(is_corrected & steps.moving, order + 1, 1)
        nodes = [jnp.ones_like(steps.h), *nodes]
        arrived, *corrected = chosen_by_order(nodes, steps.moments, half, order)

        # What the correction changes, in the weights of the values of the corrected step's start,
        # of the one before, and so on. The next step scales it with the sample.
        changes = [
            jnp.where(order > 1, new - old, 0)
            for new, old in zip(corrected, predicted, strict=True)
        ]
        changes = [-arrived - sum(changes), *changes]
        differences = [*predicted, jnp.zeros_like(steps.h)]
        for i, change in enumerate(changes):
            before = jnp.append(jnp.zeros(1, change.dtype), change[:-1])
            differences[i] = differences[i] + steps.kept * before
        return table_of(steps, differences)

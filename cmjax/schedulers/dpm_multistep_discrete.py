"""DPM-Solver and DPM-Solver++, multistep, for models with training times (Lu et al. 2022)."""

import dataclasses

import jax

from cmjax.schedulers.diffusers_names import DPM_NAMES
from cmjax.schedulers.dpm_multistep import dpm_multistep_weights
from cmjax.schedulers.field_docs import inherit_field_docs
from cmjax.schedulers.levels import Levels
from cmjax.schedulers.log_snr import LogSNRScheduler
from cmjax.schedulers.weights import Weights


@inherit_field_docs
@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class DPMSolverMultistepScheduler(LogSNRScheduler):
    """DPM-Solver++ multistep for models with training times (Lu et al. 2022, Algorithm 2).

    Higher orders come from the estimates of the steps before. At order 3, diffusers takes half of
    the second derivative that it means to: its steps are of second order, and these of third.

    The network's time input is a whole training time, 0..N-1. `set_timesteps` takes what
    `LogSNRScheduler.set_timesteps` takes.

    Attributes:
        algorithm_type: "dpmsolver++" integrates x0, "dpmsolver" eps; "sde-dpmsolver++" and
            "sde-dpmsolver" have fresh noise at every step but the last.
        solver_type: "midpoint" or "heun" form of the second order.
        euler_at_final: end with a first-order step in all runs.
    """

    # The form of the step.
    algorithm_type: str = "dpmsolver++"
    solver_type: str = "midpoint"
    euler_at_final: bool = False

    facts = LogSNRScheduler.facts.replace(
        order="1 to 3",
        memory="0 to 2",
        noise="`algorithm_type`",
        paper="Lu et al. 2022 (++)",
    )
    _domains = {
        "algorithm_type": ("dpmsolver++", "dpmsolver", "sde-dpmsolver++", "sde-dpmsolver"),
        "solver_type": ("midpoint", "heun"),
    }
    _others_values = DPM_NAMES

    def rounded_grids(self) -> tuple[str, ...]:
        """Returns the grids whose times are rounded."""
        # diffusers' class does not round for the cosine schedule; its other solvers do.
        if self.beta_schedule == "squaredcos_cap_v2":
            return ()
        return super().rounded_grids()

    def weights(self, levels: Levels) -> Weights:
        """Returns the table of DPM-Solver or DPM-Solver++."""
        return dpm_multistep_weights(self, levels)

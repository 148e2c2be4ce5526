"""DPM-Solver and DPM-Solver++, multistep: one network call a step (Lu et al. 2022).

arXiv 2206.00927 (by eps) and 2211.01095 (by x0), Algorithm 2.
"""

import dataclasses
from typing import Any

import jax

from cmjax.schedulers.bounds import Thresholded
from cmjax.schedulers.differences import FEW_STEPS, multistep_differences, multistep_orders
from cmjax.schedulers.diffusers_names import DPM_NAMES
from cmjax.schedulers.edm import EDMScheduler
from cmjax.schedulers.exponential import steps_of, table_of
from cmjax.schedulers.field_docs import inherit_field_docs
from cmjax.schedulers.levels import Levels
from cmjax.schedulers.weights import Weights


def dpm_multistep_weights(scheduler: Any, levels: Levels) -> Weights:
    """Returns the table of DPM-Solver (by eps) or DPM-Solver++ (by x0), as ODE or SDE solver.

    Args:
        scheduler: with the fields of `EDMDPMSolverMultistepScheduler`.
        levels: of the steps.
    """
    # The integrals of each step, of x0 (DPM-Solver++) or eps (DPM-Solver).
    by_x0 = scheduler.algorithm_type.endswith("dpmsolver++")
    stochastic = scheduler.algorithm_type.startswith("sde-")
    steps = steps_of(levels, by_x0=by_x0, stochastic=stochastic)

    # A last step to sigma = 0 is infinitely long in lambda: it is of first order.
    n = len(levels.times)
    orders = multistep_orders(
        scheduler.solver_order,
        n,
        lower_order_final=scheduler.lower_order_final and n < FEW_STEPS,
        euler_at_final=scheduler.euler_at_final or scheduler.final_sigmas_type == "zero",
    )

    # The two forms of the second order differ in what they take for the integral of u: "heun" the
    # integral itself, "midpoint" half of that of 1.
    half = steps.moments[1]
    if scheduler.solver_type == "midpoint":
        half = steps.moments[0] / 2
    differences = multistep_differences(steps, orders, scheduler.solver_order, half)
    return table_of(steps, differences)


@inherit_field_docs
@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class EDMDPMSolverMultistepScheduler(Thresholded, EDMScheduler):
    """DPM-Solver++ on EDM noise levels (Lu et al. 2022, Algorithm 2).

    Higher orders come from the x0 estimates of the steps before. A last step to sigma = 0 always
    is of first order. At order 3, diffusers takes half of the second derivative that it means to:
    its steps are of second order, and these of third.

    The network's time input is `log(sigma) / 4`. `set_timesteps` takes what
    `EDMScheduler.set_timesteps` takes.

    Attributes:
        solver_order: order of the solver, 1 to 3.
        algorithm_type: "dpmsolver++", or "sde-dpmsolver++" with fresh noise at every step but the
            last.
        solver_type: "midpoint" or "heun" form of the second order.
        lower_order_final: end with steps of second and first order in runs of fewer than 15 steps.
        euler_at_final: end with a first-order step in all runs.
    """

    solver_order: int = 2

    # Bounds of the x0 estimate.
    thresholding: bool = False
    dynamic_thresholding_ratio: float = 0.995
    sample_max_value: float = 1.0

    # The form of the step, and which steps are of first order.
    algorithm_type: str = "dpmsolver++"
    solver_type: str = "midpoint"
    lower_order_final: bool = True
    euler_at_final: bool = False

    facts = EDMScheduler.facts.replace(
        order="1 to 3",
        memory="0 to 2",
        noise="`algorithm_type`",
        paper="Lu et al. 2022 (++)",
    )
    _domains = {
        "solver_order": (1, 3),
        "dynamic_thresholding_ratio": (0.0, 1.0),
        "sample_max_value": (1.0, 1e6),
        "algorithm_type": ("dpmsolver++", "sde-dpmsolver++"),
        "solver_type": ("midpoint", "heun"),
    }
    _others_values = DPM_NAMES

    def weights(self, levels: Levels) -> Weights:
        """Returns the table of DPM-Solver++."""
        return dpm_multistep_weights(self, levels)

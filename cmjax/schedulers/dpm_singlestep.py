"""DPM-Solver and DPM-Solver++, singlestep: steps of two or three calls (Lu et al. 2022)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from cmjax.schedulers.differences import before, singlestep_differences
from cmjax.schedulers.diffusers_names import DPM_NAMES
from cmjax.schedulers.exponential import steps_from, steps_of
from cmjax.schedulers.field_docs import inherit_field_docs
from cmjax.schedulers.levels import Levels
from cmjax.schedulers.log_snr import LogSNRScheduler
from cmjax.schedulers.weights import Weights


@inherit_field_docs
@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class DPMSolverSinglestepScheduler(LogSNRScheduler):
    """DPM-Solver++ singlestep for models with training times (Lu et al. 2022, Algorithm 1).

    A step of order p takes p calls, each at the next level of the run: the first goes there by a
    step of first order, the second starts again from the step's sample with second order, and the
    third with third order. `num_inference_steps` counts calls.

    The network's time input is a whole training time, 0..N-1. `set_timesteps` takes what
    `LogSNRScheduler.set_timesteps` takes.

    Attributes:
        lower_order_final: end with steps of lower order. Runs that end at "zero", or whose calls
            `solver_order` does not divide, do so in any case.
        algorithm_type: "dpmsolver++" integrates x0, "dpmsolver" eps; "sde-dpmsolver++" has fresh
            noise at every call but the last.
        solver_type: "midpoint" or "heun" form of steps of two and three calls.
    """

    lower_order_final: bool = False

    # The form of the step.
    algorithm_type: str = "dpmsolver++"
    solver_type: str = "midpoint"

    facts = LogSNRScheduler.facts.replace(
        order="1 to 3",
        calls="1 to 3",
        memory="0 to 3",
        noise="`algorithm_type`",
        paper="Lu et al. 2022 (++)",
    )

    # Options that diffusers' class of this name does not have.
    _sibling_options = frozenset(
        {"rescale_betas_zero_snr", "steps_offset", "timestep_spacing", "use_lu_lambdas"}
    )

    _domains = {
        "algorithm_type": ("dpmsolver++", "dpmsolver", "sde-dpmsolver++"),
        "solver_type": ("midpoint", "heun"),
    }
    _others_values = DPM_NAMES

    def _orders(self, n: int) -> np.ndarray:
        """The order of the step of each call, i64[n]: 1, 2, 3, 1, 2, 3, ..."""
        orders = np.arange(n) % self.solver_order + 1
        # The last call has first order if its step ends at sigma = 0, or if that is asked for.
        splits_last = self.lower_order_final and n % self.solver_order == 0
        if self.final_sigmas_type == "zero" or splits_last:
            orders[-1] = 1
        return orders

    def weights(self, levels: Levels) -> Weights:
        """Returns the table, a row for each call.

        A call goes from the sample x_s of its step's start to `kept x_s` plus weighted estimates.
        The call before went from x_s to this call's x, and so gives x_s by x.
        """
        by_x0 = self.algorithm_type.endswith("dpmsolver++")
        stochastic = self.algorithm_type.startswith("sde-")
        orders = self._orders(len(levels.times))
        alpha = levels.alphas[:-1]
        sigma = levels.sigmas[:-1]

        # From each call's level to the next, and from the level of its step's start.
        first_order = steps_of(levels, by_x0=by_x0, stochastic=stochastic)
        starts = np.arange(len(orders)) - (orders - 1)
        start_levels = (alpha[starts], sigma[starts])
        steps = steps_from(start_levels, levels, by_x0=by_x0, stochastic=stochastic)
        midpoint = self.solver_type == "midpoint"
        by_last, by_this = singlestep_differences(
            first_order, steps, orders, midpoint=midpoint
        )

        # x' = kept x_s + w_s m_s + by_last (m_last - m_s) + by_this (m - m_s), with x_s by x.
        kept = steps.kept / jnp.where(orders > 1, before(steps.kept, 1), 1)
        of_start = steps.moments[0] - kept * before(steps.moments[0], 1)
        by_last = by_last - kept * before(by_this, 1)
        of_start = of_start - by_last - by_this

        # Calls of first order have their row as in all solvers of this kind.
        is_later = orders > 1
        x0 = jnp.where(is_later, kept * alpha, first_order.x0)
        eps = jnp.where(is_later, kept * sigma, first_order.eps)
        if by_x0:
            x0 = x0 + by_this
        else:
            eps = eps + by_this

        # The estimates of the one and two calls before; the first of the step is the earliest.
        one_before = jnp.where(orders == 2, of_start, by_last)
        two_before = jnp.where(orders == 3, of_start, 0)
        earlier = (jnp.where(is_later, one_before, 0), two_before)[: self.solver_order - 1]

        # x_s is x without the noise that the call before added: so that noise is taken out.
        last_noise = None
        if steps.noise is not None and self.solver_order > 1:
            last_noise = jnp.where(is_later, -kept * before(steps.noise, 1), 0)
        memory = {"earlier_x0": earlier} if by_x0 else {"earlier_eps": earlier}
        return Weights(x0, eps, steps.noise, last_noise=last_noise, **memory)

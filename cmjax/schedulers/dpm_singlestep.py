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
        """Returns the table, a row for each call."""
        by_x0 = self.algorithm_type.endswith("dpmsolver++")
        stochastic = self.algorithm_type.startswith("sde-")
        orders = self._orders(len(levels.times))
        alpha, sigma = levels.starts

        # From each call's level to the next one, and there from the level of its step's start.
        first_order = steps_of(levels, by_x0=by_x0, stochastic=stochastic)
        starts = np.arange(len(orders)) - (orders - 1)
        start_levels = (alpha[starts], sigma[starts])
        steps = steps_from(start_levels, levels, by_x0=by_x0, stochastic=stochastic)
        midpoint = self.solver_type == "midpoint"
        w_last, w_this = singlestep_differences(
            first_order, steps, orders, midpoint=midpoint
        )

        # Every call of a step goes from the sample x_s of the step's start, where the value that is
        # integrated (x0 or eps) is m_s. With m_last and m, the values of the last call and of this
        # one, it arrives at
        #     x' = K x_s + M m_s + w_last (m_last - m_s) + w_this (m - m_s).
        # x_s is not kept. But the call before went from it to this call's sample,
        #     x = K_b x_s + M_b m_s + v (m_last - m_s),
        # where v is the w_this of that call, 0 for the first one. So with k = K / K_b
        #     x' = k x + (M - k M_b) m_s + (w_last - k v) (m_last - m_s) + w_this (m - m_s).
        is_later = orders > 1
        kept = steps.kept / jnp.where(is_later, before(steps.kept, 1), 1)
        of_last = w_last - kept * before(w_this, 1)
        of_start = steps.moments[0] - kept * before(steps.moments[0], 1)
        of_start = of_start - of_last - w_this

        # With k x = k alpha x0 + k sigma eps. A call of first order has the row of a first-order
        # step.
        x0 = jnp.where(is_later, kept * alpha, first_order.x0)
        eps = jnp.where(is_later, kept * sigma, first_order.eps)
        if by_x0:
            x0 = x0 + w_this
        else:
            eps = eps + w_this

        # The estimates of the one and two calls before; the first of the step is the earliest.
        one_before = jnp.where(orders == 2, of_start, of_last)
        two_before = jnp.where(orders == 3, of_start, 0)
        earlier = (jnp.where(is_later, one_before, 0), two_before)[: self.solver_order - 1]

        # x_s is x without the noise that the call before added: so that noise is taken out.
        last_noise = None
        if steps.noise is not None and self.solver_order > 1:
            last_noise = jnp.where(is_later, -kept * before(steps.noise, 1), 0)
        memory = {"earlier_x0": earlier} if by_x0 else {"earlier_eps": earlier}
        return Weights(x0, eps, steps.noise, last_noise=last_noise, **memory)

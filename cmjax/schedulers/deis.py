"""DEIS, multistep, with polynomials in log(sigma / alpha) (Zhang and Chen 2022)."""

import dataclasses

import jax

from cmjax.schedulers.config_files import FileOption
from cmjax.schedulers.differences import FEW_STEPS, multistep_differences, multistep_orders
from cmjax.schedulers.exponential import steps_of, table_of
from cmjax.schedulers.field_docs import inherit_field_docs
from cmjax.schedulers.levels import Levels
from cmjax.schedulers.log_snr import LogSNRScheduler
from cmjax.schedulers.weights import Weights


@inherit_field_docs
@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class DEISMultistepScheduler(LogSNRScheduler):
    """Diffusion exponential integrator (Zhang and Chen 2022, arXiv 2204.13902, "log-rho").

    Each step integrates the polynomial through this and earlier eps exactly (equation 15).

    The network's time input is a whole training time, 0..N-1. `set_timesteps` takes what
    `LogSNRScheduler.set_timesteps` takes.

    On flow levels runs end, by default and as in diffusers, at the last level that the network is
    called at, and samples keep its noise. `final_sigmas_type="zero"` takes it away.
    """

    final_sigmas_type: str = "sigma_min"

    facts = LogSNRScheduler.facts.replace(
        order="1 to 3", memory="0 to 2", paper="Zhang and Chen 2022"
    )

    # Options that diffusers' class of this name does not have.
    _sibling_options = frozenset(
        {
            "final_sigmas_type",
            "lambda_min_clipped",
            "rescale_betas_zero_snr",
            "use_lu_lambdas",
            "variance_type",
        }
    )

    ends_at_last_flow_level = True

    # diffusers has one algorithm, and reads the names of other solvers' algorithms as that one.
    _file_options = {
        "algorithm_type": FileOption("deis", values=("dpmsolver", "dpmsolver++")),
        "solver_type": FileOption("logrho", values=("midpoint", "heun", "bh1", "bh2")),
    }

    def weights(self, levels: Levels) -> Weights:
        """Returns the table of equation 15."""
        n = len(levels.times)
        steps = steps_of(levels, by_x0=False)

        # A last step to sigma = 0 is infinitely long in lambda: it is of first order.
        orders = multistep_orders(
            self.solver_order,
            n,
            lower_order_final=self.lower_order_final and n < FEW_STEPS,
            euler_at_final=self.final_sigmas_type == "zero",
        )

        # The polynomial through this call's eps and those before it, integrated exactly.
        differences = multistep_differences(
            steps, orders, self.solver_order, half=steps.moments[1]
        )
        return table_of(steps, differences)

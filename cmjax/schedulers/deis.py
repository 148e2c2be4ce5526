"""DEIS, multistep, with polynomials in log(sigma / alpha) (Zhang and Chen 2022)."""

import dataclasses

import jax

from cmjax.schedulers.config_files import FileOption
from cmjax.schedulers.exponential import (
    final_orders,
    multistep_differences,
    steps_of,
    table_of,
)
from cmjax.schedulers.levels import Levels
from cmjax.schedulers.log_snr import LogSNRScheduler
from cmjax.schedulers.weights import Weights


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class DEISMultistepScheduler(LogSNRScheduler):
    """Diffusion exponential integrator (Zhang and Chen 2022, arXiv 2204.13902, "log-rho").

    Each step integrates the polynomial through this and earlier eps exactly (equation 15).

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
        solver_order: order of the solver, 1 to 3.
        lower_order_final: end with steps of second and first order in runs of fewer than 15 steps.
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

    flow_ends_where_it_is = True

    # diffusers has one algorithm, and takes the names of other solvers' for it.
    _file_options = {
        "algorithm_type": FileOption("deis", values=("dpmsolver", "dpmsolver++")),
        "solver_type": FileOption("logrho", values=("midpoint", "heun", "bh1", "bh2")),
    }

    def weights(self, levels: Levels) -> Weights:
        """Returns the table of equation 15."""
        steps = steps_of(levels, by_x0=False)
        orders = final_orders(
            self.solver_order,
            len(levels.times),
            lower=self.lower_order_final,
            first=self.final_sigmas_type == "zero",
        )
        return table_of(steps, multistep_differences(steps, orders, self.solver_order))

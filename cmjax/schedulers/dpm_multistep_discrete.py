"""DPM-Solver and DPM-Solver++, multistep, for models with training times; and their inverse."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cmjax.schedulers.config_files import DPM_NAMES
from cmjax.schedulers.dpm_multistep import dpm_multistep_weights
from cmjax.schedulers.grids import grid_option
from cmjax.schedulers.levels import Levels
from cmjax.schedulers.log_snr import LogSNRScheduler
from cmjax.schedulers.log_snr_levels import last_time, training_levels
from cmjax.schedulers.weights import Weights


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class DPMSolverMultistepScheduler(LogSNRScheduler):
    """DPM-Solver++ multistep for models with training times (Lu et al. 2022, Algorithm 2).

    Higher orders come from the estimates of the steps before. At order 3, diffusers takes half of
    the second derivative that it means to: its steps are of second order, and these of third.

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
        # As in diffusers, whose other solvers round for the cosine schedule too.
        return () if self.beta_schedule == "squaredcos_cap_v2" else super().rounded_grids()

    def weights(self, levels: Levels) -> Weights:
        """Returns the table of DPM-Solver or DPM-Solver++."""
        return dpm_multistep_weights(self, levels)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class DPMSolverMultistepInverseScheduler(LogSNRScheduler):
    """DPM-Solver++ multistep from data to noise: the same ODE, with levels that rise.

    Give the data as `init` of `cmjax.sample`. The run ends at the noisiest training time.

    The network is told a whole training time, 0..N-1. `set_timesteps` takes what that of
    `LogSNRScheduler` takes; explicit times are listed in descending order all the same. Flow levels
    rise too, where those of diffusers fall.

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
        algorithm_type: "dpmsolver++" integrates x0, "dpmsolver" eps.
        solver_type: "midpoint" or "heun" form of the second order.
        euler_at_final: end with a first-order step in all runs.
    """

    final_sigmas_type: str = "sigma_min"

    # The form of the step.
    algorithm_type: str = "dpmsolver++"
    solver_type: str = "midpoint"
    euler_at_final: bool = False

    facts = LogSNRScheduler.facts.replace(
        levels="training times, or flow levels, upwards",
        order="1 to 3",
        memory="0 to 2",
        paper="Lu et al. 2022 (++)",
    )

    # Options that diffusers' class of this name does not have.
    _sibling_options = frozenset(
        {"final_sigmas_type", "rescale_betas_zero_snr", "use_lu_lambdas"}
    )

    # An SDE runs from noise to data only: diffusers' table has roots of negative numbers.
    _domains = {
        "final_sigmas_type": ("sigma_min",),
        "algorithm_type": ("dpmsolver++", "dpmsolver"),
        "solver_type": ("midpoint", "heun"),
    }
    _others_values = {**DPM_NAMES, "final_sigmas_type": {"zero": "sigma_min"}}

    def spaced_times(self, n: int) -> np.ndarray:
        """Returns whole training times from 0 up to an end that is not called, listed down."""
        last = last_time(self)
        if self.timestep_spacing == "linspace":
            return np.linspace(0, last, n + 1).round()[-2::-1]
        if self.timestep_spacing == "leading":
            return super().spaced_times(n) - (last + 1) // (n + 1)  # one stride lower
        return super().spaced_times(n)

    def levels(self, name: str, value: Any) -> Levels:
        """Returns the levels of the steps from the lowest up, and of the end."""
        down = super().levels(name, value)
        alphas = down.alphas[-2::-1]
        sigmas = down.sigmas[-2::-1]

        # The end: the last training time, or, of other levels, the highest of them.
        end = Levels(down.times, alphas[-1:], sigmas[-1:])
        if not (self.use_flow_sigmas or self.use_lu_lambdas or grid_option(self)):
            end = training_levels(self, jnp.full(1, last_time(self), jnp.float32))
        alphas = jnp.append(alphas, end.alphas)
        return Levels(down.times[::-1], alphas, jnp.append(sigmas, end.sigmas))

    def weights(self, levels: Levels) -> Weights:
        """Returns the table of DPM-Solver or DPM-Solver++."""
        return dpm_multistep_weights(self, levels)

"""DPM-Solver and DPM-Solver++, multistep, from data to noise (Lu et al. 2022)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cmjax.schedulers.diffusers_names import DPM_NAMES
from cmjax.schedulers.dpm_multistep import dpm_multistep_weights
from cmjax.schedulers.field_docs import inherit_field_docs
from cmjax.schedulers.grids import grid_option
from cmjax.schedulers.levels import Levels
from cmjax.schedulers.log_snr import LogSNRScheduler
from cmjax.schedulers.log_snr_levels import last_time, level_of_times
from cmjax.schedulers.weights import Weights


@inherit_field_docs
@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class DPMSolverMultistepInverseScheduler(LogSNRScheduler):
    """DPM-Solver++ multistep from data to noise: the same ODE, with levels that rise.

    Give the data as `init` of `cmjax.sample`. The run ends at the noisiest training time.

    The network's time input is a whole training time, 0..N-1. `set_timesteps` takes what
    `LogSNRScheduler.set_timesteps` takes; explicit times are listed in descending order all the
    same. Flow levels rise too, where those of diffusers fall.

    Attributes:
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

        # "leading" times are one stride lower than those of a run downwards.
        if self.timestep_spacing == "leading":
            stride = (last + 1) // (n + 1)
            return super().spaced_times(n) - stride
        return super().spaced_times(n)

    def levels(self, name: str, value: Any) -> Levels:
        """Returns the levels of the steps from the lowest up, and of the end."""
        # The levels where steps start, upwards: those of a run downwards without its end.
        down = super().levels(name, value)
        times = down.times[::-1]
        alphas = down.alphas[:-1][::-1]
        sigmas = down.sigmas[:-1][::-1]

        # The end: the last training time, or, for levels of a grid or a flow, the highest of them.
        end_alpha = alphas[-1:]
        end_sigma = sigmas[-1:]
        if not (self.use_flow_sigmas or self.use_lu_lambdas or grid_option(self)):
            last = jnp.full(1, last_time(self), jnp.float32)
            _, end_alpha, end_sigma = level_of_times(self, last)
        return Levels(times, jnp.append(alphas, end_alpha), jnp.append(sigmas, end_sigma))

    def weights(self, levels: Levels) -> Weights:
        """Returns the table of DPM-Solver or DPM-Solver++."""
        return dpm_multistep_weights(self, levels)

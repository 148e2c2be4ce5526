"""Shared base of solvers in the half log-SNR `log(alpha / sigma)`, for models with training times.

They run on samples of variance 1, or, with `use_flow_sigmas`, on the straight path of flow
matching.
"""

import dataclasses

import jax

from cmjax.schedulers.base import FileOption
from cmjax.schedulers.bounds import BOUND_DOMAINS, dynamic_threshold
from cmjax.schedulers.log_snr_levels import LogSNRLevels
from cmjax.schedulers.table import TableState


@dataclasses.dataclass(frozen=True)
class LogSNRScheduler(LogSNRLevels):
    """A solver in the half log-SNR `lambda = log(alpha / sigma)`, for models with training times.

    The network is told a training time, 0..N-1; where a level lies between two, a whole number near
    it, as in diffusers. `set_timesteps` takes as `num_inference_steps` a number of steps, or as
    `timesteps` whole training times. With `use_flow_sigmas` the network is told N times the level,
    rounded down, and `set_timesteps` takes levels before the shift: as `sigmas` in (0, 1], or N
    times these as `timesteps`.

    Attributes:
        num_train_timesteps: number N of training times.
        beta_start: the first beta.
        beta_end: the last beta.
        beta_schedule: "linear", "scaled_linear", "squaredcos_cap_v2" or "exp".
        trained_betas: betas that replace the schedule, or None.
        prediction_type: what the network returns: "epsilon", "sample", "v_prediction", or, with
            `use_flow_sigmas`, "flow_prediction" (z - x0).
        rescale_betas_zero_snr: make the last time all but pure noise (Lin et al. 2023).
        timestep_spacing: "linspace" (from the last time down to the end, which is not called),
            "leading" (integer stride) or "trailing".
        steps_offset: added to "leading" times.
        lambda_min_clipped: leave out training times whose log(alpha / sigma) is lower.
        final_sigmas_type: sampling ends at "zero" or, as "sigma_min", at the lowest level.
        use_karras_sigmas: levels of Karras et al. 2022, equation 5, over all training times.
        use_exponential_sigmas: levels in equal steps of log sigma, over all training times.
        use_beta_sigmas: levels at quantiles of a beta distribution, over all training times.
        use_lu_lambdas: as use_exponential_sigmas, and the network's times are rounded, not cut off.
        use_flow_sigmas: follow the straight path `(1 - sigma) x0 + sigma z` of flow matching.
        flow_shift: how far flow levels are moved towards noise (Esser et al. 2024, equation 23).
        thresholding: scale x0 estimates that leave [-1, 1] (Saharia et al. 2022, section 2.3).
        dynamic_thresholding_ratio: which quantile of a sample's |x0| is scaled to 1, if it is
            above 1.
        sample_max_value: the largest number that a sample is divided by.
        variance_type: "learned" or "learned_range" for a network whose output has twice the
            sample's channels, the last axis; the second half is not used. None for others.
        solver_order: highest order of a step.
        lower_order_final: end with steps of lower order.

    Raises:
        ValueError: for values outside their domain, or that exclude each other.
    """

    # The x0 estimate.
    thresholding: bool = False
    dynamic_thresholding_ratio: float = 0.995
    sample_max_value: float = 1.0
    variance_type: str | None = None

    # The order of steps.
    solver_order: int = 2
    lower_order_final: bool = True

    solves_ode = True

    _domains = {
        **BOUND_DOMAINS,
        "variance_type": ("learned", "learned_range"),
        "solver_order": (1, 3),
    }
    _file_options = {
        "use_dynamic_shifting": FileOption(False, hint="set flow_shift=exp(mu)"),
        "time_shift_type": FileOption("exponential", values=("linear",)),
    }

    def bound(self, denoised: jax.Array) -> jax.Array:
        """Returns the x0 estimate, thresholded if so configured."""
        if not self.thresholding:
            return denoised
        ratio = self.dynamic_thresholding_ratio
        return dynamic_threshold(denoised, ratio, self.sample_max_value)

    def estimate(
        self, state: TableState, model_output: jax.Array, sample: jax.Array
    ) -> jax.Array:
        """Returns the x0 estimate before it is bounded, without the network's variance."""
        if self.variance_type is not None:
            channels = sample.shape[-1]
            if model_output.shape[-1] != 2 * channels:
                raise ValueError(
                    f"variance_type={self.variance_type!r} needs a model output of twice the "
                    f"sample's {channels} channels, got shape {model_output.shape}; "
                    "variance_type=None is for networks that do not predict the variance"
                )
            model_output = model_output[..., :channels]
        return super().estimate(state, model_output, sample)

"""Trajectory consistency sampling (Zheng et al. 2024, arXiv 2402.19159)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cmjax.configs import is_finite, shown
from cmjax.schedulers.bounds import bounded
from cmjax.schedulers.config_files import FileOption
from cmjax.schedulers.discrete import DiscreteScheduler, noise_between, with_signal
from cmjax.schedulers.lcm import (
    DISTILLED_DOMAINS,
    DISTILLED_FILE_OPTIONS,
    check_original_steps,
    check_strength,
    distilled_times,
    starting_lower,
)
from cmjax.schedulers.levels import Levels, append_zero
from cmjax.schedulers.table import TableState
from cmjax.schedulers.weights import Weights


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class TCDScheduler(DiscreteScheduler):
    """Strategic stochastic sampling of trajectory consistency models.

    Each step goes along the trajectory to a time s below the next one, `s = floor((1 - eta) t')`,
    then adds fresh noise to reach t' (Zheng et al. 2024, Algorithm 4). Sampling ends at training
    time 0. Three things differ from diffusers: there eta is an argument of `step`, `denoised` is
    the sample at s instead of the x0 estimate, and the options that bound x0 have no effect.

    The network is told a training time, 0..N-1. `set_timesteps` takes as `num_inference_steps` a
    number of times from the grid of `original_inference_steps`, or as `timesteps` whole training
    times; its additional argument `strength` starts lower on that grid.

    Attributes:
        num_train_timesteps: number N of training times.
        beta_start: the first beta.
        beta_end: the last beta.
        beta_schedule: "linear", "scaled_linear", "squaredcos_cap_v2" or "exp".
        trained_betas: betas that replace the schedule, or None.
        prediction_type: what the network returns: "epsilon", "sample" or "v_prediction".
        rescale_betas_zero_snr: make the last time pure noise (Lin et al. 2023).
        clip_sample: clip x0 estimates.
        clip_sample_range: x0 is clipped to plus or minus this.
        thresholding: scale x0 estimates that leave [-1, 1], instead of clipping (Saharia et al.
            2022, section 2.3).
        dynamic_thresholding_ratio: which quantile of a sample's |x0| is scaled to 1, if it is
            above 1.
        sample_max_value: the largest number that a sample is divided by.
        original_inference_steps: number of times on the grid that the model was distilled on; the
            steps of a run are taken from it.
        eta: share of fresh noise, in [0, 1] (gamma in the paper): a number, or a tuple of one per
            step. 0 adds no noise; at 1 all noise is fresh.
    """

    # The betas of Stable Diffusion.
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"

    # Bounds of the x0 estimate.
    clip_sample: bool = False
    clip_sample_range: float = 1.0
    thresholding: bool = False
    dynamic_thresholding_ratio: float = 0.995
    sample_max_value: float = 1.0

    # The times of a run, and the step.
    original_inference_steps: int = 50
    eta: float | tuple[float, ...] = 0.3

    facts = DiscreteScheduler.facts.replace(
        order="1", noise="`eta`", paper="Zheng et al. 2024"
    )
    _domains = DISTILLED_DOMAINS

    # Files of diffusers have LCM's options too; TCD has no boundary condition to scale.
    _file_options = {
        **DISTILLED_FILE_OPTIONS,
        "timestep_scaling": FileOption(10.0, numbers=(1e-6, 1e6)),
    }

    def __post_init__(self):
        super().__post_init__()
        check_original_steps(self)

        # `_domains` knows single numbers only.
        etas = self.eta if isinstance(self.eta, tuple) else (self.eta,)
        if not etas or not all(is_finite(eta) and 0 <= eta <= 1 for eta in etas):
            raise ValueError(
                "eta must be a number from 0 to 1, or a tuple of one per step, "
                f"got {shown(self.eta)}"
            )

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        *,
        timesteps: Any = None,
        sigmas: Any = None,
        strength: float = 1.0,
    ) -> TableState:
        """Returns the state at the start of a run; give exactly one of the first three arguments.

        Args:
            num_inference_steps: number of times from the grid of `original_inference_steps`.
            timesteps: or training times, in strictly descending order.
            sigmas: not supported.
            strength: with `num_inference_steps`, start at this share of the grid, in (0, 1], from
                an image with noise: `add_noise(state, image, noise)`.

        Raises:
            ValueError: if not exactly one is given, for values that break these rules, or if eta is
                a tuple of another length than the run.
        """
        check_strength(strength)

        # A lower start amounts to explicit times: those of the lower part of the grid.
        if strength != 1:
            given = {"timesteps": timesteps, "sigmas": sigmas}
            timesteps = starting_lower(self, num_inference_steps, strength, **given)
            num_inference_steps = None
        return super().set_timesteps(
            num_inference_steps, timesteps=timesteps, sigmas=sigmas
        )

    def levels(self, name: str, value: Any) -> Levels:
        """Returns the levels of the training times, ending at training time 0."""
        times = distilled_times(self, name, value)
        alphas, sigmas = self.parametrization.path(append_zero(times))
        return Levels(times, alphas, sigmas)

    def weights(self, levels: Levels) -> Weights:
        """Returns the table of equation 21, f32[N] each column.

        `x' = (alpha' / alpha_s) x_s + sqrt(1 - (alpha' / alpha_s)^2) z`.
        """
        n = len(levels.times)
        if isinstance(self.eta, tuple) and len(self.eta) != n:
            raise ValueError(f"eta has {len(self.eta)} entries, but the run has {n} steps")

        # s = floor((1 - eta) t'). 1 - eta is computed in float64 and rounded once: in float32
        # 1 - 0.8 is below 0.2, and the floor of 0.2 * 350 would be 69.
        next_times = append_zero(levels.times[1:])
        kept = jnp.asarray(1 - np.asarray(self.eta, np.float64), jnp.float32)
        alpha_s, sigma_s = self.parametrization.path(jnp.floor(kept * next_times))
        alpha_s = with_signal(alpha_s)

        # x_s = alpha_s x0 + sigma_s eps, so x' = alpha' x0 + (alpha' / alpha_s) sigma_s eps + up z.
        # The last step ends at s = t' = 0, where up is 0.
        next_alpha = levels.alphas[1:]
        next_sigma = levels.sigmas[1:]
        down = next_alpha / alpha_s * sigma_s
        up = noise_between((alpha_s, sigma_s), (next_alpha, next_sigma)) / alpha_s
        return Weights(x0=next_alpha, eps=down, noise=up)

    def bound(self, denoised: jax.Array) -> jax.Array:
        """Returns the x0 estimate thresholded or clipped, if so configured."""
        return bounded(self, denoised)

"""DDIM (Song, Meng and Ermon 2020)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from cmjax.schedulers.bounds import BOUND_DOMAINS, bounded
from cmjax.schedulers.discrete import (
    DiscreteScheduler,
    levels_to_data,
    noise_between,
    training_times,
)
from cmjax.schedulers.levels import Levels
from cmjax.schedulers.table import TableState
from cmjax.schedulers.weights import Weights


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class DDIMScheduler(DiscreteScheduler):
    """The implicit sampler of models with discrete times (Song, Meng and Ermon 2020, equation 12).

    By default, as in diffusers, only x0 is bounded and the direction eps comes from the unbounded
    estimate: `denoise` returns the estimate as it is, and `advance` bounds it.

    The network is told a training time, 0..N-1. `set_timesteps` takes as `num_inference_steps` a
    number of times spaced by `timestep_spacing`, or as `timesteps` whole training times.

    Attributes:
        num_train_timesteps: number N of training times.
        beta_start: the first beta.
        beta_end: the last beta.
        beta_schedule: "linear", "scaled_linear", "squaredcos_cap_v2" or "exp".
        trained_betas: betas that replace the schedule, or None.
        prediction_type: what the network returns: "epsilon", "sample" or "v_prediction".
        rescale_betas_zero_snr: make the last time pure noise (Lin et al. 2023).
        timestep_spacing: "linspace" (first and last time included), "leading" (integer stride) or
            "trailing".
        steps_offset: added to "leading" times.
        set_alpha_to_one: end without noise, rather than at training time 0.
        clip_sample: clip x0 estimates.
        clip_sample_range: x0 is clipped to plus or minus this.
        thresholding: scale x0 estimates that leave [-1, 1], instead of clipping (Saharia et al.
            2022, section 2.3).
        dynamic_thresholding_ratio: which quantile of a sample's |x0| is scaled to 1, if it is
            above 1.
        sample_max_value: the largest number that a sample is divided by.
        eta: share of fresh noise: 0 follows the probability-flow ODE, 1 has the variance of DDPM.
        use_clipped_model_output: take the direction, too, from the bounded x0 estimate.
    """

    # The times of a run, and where it ends.
    timestep_spacing: str = "leading"
    steps_offset: int = 0
    set_alpha_to_one: bool = True

    # Bounds of the x0 estimate.
    clip_sample: bool = True
    clip_sample_range: float = 1.0
    thresholding: bool = False
    dynamic_thresholding_ratio: float = 0.995
    sample_max_value: float = 1.0

    # The step.
    eta: float = 0.0
    use_clipped_model_output: bool = False

    facts = DiscreteScheduler.facts.replace(
        order="1", noise="`eta`", paper="Song et al. 2020"
    )
    solves_ode = True
    _domains = {**BOUND_DOMAINS, "eta": (0.0, 1.0)}

    def levels(self, name: str, value: Any) -> Levels:
        """Returns the levels of the training times, and of the end."""
        times = training_times(self, name, value)
        return levels_to_data(
            self.parametrization, times, at_time_0=not self.set_alpha_to_one
        )

    def weights(self, levels: Levels) -> Weights:
        """Returns the table of equation 12."""
        return ddim_weights(levels, self.eta)

    def bound(self, denoised: jax.Array) -> jax.Array:
        """Returns the x0 estimate thresholded or clipped, if so configured."""
        return bounded(self, denoised)

    def denoise(
        self, state: TableState, model_output: jax.Array, sample: jax.Array
    ) -> jax.Array:
        """Returns the x0 estimate, `[B, ...]`; bounded here with `use_clipped_model_output`."""
        if self.use_clipped_model_output:
            return super().denoise(state, model_output, sample)
        return self.estimate(state, model_output, sample)

    def bound_last(self, denoised: jax.Array) -> jax.Array:
        """Returns the x0 estimate, bounded unless `denoise` has bounded it already."""
        return denoised if self.use_clipped_model_output else self.bound(denoised)


def ddim_weights(levels: Levels, eta: float) -> Weights:
    """Returns the table of equation 12: `x' = alpha' x0 + sqrt(sigma'^2 - up^2) eps + up z`.

    Args:
        levels: of the steps, with alpha^2 + sigma^2 = 1.
        eta: share of fresh noise.
    """
    # Each step goes from (alpha, sigma) to (alpha', sigma'), f32[N] each.
    alpha = levels.alphas[:-1]
    sigma = levels.sigmas[:-1]
    next_alpha = levels.alphas[1:]
    next_sigma = levels.sigmas[1:]

    # The last step adds no noise, even if sampling ends at training time 0.
    share = jnp.full_like(levels.times, eta)
    share = share.at[-1].set(0)

    # Equation 16: up^2 = eta^2 (sigma'^2 / sigma^2) (1 - alpha^2 / alpha'^2).
    drop = noise_between((next_alpha, next_sigma), (alpha, sigma))
    up = share * next_sigma / sigma * drop / next_alpha

    # down = sqrt(sigma'^2 - up^2), multiplied out: where there is little signal the two squares
    # are almost equal, and their difference would be lost to rounding.
    signal = share * alpha * next_sigma / (next_alpha * sigma)
    down = next_sigma * jnp.sqrt((1 - share) * (1 + share) + jnp.square(signal))

    # At eta = 0 the sampler is deterministic, and no noise is drawn.
    noise = up if eta > 0 else None
    return Weights(x0=next_alpha, eps=down, noise=noise)

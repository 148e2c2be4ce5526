"""DDPM (Ho, Jain and Abbeel 2020), with learned variances (Nichol and Dhariwal 2021)."""

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
from cmjax.schedulers.learned_variance import (
    output_shape,
    split_output,
    standard_deviation,
)
from cmjax.schedulers.levels import Levels
from cmjax.schedulers.table import TableState
from cmjax.schedulers.weights import Weights


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class DDPMScheduler(DiscreteScheduler):
    """Ancestral sampling of models with discrete times (Ho et al. 2020, Algorithm 2).

    With `beta = 1 - alpha^2 / alpha'^2` of a step, the variance of the fresh noise lies between
    `beta sigma'^2 / sigma^2` ("small") and `beta` ("large"). If it is learned, the network returns
    twice the channels of the sample (the last axis): its prediction, then the variance.

    The network is told a training time, 0..N-1. `set_timesteps` takes as `num_inference_steps` a
    number of times spaced by `timestep_spacing`, or as `timesteps` whole training times.

    Attributes:
        num_train_timesteps: number N of training times.
        beta_start: the first beta.
        beta_end: the last beta.
        beta_schedule: "linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace" or
            "exp".
        trained_betas: betas that replace the schedule, or None.
        prediction_type: what the network returns: "epsilon", "sample" or "v_prediction".
        rescale_betas_zero_snr: make the last time pure noise (Lin et al. 2023).
        variance_type: "fixed_small", "fixed_large" (each also with "_log", which computes the
            same); "learned_range": the network's -1 is the small and 1 the large one, in the
            logarithm; "learned": the network returns the variance itself, below 0 for none.
        timestep_spacing: "linspace", "leading" (integer stride) or "trailing".
        steps_offset: added to "leading" times.
        clip_sample: clip x0 estimates.
        clip_sample_range: x0 is clipped to plus or minus this.
        thresholding: scale x0 estimates that leave [-1, 1], instead of clipping.
        dynamic_thresholding_ratio: the quantile of a sample's |x0| that is scaled to 1, if above.
        sample_max_value: the largest number that a sample is divided by.
    """

    # The noise of a step, and the times of a run.
    variance_type: str | None = "fixed_small"
    timestep_spacing: str = "leading"
    steps_offset: int = 0

    # Bounds of the x0 estimate.
    clip_sample: bool = True
    clip_sample_range: float = 1.0
    thresholding: bool = False
    dynamic_thresholding_ratio: float = 0.995
    sample_max_value: float = 1.0

    facts = DiscreteScheduler.facts.replace(
        predicts="epsilon, sample or v; its variance too, if learned",
        order="1",
        noise="yes",
        paper="Ho et al. 2020; Nichol and Dhariwal 2021",
    )
    solves_ode = True
    _domains = {
        **BOUND_DOMAINS,
        "variance_type": (
            "fixed_small",
            "fixed_small_log",
            "fixed_large",
            "fixed_large_log",
            "learned",
            "learned_range",
        ),
    }

    def levels(self, name: str, value: Any) -> Levels:
        """Returns the levels of the training times, ending at x0."""
        return levels_to_data(self.parametrization, training_times(self, name, value))

    def weights(self, levels: Levels) -> Weights:
        """Returns the table of equation 7, whose mean is `alpha' x0 + down eps`."""
        # Each step goes from (alpha, sigma) to (alpha', sigma'), f32[N] each.
        alpha = levels.alphas[:-1]
        sigma = levels.sigmas[:-1]
        next_alpha = levels.alphas[1:]
        next_sigma = levels.sigmas[1:]

        # The mean of equation 7, written with x = alpha x0 + sigma eps.
        down = jnp.square(next_sigma) * alpha / (next_alpha * sigma)

        # sqrt(beta), the large standard deviation; sigma' / sigma of it is the small one.
        noise = noise_between((next_alpha, next_sigma), (alpha, sigma)) / next_alpha
        kind = self.variance_type or "fixed_small"
        if kind.startswith("fixed_small"):
            noise = noise * next_sigma / sigma
        elif kind == "learned":
            noise = jnp.ones_like(noise)

        # The last step adds no noise.
        noise = noise.at[-1].set(0)
        return Weights(x0=next_alpha, eps=down, noise=noise)

    def bound(self, denoised: jax.Array) -> jax.Array:
        """Returns the x0 estimate thresholded or clipped, if so configured."""
        return bounded(self, denoised)

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape of the model output: with twice the channels of learned variances."""
        return output_shape(self, shape)

    def prediction(self, model_output: jax.Array, sample: jax.Array) -> jax.Array:
        """Returns the model output without the network's variance, `[B, ...]`."""
        prediction, _ = split_output(self, model_output, sample)
        return prediction

    def step_noise(
        self, state: TableState, model_output: jax.Array, noise: jax.Array
    ) -> jax.Array:
        """Returns noise times the learned standard deviation, as a factor of the table's."""
        kind = self.variance_type
        _, variance = split_output(self, model_output, noise)
        if kind is None or variance is None:
            return noise
        factor = standard_deviation(kind, variance, state)
        return (factor * noise.astype(factor.dtype)).astype(noise.dtype)

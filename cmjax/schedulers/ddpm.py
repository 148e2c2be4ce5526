"""DDPM (Ho, Jain and Abbeel 2020), with learned variances (Nichol and Dhariwal 2021)."""

import dataclasses

import jax
import jax.numpy as jnp

from cmjax.schedulers.bounds import BoundOptions
from cmjax.schedulers.discrete import SpacedScheduler, noise_between
from cmjax.schedulers.field_docs import inherit_field_docs
from cmjax.schedulers.learned_variance import (
    output_shape,
    split_output,
    standard_deviation,
)
from cmjax.schedulers.levels import Levels
from cmjax.schedulers.table import TableState
from cmjax.schedulers.weights import Weights


@inherit_field_docs
@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class DDPMScheduler(BoundOptions, SpacedScheduler):
    """Ancestral sampling of models with discrete times (Ho et al. 2020, Algorithm 2).

    With `beta = 1 - alpha^2 / alpha'^2` of a step, the variance of the fresh noise lies between
    `beta sigma'^2 / sigma^2` ("small") and `beta` ("large"). If it is learned, the network returns
    twice the channels of the sample (the last axis): its prediction, then the variance.

    The network's time input is a training time, 0..N-1. `set_timesteps` takes as
    `num_inference_steps` a number of times spaced by `timestep_spacing`, or as `timesteps` whole
    training times.

    Attributes:
        variance_type: "fixed_small", "fixed_large" (each also with "_log", which computes the
            same); "learned_range": the network's -1 is the small and 1 the large one, in the
            logarithm; "learned": the network returns the variance itself, below 0 for none.
    """

    variance_type: str | None = "fixed_small"

    facts = SpacedScheduler.facts.replace(
        predicts="epsilon, sample or v; its variance too, if learned",
        order="1",
        noise="yes",
        paper="Ho et al. 2020; Nichol and Dhariwal 2021",
    )
    _domains = {
        "variance_type": (
            "fixed_small",
            "fixed_small_log",
            "fixed_large",
            "fixed_large_log",
            "learned",
            "learned_range",
        ),
    }

    def weights(self, levels: Levels) -> Weights:
        """Returns the table of equation 7, whose mean is `alpha' x0 + down eps`."""
        # Each step goes from (alpha, sigma) to (alpha', sigma'), f32[N] each.
        alpha, sigma = levels.starts
        next_alpha, next_sigma = levels.ends

        # The mean of equation 7, written with x = alpha x0 + sigma eps.
        down = jnp.square(next_sigma) * alpha / (next_alpha * sigma)

        # sqrt(beta), the large standard deviation; sigma' / sigma of it is the small one.
        noise = noise_between((next_alpha, next_sigma), (alpha, sigma)) / next_alpha
        variance_type = self.variance_type or "fixed_small"
        if variance_type.startswith("fixed_small"):
            noise = noise * next_sigma / sigma
        elif variance_type == "learned":
            noise = jnp.ones_like(noise)

        # The last step adds no noise.
        noise = noise.at[-1].set(0)
        return Weights(x0=next_alpha, eps=down, noise=noise)

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape of the model output: with twice the channels of learned variances."""
        return output_shape(self, shape)

    def estimate(
        self, state: TableState, model_output: jax.Array, sample: jax.Array
    ) -> jax.Array:
        """Returns the x0 estimate of the model output without the network's variance."""
        prediction, _ = split_output(self, model_output, sample)
        return super().estimate(state, prediction, sample)

    def step_noise(
        self, state: TableState, model_output: jax.Array, noise: jax.Array
    ) -> jax.Array:
        """Returns noise times the learned standard deviation, as a factor of the table's."""
        variance_type = self.variance_type
        _, variance = split_output(self, model_output, noise)
        if variance_type is None or variance is None:
            return noise
        factor = standard_deviation(variance_type, variance, state)
        return (factor * noise.astype(factor.dtype)).astype(noise.dtype)

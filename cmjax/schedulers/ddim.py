"""DDIM (Song, Meng and Ermon 2020)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from cmjax.schedulers.bounded import BoundedDiscreteScheduler
from cmjax.schedulers.discrete import noise_between
from cmjax.schedulers.linear import LinearState, rows


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class DDIMScheduler(BoundedDiscreteScheduler):
    """The implicit sampler of models with discrete times (Song, Meng and Ermon 2020, equation 12).

    Attributes:
        eta: share of fresh noise: 0 follows the probability-flow ODE, 1 has the variance of DDPM.
        use_clipped_model_output: take the direction, too, from the clipped x0 estimate.

    Others as in `BoundedDiscreteScheduler`. Without `use_clipped_model_output`, the default of the reference, `denoise`
    returns the estimate as it is, and `advance` bounds it.
    """

    clip_sample: bool = True
    eta: float = 0.0
    use_clipped_model_output: bool = False

    _domains = {"eta": (0.0, 1.0)}

    @property
    def stochastic(self) -> bool:
        """Whether steps add fresh noise."""
        return self.eta > 0

    def set_timesteps(
        self, num_inference_steps: int | None = None, *, timesteps: Any = None, sigmas: Any = None
    ) -> LinearState:
        """Returns the state at the start of a run; give exactly one of the number of steps and training times.

        Raises:
            ValueError: for neither or both, or for times that are not descending integers of the training.
        """
        times = self.times(num_inference_steps, timesteps=timesteps, sigmas=sigmas)
        alphas, sigmas = map(jnp.append, self.path(times), self.final_levels())
        share = (
            jnp.full_like(times, self.eta).at[-1].set(0)
        )  # no noise at the end, also where that is training time 0
        # Equation 16: up^2 = eta^2 (sigma'^2 / sigma^2) (1 - alpha^2 / alpha'^2).
        drop = noise_between((alphas[1:], sigmas[1:]), (alphas[:-1], sigmas[:-1]))
        up = share * sigmas[1:] / sigmas[:-1] * drop / alphas[1:]
        # sqrt(sigma'^2 - up^2), without the difference of almost equal numbers that it is where there is little signal.
        signal = share * alphas[:-1] * sigmas[1:] / (alphas[1:] * sigmas[:-1])
        down = sigmas[1:] * jnp.sqrt((1 - share) * (1 + share) + jnp.square(signal))
        return self.new_state(times, alphas, sigmas, rows(alphas[1:], down, up))

    def denoise(self, state: LinearState, model_output: jax.Array, sample: jax.Array) -> jax.Array:
        """Returns the x0 estimate, `[B, ...]`; bounded here only with `use_clipped_model_output`."""
        if self.use_clipped_model_output:
            return super().denoise(state, model_output, sample)
        return self.estimate(state, model_output, sample)

    def bound_last(self, denoised: jax.Array) -> jax.Array:
        """Returns the x0 estimate, bounded if `denoise` has not done it."""
        return denoised if self.use_clipped_model_output else self.bound(denoised)

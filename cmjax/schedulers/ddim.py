"""DDIM (Song, Meng and Ermon 2020)."""

import dataclasses

import jax
import jax.numpy as jnp

from cmjax.schedulers.bounds import BoundOptions
from cmjax.schedulers.discrete import SpacedScheduler, noise_between
from cmjax.schedulers.field_docs import inherit_field_docs
from cmjax.schedulers.levels import Levels
from cmjax.schedulers.table import TableState
from cmjax.schedulers.weights import Weights


@inherit_field_docs
@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class DDIMScheduler(BoundOptions, SpacedScheduler):
    """The implicit sampler of models with discrete times (Song, Meng and Ermon 2020, equation 12).

    By default, as in diffusers, only x0 is bounded and the direction eps comes from the unbounded
    estimate: `denoise` returns the estimate as it is, and `advance` bounds it.

    The network's time input is a training time, 0..N-1. `set_timesteps` takes as
    `num_inference_steps` a number of times spaced by `timestep_spacing`, or as `timesteps` whole
    training times.

    Attributes:
        set_alpha_to_one: end without noise, rather than at training time 0.
        eta: share of fresh noise: 0 follows the probability-flow ODE, 1 has the variance of DDPM.
        use_clipped_model_output: take the direction, too, from the bounded x0 estimate.
    """

    set_alpha_to_one: bool = True
    eta: float = 0.0
    use_clipped_model_output: bool = False

    facts = SpacedScheduler.facts.replace(
        order="1", noise="`eta`", paper="Song et al. 2020"
    )
    _domains = {"eta": (0.0, 1.0)}

    def weights(self, levels: Levels) -> Weights:
        """Returns the table of equation 12."""
        return ddim_weights(levels, self.eta)

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
    alpha, sigma = levels.starts
    next_alpha, next_sigma = levels.ends

    # The last step adds no noise, even if sampling ends at training time 0.
    fresh = jnp.full_like(levels.times, eta)
    fresh = fresh.at[-1].set(0)

    # Equation 16: up^2 = eta^2 (sigma'^2 / sigma^2) (1 - alpha^2 / alpha'^2).
    drop = noise_between((next_alpha, next_sigma), (alpha, sigma))
    up = fresh * next_sigma / sigma * drop / next_alpha

    # down = sqrt(sigma'^2 - up^2), multiplied out: where there is little signal the two squares
    # are almost equal, and their difference would be lost to rounding.
    signal = fresh * alpha * next_sigma / (next_alpha * sigma)
    down = next_sigma * jnp.sqrt((1 - fresh) * (1 + fresh) + jnp.square(signal))

    # At eta = 0 the sampler is deterministic, and no noise is drawn.
    noise = up if eta > 0 else None
    return Weights(x0=next_alpha, eps=down, noise=noise)

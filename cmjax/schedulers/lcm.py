"""Latent consistency sampling (Luo et al. 2023, arXiv 2310.04378)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from cmjax.arrays import as_reals, weighted_sum
from cmjax.schedulers.distilled import DistilledScheduler
from cmjax.schedulers.field_docs import inherit_field_docs
from cmjax.schedulers.levels import Levels, append_zero
from cmjax.schedulers.table import TableState
from cmjax.schedulers.weights import Weights

_SIGMA_DATA = 0.5  # of the boundary condition; fixed in the paper's code


@inherit_field_docs
@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class LCMScheduler(DistilledScheduler):
    """Sampler of latent consistency models (Luo et al. 2023, Algorithm 3).

    `x' = alpha' f(x, t) + sigma' z`, where `f = c_skip(t) x + c_out(t) x0` satisfies the boundary
    condition f(x, 0) = x. Sampling ends at f(x, t).

    The network's time input is a training time, 0..N-1. `set_timesteps` takes as
    `num_inference_steps` a number of times from the grid of `original_inference_steps`, or as
    `timesteps` whole training times; its additional argument `strength` starts lower on that grid.

    Attributes:
        timestep_scaling: factor on t in the boundary condition.
    """

    timestep_scaling: float = 10.0

    facts = DistilledScheduler.facts.replace(noise="yes", paper="Luo et al. 2023")
    _domains = {"timestep_scaling": (1e-6, 1e6)}

    def levels(self, name: str, value: Any) -> Levels:
        """Returns the levels of the training times, ending at alpha = 1 and sigma = 0."""
        times = self.times(name, value)
        alphas, sigmas = self.parametrization.path(times)
        return Levels(
            times, jnp.append(alphas, jnp.ones(1, alphas.dtype)), append_zero(sigmas)
        )

    def weights(self, levels: Levels) -> Weights:
        """Returns the table of `x' = alpha' f(x, t) + sigma' z`."""
        return Weights(x0=levels.alphas[1:], eps=0.0, noise=levels.sigmas[1:])

    def denoise(
        self, state: TableState, model_output: jax.Array, sample: jax.Array
    ) -> jax.Array:
        """Returns f(x, t), `[B, ...]`: the bounded x0 estimate with the boundary condition."""
        # On top of the network's own scalings: x0 first, as the prediction type says, then f.
        denoised = super().denoise(state, model_output, sample)
        time = state.timesteps[state.step_index]
        c_skip, c_out = self.get_scalings_for_boundary_condition(time)
        return weighted_sum((c_out, denoised), (c_skip, jnp.asarray(sample)))

    def get_scalings_for_boundary_condition(
        self, timestep: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Returns (c_skip, c_out) with f(x, 0) = x, in the shape of `timestep` (section 4.1)."""
        # EDM's scalings with the scaled time for sigma.
        t = as_reals("timestep", timestep) * self.timestep_scaling
        total = jnp.square(t) + _SIGMA_DATA**2
        return _SIGMA_DATA**2 / total, t / jnp.sqrt(total)

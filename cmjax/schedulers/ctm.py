"""Gamma sampling of consistency trajectory models (Kim et al. 2023, arXiv 2310.02279)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from cmjax.schedulers.consistency import CMStochasticIterativeScheduler
from cmjax.schedulers.linear import LinearState, root_of_difference, rows


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class CTMScheduler(CMStochasticIterativeScheduler):
    """Sampler of networks that jump from any noise level to any lower one (Kim et al. 2023, Algorithm 3).

    `G(x, t, s) = (s / t) x + (1 - s / t) g(x, t, s)`, with `g = c_skip x + c_out F` by EDM's scalings; the network is
    told t and s. Each step jumps to `s^2 = sigma_min^2 + (1 - gamma^2) (t'^2 - sigma_min^2)` and adds noise to reach
    t'. With sigma_min = 0 that is the paper's `s = sqrt(1 - gamma^2) t'`; measured from sigma_min, where sampling ends,
    gamma = 1 is consistency sampling exactly.

    Attributes:
        gamma: share of fresh noise: 0 adds none, 1 is consistency sampling.

    Others as in `CMStochasticIterativeScheduler`.
    """

    gamma: float = 0.0

    _domains = {"gamma": (0.0, 1.0)}

    @property
    def stochastic(self) -> bool:
        """Whether steps add fresh noise."""
        return self.gamma > 0

    def weights(self, sigmas: jax.Array) -> jax.Array:
        """Rows of `x' = G(x, t, s) + gamma sqrt(t'^2 - sigma_min^2) z`, where G is `g + s eps`."""
        span = root_of_difference(sigmas[1:], self.sigma_min)
        target = jnp.sqrt(self.sigma_min**2 + (1 - self.gamma**2) * jnp.square(span))
        return rows(1.0, target, self.s_noise * self.gamma * span)

    def time_inputs(self, state: LinearState) -> tuple[jax.Array, ...]:
        """Returns the network's times of t and of s, f32[] each."""
        return state.timesteps[state.step_index], self.sigma_to_t(
            state.weights[state.step_index, 1]
        )

    def preconditioning(self, alphas: jax.Array, sigmas: jax.Array) -> tuple[Any, Any, Any]:
        """Returns EDM's (c_in, c_skip, c_out), of the shape of `sigmas`."""
        return self.get_input_scaling(sigmas), *self.get_scalings(sigmas)

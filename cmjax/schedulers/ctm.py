"""Gamma sampling of consistency trajectory models (Kim et al. 2023, arXiv 2310.02279)."""

import dataclasses

import jax
import jax.numpy as jnp

from cmjax.parametrization import EDM
from cmjax.parametrization.edm import CONSISTENCY_TIME_FACTOR
from cmjax.schedulers.consistency import CMStochasticIterativeScheduler
from cmjax.schedulers.field_docs import inherit_field_docs
from cmjax.schedulers.levels import (
    Levels,
    root_of_difference,
)
from cmjax.schedulers.table import TableState
from cmjax.schedulers.weights import Weights


@inherit_field_docs
@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class CTMScheduler(CMStochasticIterativeScheduler):
    """Sampler of networks that jump from any noise level to any lower one.

    `G(x, t, s) = (s / t) x + (1 - s / t) g(x, t, s)`, with `g = c_skip x + c_out F` by EDM's
    scalings (Kim et al. 2023, Algorithm 3). Each step jumps to the level s with
    `s^2 = sigma_min^2 + (1 - gamma^2) (t'^2 - sigma_min^2)`, then adds noise to reach t'. With
    sigma_min = 0 this is the paper's `s = sqrt(1 - gamma^2) t'`. Measured from sigma_min, where
    sampling ends, gamma = 1 is exactly consistency sampling.

    The network has two time inputs, `250 log(t)` and `250 log(s)`. `set_timesteps` takes what
    `CMStochasticIterativeScheduler.set_timesteps` takes.

    Attributes:
        gamma: share of fresh noise: 0 adds none, 1 is consistency sampling.

    Raises:
        ValueError: for values outside their domain, or `sigma_min >= sigma_max`.
    """

    gamma: float = 0.0

    facts = CMStochasticIterativeScheduler.facts.replace(
        predicts="F of g(x, t, s); takes two times",
        noise="`gamma`",
        paper="Kim et al. 2023",
    )

    # A flow map: it receives the level of the jump's end as well.
    num_times = 2
    _domains = {"gamma": (0.0, 1.0)}

    @property
    def parametrization(self) -> EDM:
        """EDM's parametrization without a boundary: G is the identity at s = t for any g."""
        return EDM(self.sigma_data, time_factor=CONSISTENCY_TIME_FACTOR)

    def weights(self, levels: Levels) -> Weights:
        """Returns the table of `x' = G(x, t, s) + gamma sqrt(t'^2 - sigma_min^2) z`."""
        # With eps = (x - g) / t, G = (s / t) x + (1 - s / t) g is g + s eps: the weight of eps is
        # the level s, which `time_inputs` reads from there.
        span = root_of_difference(levels.sigmas[1:], self.sigma_min)
        target = jnp.sqrt(self.sigma_min**2 + (1 - self.gamma**2) * jnp.square(span))
        fresh = self.s_noise * self.gamma * span

        # At gamma = 0 the sampler is deterministic, and no noise is drawn.
        noise = fresh if self.gamma > 0 else None
        return Weights(x0=1.0, eps=target, noise=noise)

    def time_inputs(self, state: TableState) -> tuple[jax.Array, ...]:
        """Returns the network's times at t and at s, f32[] each."""
        target = state.weights.eps[state.step_index]
        return state.timesteps[state.step_index], self.parametrization.time(target)

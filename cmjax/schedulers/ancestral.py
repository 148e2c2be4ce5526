"""Ancestral sampling with Euler steps (k-diffusion; Song et al. 2021, appendix F)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from cmjax.schedulers.discrete_sigmas import DiscreteSigmasScheduler
from cmjax.schedulers.edm import EDMScheduler
from cmjax.schedulers.linear import LinearState, root_of_difference, rows


def ancestral(sigmas: jax.Array, eta: float = 1.0) -> jax.Array:
    """Weights [n, 3] of Euler steps to a level below the next one, and fresh noise up to it.

    Args:
        sigmas: [n+1], noise levels.
        eta: share of fresh noise: 1 is that of the reverse of the forward process, 0 is Euler's method.
    """
    high, low = sigmas[:-1], sigmas[1:]
    share = (
        jnp.full_like(high, eta).at[-1].set(0)
    )  # no noise at the end, also where that is above 0
    up = share * low * root_of_difference(high, low) / high
    # sqrt(low^2 - up^2), without the difference of almost equal numbers that it is where low is far below high.
    down = low * jnp.sqrt((1 - share) * (1 + share) + jnp.square(share * low / high))
    return rows(1.0, down, up)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class EDMEulerAncestralScheduler(EDMScheduler):
    """Ancestral sampling on EDM noise levels.

    Attributes:
        eta: share of fresh noise, in [0, 1].

    Others as in `EDMScheduler`.
    """

    eta: float = 1.0

    _domains = {"eta": (0.0, 1.0)}

    def set_timesteps(
        self, num_inference_steps: int | None = None, *, timesteps: Any = None, sigmas: Any = None
    ) -> LinearState:
        """Returns the state at the start of a run; arguments and errors as in `EDMScheduler.levels`."""
        levels = self.levels(num_inference_steps, timesteps, sigmas)
        return self.solver_state(levels, ancestral(levels, self.eta))


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class EulerAncestralDiscreteScheduler(DiscreteSigmasScheduler):
    """Ancestral sampling for models with discrete times. Attributes as in `DiscreteSigmasScheduler`."""

    def set_timesteps(
        self, num_inference_steps: int | None = None, *, timesteps: Any = None, sigmas: Any = None
    ) -> LinearState:
        """Returns the state at the start of a run; arguments and errors as in `levels`."""
        times, levels = self.levels(num_inference_steps, timesteps, sigmas)
        return self.new_state(times, jnp.ones_like(levels), levels, ancestral(levels))

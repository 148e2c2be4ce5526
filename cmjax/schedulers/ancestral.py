"""Ancestral sampling with Euler steps (k-diffusion; Song et al. 2021, appendix F)."""

import dataclasses

import jax
import jax.numpy as jnp

from cmjax.schedulers.discrete_sigmas import DiscreteSigmasScheduler
from cmjax.schedulers.edm import EDMScheduler
from cmjax.schedulers.field_docs import inherit_field_docs
from cmjax.schedulers.levels import (
    Levels,
    root_of_difference,
)
from cmjax.schedulers.weights import Weights


def ancestral_weights(sigmas: jax.Array, eta: float = 1.0) -> Weights:
    """Returns the table of ancestral sampling, f32[n] each column.

    Each step is Euler's to a level below the next one, then fresh noise raises it to that level.

    Args:
        sigmas: f32[n+1], noise levels.
        eta: share of fresh noise: 1 reverses the forward process, 0 is Euler's method.
    """
    # Each step goes from sigma to sigma', f32[n] each.
    high = sigmas[:-1]
    low = sigmas[1:]

    # The last step adds no noise, even if sampling ends above 0.
    fresh = jnp.full_like(high, eta).at[-1].set(0)

    # up = eta sigma' sqrt(sigma^2 - sigma'^2) / sigma.
    up = fresh * low * root_of_difference(high, low) / high

    # down = sqrt(sigma'^2 - up^2), multiplied out: where sigma' is far below sigma the two squares
    # are almost equal, and their difference would be lost to rounding.
    down = low * jnp.sqrt((1 - fresh) * (1 + fresh) + jnp.square(fresh * low / high))

    # Without noise there is no column of it, and none is drawn.
    noise = up if eta > 0 else None
    return Weights(x0=1.0, eps=down, noise=noise)


@inherit_field_docs
@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class EDMEulerAncestralScheduler(EDMScheduler):
    """Ancestral sampling on EDM noise levels.

    The network's time input is `log(sigma) / 4`. `set_timesteps` takes what
    `EDMScheduler.set_timesteps` takes.

    Attributes:
        eta: share of fresh noise, in [0, 1].
    """

    eta: float = 1.0

    facts = EDMScheduler.facts.replace(order="1", noise="`eta`", paper="k-diffusion")
    _domains = {"eta": (0.0, 1.0)}

    def weights(self, levels: Levels) -> Weights:
        """Returns the table of Euler steps, each followed by noise."""
        return ancestral_weights(levels.sigmas, self.eta)


@inherit_field_docs
@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class EulerAncestralDiscreteScheduler(DiscreteSigmasScheduler):
    """Ancestral sampling for models with discrete times.

    The network's time input is a training time, 0..N-1, also between two. `set_timesteps` takes
    what `DiscreteSigmasScheduler.set_timesteps` takes.
    """

    facts = DiscreteSigmasScheduler.facts.replace(
        order="1", noise="yes", paper="k-diffusion"
    )

    # diffusers' class of this name knows no other levels than those of training times.
    _sibling_options = frozenset(
        {"use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"}
    )

    def weights(self, levels: Levels) -> Weights:
        """Returns the table of Euler steps, each followed by noise."""
        # diffusers has no eta here: all of the noise is fresh.
        return ancestral_weights(levels.sigmas)

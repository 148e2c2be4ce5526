"""Linear multistep method: order up to four with one network call a step (Karras et al. 2022)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from cmjax.schedulers.differences import chosen_by_order, earlier_nodes
from cmjax.schedulers.discrete_sigmas import DiscreteSigmasScheduler
from cmjax.schedulers.field_docs import inherit_field_docs
from cmjax.schedulers.levels import Levels
from cmjax.schedulers.weights import Weights


@inherit_field_docs
@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class LMSDiscreteScheduler(DiscreteSigmasScheduler):
    """The linear multistep method, Adams-Bashforth on any levels, for models of training times.

    The slope of the ODE, `dx / dsigma = eps`, is replaced by the polynomial in sigma through this
    and earlier slopes, which is integrated exactly; diffusers integrates it numerically. As in
    diffusers the last step, to 0, has the full order: it does not end at x0 as it is.

    The network's time input is a training time, 0..N-1, also between two. `set_timesteps` takes
    what `DiscreteSigmasScheduler.set_timesteps` takes.

    Attributes:
        order: highest order of a step, 1 to 4; in diffusers an argument of `step`.
    """

    order: int = 4

    facts = DiscreteSigmasScheduler.facts.replace(
        order="1 to 4", memory="0 to 3", paper="Karras et al. 2022 (k-diffusion)"
    )

    # Options that diffusers' class of this name does not have.
    _sibling_options = frozenset({"rescale_betas_zero_snr"})

    _domains = {"order": (1, 4)}

    def weights(self, levels: Levels) -> Weights:
        """Returns the table of `x' = x + int eps dsigma`."""
        # Each step goes from sigma to sigma', f32[N] each, by the integrals of u^k, where u is 0 at
        # its start and 1 at its end.
        sigma = levels.sigmas[:-1]
        next_sigma = levels.sigmas[1:]
        length = next_sigma - sigma
        moments = tuple(length / (k + 1) for k in range(self.order))

        # The first steps have fewer slopes before them.
        numbers = np.arange(len(length)) + 1
        orders = jnp.asarray(np.minimum(numbers, self.order))
        moving = jnp.ones_like(length, bool)
        nodes, _ = earlier_nodes(length, moving, self.order - 1)
        half = length / 2  # the integral of u
        earlier = chosen_by_order(nodes, moments, half, orders)

        # x + length eps = x0 + sigma' eps, and differences to earlier eps.
        eps = next_sigma - sum(earlier, jnp.zeros_like(length))
        return Weights(x0=1.0, eps=eps, earlier_eps=tuple(earlier))

"""Euler's method for flow-matching models (Lipman et al. 2023), such as FLUX, SD3 and Mochi."""

import dataclasses

import jax

from cmjax.schedulers.field_docs import inherit_field_docs
from cmjax.schedulers.flow_match import FlowMatchScheduler
from cmjax.schedulers.levels import Levels
from cmjax.schedulers.weights import Weights


@inherit_field_docs
@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class FlowMatchEulerDiscreteScheduler(FlowMatchScheduler):
    """Euler steps along the velocity of flow matching: `x' = x + (sigma' - sigma) v`.

    The network's time input is `N sigma`, or inverted `N (1 - sigma)`. `set_timesteps` takes as
    `num_inference_steps` a number of levels, equally spaced before they are shifted; as `timesteps`
    N times the levels before the shift; as `sigmas` the levels before the shift, in (0, 1].

    Attributes:
        stochastic_sampling: draw all noise afresh at each step, as consistency sampling does.

    Raises:
        ValueError: for values outside their domain.
    """

    stochastic_sampling: bool = False

    facts = FlowMatchScheduler.facts.replace(
        order="1",
        noise="`stochastic_sampling`",
        paper="Lipman et al. 2023; Esser et al. 2024",
    )
    solves_ode = True

    def weights(self, levels: Levels) -> Weights:
        """Returns the table of `x' = (1 - sigma') x0 + sigma' eps`, or with fresh noise for eps."""
        # With x0 = x - sigma v and eps = x + (1 - sigma) v this is x + (sigma' - sigma) v.
        if self.stochastic_sampling:
            return Weights(x0=levels.alphas[1:], eps=0.0, noise=levels.sigmas[1:])
        return Weights(x0=levels.alphas[1:], eps=levels.sigmas[1:])

"""Euler's method on EDM noise levels (Karras et al. 2022)."""

import dataclasses
from typing import Any

import jax

from cmjax.schedulers.churn import ChurnOptions, churn
from cmjax.schedulers.edm import EDMScheduler
from cmjax.schedulers.field_docs import inherit_field_docs
from cmjax.schedulers.levels import Levels, exploding_levels
from cmjax.schedulers.weights import Weights


def euler_calls(scheduler: Any, levels: Levels) -> Levels:
    """Returns where the network is called: at the levels that churn raises.

    Args:
        scheduler: with a parametrization of samples `x0 + sigma z`, and the fields of `churn`.
        levels: of the steps.
    """
    # Without churn the times stay exactly as they are.
    added = churn(scheduler, levels.sigmas)
    if added.noise is None:
        return levels
    return exploding_levels(scheduler.parametrization, added.raised)


def euler_weights(scheduler: Any, levels: Levels) -> Weights:
    """Returns the table of `x' = x0 + sigma' eps`, with the noise of the next level's churn."""
    # With eps = (x - x0) / sigma this is x + (sigma' - sigma) (x - x0) / sigma.
    return Weights(
        x0=1.0, eps=levels.sigmas[1:], noise=churn(scheduler, levels.sigmas).noise
    )


@inherit_field_docs
@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class EDMEulerScheduler(ChurnOptions, EDMScheduler):
    """Euler steps along the probability-flow ODE: `x' = x + (sigma' - sigma) (x - x0) / sigma`.

    Algorithms 1 and 2 of Karras et al. 2022 without the second-order correction. With `s_churn`,
    noise is added before the network is called, as in the paper; diffusers calls the network first.

    The network's time input is `log(sigma) / 4`. `set_timesteps` takes what
    `EDMScheduler.set_timesteps` takes.
    """

    facts = EDMScheduler.facts.replace(
        order="1", noise="`s_churn`", paper="Karras et al. 2022"
    )

    def calls(self, levels: Levels) -> Levels:
        """Returns where the network is called: at the raised levels."""
        return euler_calls(self, levels)

    def weights(self, levels: Levels) -> Weights:
        """Returns the table of `x' = x0 + sigma' eps`, with the noise of the next level's churn."""
        return euler_weights(self, levels)

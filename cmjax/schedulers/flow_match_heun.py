"""Heun's method for flow-matching models: second order, two network calls a step."""

import dataclasses
from typing import Any

import jax

from cmjax.schedulers.field_docs import inherit_field_docs
from cmjax.schedulers.flow import FlowScheduler, flow_levels, shifted, unshifted_sigmas
from cmjax.schedulers.heun import heun_calls, heun_weights
from cmjax.schedulers.levels import Levels
from cmjax.schedulers.weights import Weights


@inherit_field_docs
@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class FlowMatchHeunDiscreteScheduler(FlowScheduler):
    """Heun's method along the velocity of flow matching: n steps take 2n - 1 network calls.

    diffusers' arguments `s_churn` and its kin are left out: the noise that they add takes the
    sample off the path `(1 - sigma) x0 + sigma z`, whose signal they do not lower.

    The network's time input is `N sigma`. `set_timesteps` takes as `num_inference_steps` a number
    of steps, from levels equally spaced before they are shifted; as `timesteps` N times the levels
    before the shift; as `sigmas` the levels before the shift, in (0, 1].
    """

    facts = FlowScheduler.facts.replace(
        order="2", calls="2", memory="2", paper="Lipman et al. 2023"
    )
    solves_ode = True

    def levels(self, name: str, value: Any) -> Levels:
        """Returns the shifted levels of the solver's steps, ending at 0."""
        # The lowest of equally spaced levels is shifted twice, as in diffusers.
        total = self.num_train_timesteps
        unshifted = unshifted_sigmas(total, name, value, shifted(1 / total, self.shift))
        return flow_levels(self.parametrization, shifted(unshifted, self.shift))

    def calls(self, levels: Levels) -> Levels:
        """Returns where the network is called: at each step's start and end."""
        # Without the last entry, the end of the run, which `flow_levels` adds.
        sigmas = heun_calls(levels.sigmas, levels.sigmas)[:-1]
        return flow_levels(self.parametrization, sigmas)

    def weights(self, levels: Levels) -> Weights:
        """Returns the table of Heun's method on this path."""
        return heun_weights(levels.sigmas, levels.sigmas, alphas=levels.alphas)

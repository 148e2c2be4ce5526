"""Shared base of samplers whose steps lie at spaced training times."""

import dataclasses
from typing import Any

import jax

from cmjax.schedulers.discrete import DiscreteScheduler, training_times, with_signal
from cmjax.schedulers.field_docs import inherit_field_docs
from cmjax.schedulers.levels import Levels, append_zero


@inherit_field_docs
@dataclasses.dataclass(frozen=True)
class SpacedScheduler(DiscreteScheduler):
    """A sampler of a model with discrete times that takes its steps at some of these times.

    The network is told a training time, 0..N-1. `set_timesteps` takes as `num_inference_steps` a
    number of times spaced by `timestep_spacing`, or as `timesteps` whole training times.

    Attributes:
        timestep_spacing: "linspace" (first and last time included), "leading" (integer stride) or
            "trailing".
        steps_offset: added to "leading" times.
    """

    timestep_spacing: str = "leading"
    steps_offset: int = 0

    solves_ode = True

    # Whether a run ends at x0, or at training time 0, which has a little noise. Samplers that leave
    # the choice to the caller have a field of this name.
    set_alpha_to_one = True

    def levels(self, name: str, value: Any) -> Levels:
        """Returns the levels of the training times, and of the end."""
        return self.levels_at(training_times(self, name, value))

    def levels_at(self, times: jax.Array) -> Levels:
        """Returns the levels of training times, f32[N] and descending, and of the end."""
        alphas, sigmas = self.parametrization.path(append_zero(times))
        if self.set_alpha_to_one:
            alphas = alphas.at[-1].set(1)
            sigmas = sigmas.at[-1].set(0)

        # Steps divide by the alpha that they arrive at: only the first level may have none.
        return Levels(times, alphas.at[1:].set(with_signal(alphas[1:])), sigmas)

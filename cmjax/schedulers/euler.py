"""Euler's method on EDM noise levels (Karras et al. 2022)."""

import dataclasses
from typing import Any

import jax

from cmjax.schedulers.edm import ChurnedEDMScheduler
from cmjax.schedulers.linear import LinearState, rows


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class EDMEulerScheduler(ChurnedEDMScheduler):
    """Euler steps along the probability-flow ODE (Karras et al. 2022, Algorithms 1 and 2 without the correction).

    `x' = x + (sigma' - sigma) (x - x0) / sigma`. With `s_churn`, noise is added before the network is called, as in
    the paper; the reference calls the network first. Attributes as in `ChurnedEDMScheduler`.
    """

    def set_timesteps(
        self, num_inference_steps: int | None = None, *, timesteps: Any = None, sigmas: Any = None
    ) -> LinearState:
        """Returns the state at the start of a run; arguments and errors as in `EDMScheduler.levels`."""
        levels = self.levels(num_inference_steps, timesteps, sigmas)
        raised, up = self.churn(levels)
        return self.solver_state(raised, rows(1.0, levels[1:], up))

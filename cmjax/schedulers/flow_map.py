"""Flow maps: networks that are told where to go as well (Boffi et al. 2024; Geng et al. 2025, mean flow)."""

import dataclasses
from typing import Any

import jax

from cmjax.schedulers.flow import FlowScheduler, shifted
from cmjax.schedulers.linear import LinearState, rows


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class FlowMapEulerDiscreteScheduler(FlowScheduler):
    """Sampler of networks u(x, t, r) that return the mean velocity from t to r: `x' = x - (t - r) u`.

    The network is told two times, t and the next one r, each times `num_train_timesteps`; one step goes all the way.
    Attributes as in `FlowScheduler`. `denoised` is `x - t u`, the end of the straight line.
    """

    @property
    def stochastic(self) -> bool:
        """Whether steps add fresh noise."""
        return False

    def set_timesteps(
        self, num_inference_steps: int | None = None, *, timesteps: Any = None, sigmas: Any = None
    ) -> LinearState:
        """Returns the state at the start of a run; give exactly one argument.

        Args:
            num_inference_steps: number n of steps, from levels 1, 1 - 1/n, ... 1/n before they are shifted.
            timesteps: or N times the levels before the shift, descending.
            sigmas: or the levels before the shift, descending, in (0, 1].

        Raises:
            ValueError: if not exactly one is given, or for values that break the rules above.
        """
        levels = self.levels(num_inference_steps, timesteps, sigmas)
        times, alphas, sigmas = self.ending_at_zero(shifted(levels, self.shift))
        return self.new_state(times, alphas, sigmas, rows(alphas[1:], sigmas[1:], 0.0))

    def time_inputs(self, state: LinearState) -> tuple[jax.Array, ...]:
        """Returns the times t and r that the network is told, f32[] each."""
        return tuple(self.num_train_timesteps * sigma for sigma in (state.sigma, state.next_sigma))

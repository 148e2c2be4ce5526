"""Flow maps: networks told where to go as well (Boffi et al. 2024; Geng et al. 2025, mean flow)."""

import dataclasses

import jax

from cmjax.schedulers.flow import FlowScheduler
from cmjax.schedulers.levels import Levels
from cmjax.schedulers.table import TableState, Weights


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class FlowMapEulerDiscreteScheduler(FlowScheduler):
    """Sampler of networks u(x, t, r), the mean velocity from t to r: `x' = x - (t - r) u`.

    One step goes all the way. `denoised` is `x - t u`, the end of the straight line.

    The network is told two times, t and the next one r, each times N. `set_timesteps` takes as
    `num_inference_steps` a number n of steps, from levels 1, 1 - 1/n, ... 1/n before they are
    shifted; as `timesteps` N times the levels before the shift; as `sigmas` the levels before the
    shift, in (0, 1].

    Attributes:
        num_train_timesteps: number N.
        shift: of the levels towards noise (Esser et al. 2024, equation 23); 1 is none.
    """

    num_times = 2

    def weights(self, levels: Levels) -> Weights:
        """`x' = (1 - r) x0 + r eps`, which is `x - (t - r) u`."""
        return Weights(x0=levels.alphas[1:], eps=levels.sigmas[1:])

    def time_inputs(self, state: TableState) -> tuple[jax.Array, ...]:
        """Returns the times t and r that the network is told, f32[] each."""
        total = self.num_train_timesteps
        return total * state.sigma, total * state.next_sigma

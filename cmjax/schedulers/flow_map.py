"""Flow maps: networks of a start and an end time (Boffi et al. 2024; Geng et al. 2025)."""

import dataclasses

import jax

from cmjax.parametrization import FlowMatching
from cmjax.schedulers.field_docs import inherit_field_docs
from cmjax.schedulers.flow import FlowScheduler
from cmjax.schedulers.levels import Levels
from cmjax.schedulers.table import TableState
from cmjax.schedulers.weights import Weights


@inherit_field_docs
@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class FlowMapEulerDiscreteScheduler(FlowScheduler):
    """Sampler of networks u(x, t, r), the mean velocity from t to r: `x' = x - (t - r) u`.

    A single step suffices. `denoised` is `x - t u`, where the straight line along u reaches t = 0.

    The network has two time inputs, t and the next one r, each times N. `set_timesteps` takes as
    `num_inference_steps` a number n of steps, from the levels 1, 1 - 1/n, ..., 1/n before they are
    shifted; as `timesteps` N times the levels before the shift; as `sigmas` the levels before the
    shift, in (0, 1]: shares of `noise_scale`.

    Attributes:
        noise_scale: standard deviation of the noise that the paths end at; Pixel MeanFlow's larger
            networks have more than 1 (Lu et al. 2026, arXiv 2601.22158).
    """

    noise_scale: float = 1.0

    facts = FlowScheduler.facts.replace(
        predicts="mean velocity from t to r; takes both",
        paper="Boffi et al. 2024; Geng et al. 2025",
    )
    num_times = 2
    _domains = {"noise_scale": (1e-3, 1e3)}

    @property
    def parametrization(self) -> FlowMatching:
        """The straight path to scaled noise, with the network's time N t."""
        return FlowMatching(self.num_train_timesteps, noise_scale=self.noise_scale)

    @property
    def sigma_range(self) -> tuple[float, float]:
        """The lowest and highest `sigma / alpha`."""
        low, high = super().sigma_range
        return self.noise_scale * low, self.noise_scale * high

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the initial noise, `noise_scale`."""
        return self.noise_scale

    def weights(self, levels: Levels) -> Weights:
        """Returns the table of `x' = (1 - r) x0 + r eps`, which is `x - (t - r) u`."""
        # x0 = x - t u and eps = x + (1 - t) u, so the weighted sum is x + (r - t) u. With a scale s
        # of the noise, eps is s times smaller, and sigma s times larger.
        return Weights(x0=levels.alphas[1:], eps=levels.sigmas[1:])

    def time_inputs(self, state: TableState) -> tuple[jax.Array, ...]:
        """Returns the network's times t and r, f32[] each."""
        total = self.num_train_timesteps / self.noise_scale
        return total * state.sigma, total * state.next_sigma

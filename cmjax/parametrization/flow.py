"""Networks of flow matching (Lipman et al. 2023; Esser et al. 2024)."""

import dataclasses
from typing import Any

import jax

from cmjax.parametrization.base import NoiseLevel, Parametrization, Scalings


@dataclasses.dataclass(frozen=True)
class FlowMatching(Parametrization):
    """The straight path `x = (1 - sigma) x0 + sigma z`; the network returns the velocity `z - x0`.

    Attributes:
        num_train_timesteps: number N; the network's time is `N sigma`.
        prediction_type: what the network returns: "flow_prediction" (the velocity), or, of networks
            that are run on this path all the same, "epsilon" (the noise z) or "sample" (x0).
        inverted: whether the network's time grows with the signal instead: it is told
            `N (1 - sigma)` and returns `x0 - z`, the velocity along that time.
    """

    num_train_timesteps: int = 1000
    prediction_type: str = "flow_prediction"
    inverted: bool = False

    def time_of(self, sigma: jax.Array) -> jax.Array:
        """Returns the network's time at the noise level sigma, in the shape of `sigma`."""
        level = 1 - sigma if self.inverted else sigma
        return level * self.num_train_timesteps

    def level(self, ratio: jax.Array) -> NoiseLevel:
        """Returns time, alpha and sigma where `sigma / (1 - sigma)` is `ratio`."""
        sigma = ratio / (1 + ratio)  # solves sigma / (1 - sigma) = ratio
        # Not 1 - sigma, which would be rounded where there is little signal.
        return NoiseLevel(self.time_of(sigma), 1 / (1 + ratio), sigma)

    @property
    def time_range(self) -> tuple[float, float]:
        """The lowest and highest time that the network may be told."""
        return 0.0, float(self.num_train_timesteps)

    def path(self, time: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns (1 - sigma, sigma), in the shape of `time`."""
        level = time / self.num_train_timesteps
        return (level, 1 - level) if self.inverted else (1 - level, level)

    def scalings(self, alpha: Any, sigma: Any) -> Scalings:
        """Returns (c_in, c_skip, c_out) of the prediction type.

        Of velocities (1, 1, -sigma), that is `x0 = x - sigma F`; with inverted times (1, 1, sigma).
        """
        if self.prediction_type == "epsilon":
            return Scalings(1.0, 1 / alpha, -sigma / alpha)
        if self.prediction_type == "sample":
            return Scalings(1.0, 0.0, 1.0)
        # x - sigma (z - x0) = (1 - sigma) x0 + sigma x0 = x0.
        return Scalings(1.0, 1.0, sigma if self.inverted else -sigma)

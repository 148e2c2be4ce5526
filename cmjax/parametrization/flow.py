"""Networks of flow matching (Lipman et al. 2023; Esser et al. 2024)."""

import dataclasses
from typing import Any

import jax

from cmjax.parametrization.base import NoiseLevel, Parametrization, Scalings


@dataclasses.dataclass(frozen=True)
class FlowMatching(Parametrization):
    """The straight path `x = (1 - u) x0 + u s z`; the network returns the velocity `s z - x0`.

    u is the share of the way to noise, and s the `noise_scale`, nearly always 1. So alpha is
    `1 - u`, and sigma is `u s`.

    Attributes:
        num_train_timesteps: number N; the network's time is `N u`.
        prediction_type: what the network returns: "flow_prediction" (the velocity), or, of networks
            that are run on this path all the same, "epsilon" (the noise z) or "sample" (x0).
        inverted: whether the network's time grows with the signal instead: it is
            `N (1 - u)`, and the network returns `x0 - s z`, the velocity along that time.
        noise_scale: standard deviation s of the noise at the path's end.
    """

    num_train_timesteps: int = 1000
    prediction_type: str = "flow_prediction"
    inverted: bool = False
    noise_scale: float = 1.0

    def time_of(self, u: jax.Array) -> jax.Array:
        """Returns the network's time at the share u of the way to noise, in the shape of u."""
        fraction = 1 - u if self.inverted else u
        return fraction * self.num_train_timesteps

    def level(self, ratio: jax.Array) -> NoiseLevel:
        """Returns time, alpha and sigma where `sigma / alpha` is `ratio`."""
        # The share u of the way to noise solves u / (1 - u) = ratio / s.
        ratio = ratio / self.noise_scale
        u = ratio / (1 + ratio)

        # alpha is not computed as 1 - u, which has few digits where there is little signal.
        alpha = 1 / (1 + ratio)
        return NoiseLevel(self.time_of(u), alpha, self.noise_scale * u)

    @property
    def time_range(self) -> tuple[float, float]:
        """The lowest and highest time that the network may be given."""
        return 0.0, float(self.num_train_timesteps)

    def path(self, time: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns alpha and sigma, (1 - u, u s), in the shape of `time`."""
        fraction = time / self.num_train_timesteps
        u = 1 - fraction if self.inverted else fraction
        alpha = fraction if self.inverted else 1 - fraction
        return alpha, self.noise_scale * u

    def scalings(self, alpha: Any, sigma: Any) -> Scalings:
        """Returns (c_in, c_skip, c_out) of the prediction type.

        Of velocities (1, 1, -u), that is `x0 = x - u F`; with inverted times (1, 1, u).
        """
        if self.prediction_type == "epsilon":
            return Scalings(1.0, 1 / alpha, -sigma / alpha)
        if self.prediction_type == "sample":
            return Scalings(1.0, 0.0, 1.0)

        # x - u (s z - x0) = (1 - u) x0 + u x0 = x0.
        u = sigma / self.noise_scale
        return Scalings(1.0, 1.0, u if self.inverted else -u)

"""Networks in the TrigFlow parametrization (Lu and Song 2024, arXiv 2410.11081)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from cmjax.parametrization.base import NoiseLevel, Parametrization, Scalings


@dataclasses.dataclass(frozen=True)
class TrigFlow(Parametrization):
    """The path `x = cos(t) x0 + sin(t) sigma_data z`; the network's time is the angle t.

    The network sees `x / sigma_data`, and `x0 = cos(t) x - sin(t) sigma_data F` (section 3).

    Attributes:
        sigma_data: standard deviation of the data.
    """

    sigma_data: float = 0.5

    def level(self, ratio: jax.Array) -> NoiseLevel:
        """Returns the angle `arctan(ratio / sigma_data)` and its (alpha, sigma)."""
        # sigma / alpha = sigma_data tan(t), for angles from 0 (data) to pi/2 (noise).
        angle = jnp.arctan(ratio / self.sigma_data)
        return NoiseLevel(angle, *self.path(angle))

    def path(self, time: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns (cos t, sigma_data sin t), in the shape of `time`."""
        return jnp.cos(time), self.sigma_data * jnp.sin(time)

    def scalings(self, alpha: Any, sigma: Any) -> Scalings:
        """Returns (1 / sigma_data, cos t, -sigma_data sin t)."""
        return Scalings(1 / self.sigma_data, alpha, -sigma)

"""Networks in the TrigFlow parametrization (Lu and Song 2024, arXiv 2410.11081)."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cmjax.parametrization.base import NoiseLevel, Parametrization, Scalings

# The largest float32 below pi/2: float32's pi/2 is above it, and has a negative cosine.
MAX_ANGLE = float(np.nextafter(np.float32(math.pi / 2), np.float32(0)))


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

    @property
    def time_range(self) -> tuple[float, float]:
        """The lowest and highest time that the network may be given."""
        return 0.0, math.pi / 2

    def path(self, time: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns (cos t, sigma_data sin t), in the shape of `time`."""
        return jnp.cos(time), self.sigma_data * jnp.sin(time)

    def scalings(self, alpha: Any, sigma: Any) -> Scalings:
        """Returns (1 / sigma_data, cos t, -sigma_data sin t)."""
        return Scalings(1 / self.sigma_data, alpha, -sigma)


@dataclasses.dataclass(frozen=True)
class VDiffusion(TrigFlow):
    """TrigFlow's path for data of scale 1, with networks that take the share of a right angle.

    So t goes from 0 (data) to 1 (noise), and the network predicts `v = cos z - sin x0` (Salimans
    and Ho 2022). v-diffusion's and Dance Diffusion's networks are of this kind.

    Attributes:
        sigma_data: 1.
    """

    sigma_data: float = 1.0

    @property
    def time_range(self) -> tuple[float, float]:
        """The lowest and highest time that the network may be given."""
        return 0.0, 1.0

    def level(self, ratio: jax.Array) -> NoiseLevel:
        """Returns the time `arctan(ratio) / (pi/2)` and its (alpha, sigma)."""
        time = jnp.arctan(ratio / self.sigma_data) * (2 / math.pi)
        return NoiseLevel(time, *self.path(time))

    def path(self, time: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns (cos, sin) of the angle `time pi/2`, in the shape of `time`."""
        return super().path(jnp.minimum(time * (math.pi / 2), MAX_ANGLE))

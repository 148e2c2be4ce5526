"""Networks on EDM's noise levels: denoisers and consistency models."""

import dataclasses
import math
from typing import Any, Self

import jax
import jax.numpy as jnp

from cmjax.parametrization.base import NoiseLevel, Parametrization, Scalings

# c_noise = log(sigma) / 4 (Karras et al. 2022, table 1).
EDM_TIME_FACTOR = 0.25

# 1000 log(sigma) / 4, as in openai/consistency_models.
CONSISTENCY_TIME_FACTOR = 250.0


@dataclasses.dataclass(frozen=True)
class EDM(Parametrization):
    """The path `x = x0 + sigma z`, with the scalings of Karras et al. 2022, table 1.

    With a boundary, x0 is x itself at that noise level: `f(x, boundary) = x`, as consistency models
    need it (Song et al. 2023, appendix C). Without one, x0 is a denoiser's estimate.

    Attributes:
        sigma_data: standard deviation of the data.
        boundary: noise level at which the network's x0 is x itself; 0 for a denoiser.
        time_factor: the network's time is `time_factor log(sigma)`: 0.25 in EDM, 250 in the
            released consistency models.
        sign: 1, or -1 for a network that returns the negative of EDM's.
    """

    sigma_data: float = 0.5
    boundary: float = 0.0
    time_factor: float = EDM_TIME_FACTOR
    sign: int = 1

    def level(self, ratio: jax.Array) -> NoiseLevel:
        """Returns time, alpha = 1 and sigma = `ratio`, in the shape of `ratio`."""
        return NoiseLevel(self.time(ratio), jnp.ones_like(ratio), ratio)

    def path(self, time: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns (1, sigma), in the shape of `time`."""
        return jnp.ones_like(time), jnp.exp(time / self.time_factor)

    def time(self, ratio: jax.Array) -> jax.Array:
        """Returns `time_factor log(sigma)`; sigma = 0 counts as 1e-44, as in the reference."""
        # The reference adds 1e-44. In float32 that is subnormal, which many devices flush to zero.
        positive = jnp.where(ratio > 0, ratio, 1)
        return self.time_factor * jnp.where(ratio > 0, jnp.log(positive), math.log(1e-44))

    def scalings(self, alpha: Any, sigma: Any) -> Scalings:
        """Returns (c_in, c_skip, c_out), in the shape of `sigma`."""
        del alpha  # is 1 on this path

        # At sigma = boundary the distance is 0, so c_skip = 1 and c_out = 0: x0 is x exactly.
        distance = sigma - self.boundary
        c_in = 1 / jnp.sqrt(jnp.square(sigma) + self.sigma_data**2)
        c_skip = self.sigma_data**2 / (jnp.square(distance) + self.sigma_data**2)
        c_out = self.sign * distance * self.sigma_data * c_in
        return Scalings(c_in, c_skip, c_out)

    def without_boundary(self) -> Self:
        """Returns the parametrization that reads the same network as a denoiser."""
        return dataclasses.replace(self, boundary=0.0)

"""Networks of variance-exploding diffusion, as `KarrasVeScheduler` runs them."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from cmjax.parametrization.base import NoiseLevel, Parametrization, Scalings


@dataclasses.dataclass(frozen=True)
class KarrasVe(Parametrization):
    """The path `x = x0 + sigma z`; the network sees x as it is, and returns the negative noise.

    `x0 = x + sigma F` (Karras et al. 2022, table 1, column VE). The network's time input is
    `sigma / 2`, the noise level of the same images in [0, 1], on which these networks were trained
    (Song et al. 2021, arXiv 2011.13456).
    """

    def level(self, ratio: jax.Array) -> NoiseLevel:
        """Returns time, alpha = 1 and sigma = `ratio`, in the shape of `ratio`."""
        return NoiseLevel(ratio / 2, jnp.ones_like(ratio), ratio)

    @property
    def time_range(self) -> tuple[float, float]:
        """The lowest and highest time that the network may be given."""
        return 0.0, math.inf

    def path(self, time: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns (1, sigma), in the shape of `time`."""
        return jnp.ones_like(time), 2 * time

    def scalings(self, alpha: Any, sigma: Any) -> Scalings:
        """Returns (1, 1, sigma)."""
        del alpha  # is 1 on this path
        return Scalings(1.0, 1.0, sigma)

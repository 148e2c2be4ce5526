"""Networks of the two stochastic differential equations of Song et al. 2021."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from cmjax.parametrization.base import NoiseLevel, Parametrization, Scalings

VP_TIME_FACTOR = 999.0  # the time embedding of continuously trained models in score_sde


@dataclasses.dataclass(frozen=True)
class VESDE(Parametrization):
    """The variance-exploding path `x = x0 + sigma z`; the network returns the score.

    The network's time input is sigma itself. The network sees the sample as it is. The score of the
    noised data is `(E[x0 | x] - x) / sigma^2`, so that `x0 = x + sigma^2 F`.
    """

    def level(self, ratio: jax.Array) -> NoiseLevel:
        """Returns time, alpha = 1 and sigma = `ratio`, in the shape of `ratio`."""
        return NoiseLevel(ratio, jnp.ones_like(ratio), ratio)

    @property
    def time_range(self) -> tuple[float, float]:
        """The lowest and highest time that the network may be given."""
        return 0.0, math.inf

    def path(self, time: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns (1, sigma), in the shape of `time`."""
        return jnp.ones_like(time), time

    def scalings(self, alpha: Any, sigma: Any) -> Scalings:
        """Returns (c_in, c_skip, c_out), that is (1, 1, sigma^2)."""
        del alpha  # is 1 on this path
        return Scalings(1.0, 1.0, jnp.square(sigma))


@dataclasses.dataclass(frozen=True)
class VPSDE(Parametrization):
    """The variance-preserving path in continuous time; the network predicts the noise.

    `x = alpha x0 + sigma z` with `alpha^2 = exp(-int_0^t beta)` and `alpha^2 + sigma^2 = 1`, where
    `beta(t) = beta_min + t (beta_max - beta_min)` and t is in (0, 1]. The network's time input is
    999 t. The network sees the sample as it is. The score is `-F / sigma`.

    Attributes:
        beta_min: beta at t = 0.
        beta_max: beta at t = 1.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def beta(self, time: jax.Array) -> jax.Array:
        """Returns beta at the network's times, in the shape of `time`."""
        t = time / VP_TIME_FACTOR
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def integral(self, t: Any) -> Any:
        """Returns the integral of beta from 0 to t, which is -log(alpha^2), in the shape of `t`."""
        return t * (self.beta_min + t * (self.beta_max - self.beta_min) / 2)

    def level(self, ratio: jax.Array) -> NoiseLevel:
        """Returns time, alpha and sigma where sigma / alpha is `ratio`, in the shape of `ratio`."""
        alpha = 1 / jnp.sqrt(1 + jnp.square(ratio))

        # beta_min t + (beta_max - beta_min) t^2 / 2 = -log(alpha^2), solved for t. This form of the
        # root also holds for equal betas, and loses no digits for small t.
        integral = jnp.log1p(jnp.square(ratio))
        growth = self.beta_max - self.beta_min
        root = jnp.sqrt(self.beta_min**2 + 2 * growth * integral)
        t = 2 * integral / (self.beta_min + root)
        return NoiseLevel(VP_TIME_FACTOR * t, alpha, ratio * alpha)

    @property
    def time_range(self) -> tuple[float, float]:
        """The lowest and highest time that the network may be given."""
        return 0.0, VP_TIME_FACTOR

    def path(self, time: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns (alpha, sigma), in the shape of `time`."""
        # Song et al. 2021, equation 33.
        integral = self.integral(time / VP_TIME_FACTOR)

        # Near t = 0, 1 - alpha^2 would be a difference of almost equal numbers.
        return jnp.exp(-integral / 2), jnp.sqrt(-jnp.expm1(-integral))

    def scalings(self, alpha: Any, sigma: Any) -> Scalings:
        """Returns (c_in, c_skip, c_out) of predicted noise, (1, 1 / alpha, -sigma / alpha)."""
        return Scalings(1.0, 1 / alpha, -sigma / alpha)

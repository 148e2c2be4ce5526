"""Shared base of samplers on `x0 + sigma z` with the options `sigma_min` and `sigma_max`."""

from typing import Any

import jax
import jax.numpy as jnp

from cmjax.schedulers.checks import check_sigma_order
from cmjax.schedulers.levels import exponential_sigmas
from cmjax.schedulers.table import TableScheduler, TableState


class ExplodingScheduler(TableScheduler):
    """A sampler of a variance-exploding path, `x = x0 + sigma z`, from sigma_max down.

    Subclasses are dataclasses that declare the fields `sigma_min` and `sigma_max`, the lowest and
    the highest noise level. These are not fields of this class, since the order of fields is that
    of diffusers, and differs from class to class.
    """

    # Declared for type checkers; the subclasses make them fields.
    sigma_min: float
    sigma_max: float

    # float32 holds their squares.
    _domains = {"sigma_min": (1e-18, 1e18), "sigma_max": (1e-18, 1e18)}

    def __post_init__(self):
        super().__post_init__()
        check_sigma_order(self.sigma_min, self.sigma_max)

    @property
    def sigma_range(self) -> tuple[float, float]:
        """The noise levels that the network knows, (sigma_min, sigma_max)."""
        return self.sigma_min, self.sigma_max

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the initial noise, `sigma_max`."""
        return self.sigma_max

    def exponential_sigmas(self, places: Any) -> jax.Array:
        """Returns the noise levels in equal steps of log sigma, f32[n].

        Args:
            places: f[n], from 0 at sigma_max to 1 at sigma_min.
        """
        sigmas = exponential_sigmas(places, self.sigma_min, self.sigma_max)
        return jnp.asarray(sigmas, jnp.float32)

    def first_scale(self, state: TableState) -> jax.Array:
        """Returns sigma of the first level, f32[]: below sigma_max if the run starts lower."""
        # Noise alone: the data's own variance is left out, as in the papers' code. EDM's
        # solvers add it, as in diffusers.
        return state.sigma

"""What samplers of flow-matching models share: straight paths, and levels shifted towards noise."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from cmjax.parametrization import FlowMatching
from cmjax.schedulers.levels import Levels, append_zero, check_num_steps, parse_levels, ramp
from cmjax.schedulers.table import TableScheduler

_SIGMA_RANGE = (1e-6, 1e6)  # of sigma / (1 - sigma); at sigma = 1 it would be infinite


def shifted(sigmas: Any, shift: float) -> Any:
    """Returns flow times moved towards noise, `s t / (1 + (s - 1) t)`.

    Equation 23 of Esser et al. 2024.
    """
    return sigmas / (sigmas + (1 - sigmas) / shift)  # 1 stays 1 exactly, not above it


@dataclasses.dataclass(frozen=True)
class FlowScheduler(TableScheduler):
    """A sampler of flow matching: `x = (1 - sigma) x0 + sigma z`; the network returns `z - x0`.

    The network is told `N sigma`. `set_timesteps` takes as `num_inference_steps` a number of
    levels, equally spaced before they are shifted; as `timesteps` N times the levels before the
    shift; as `sigmas` the levels before the shift, in (0, 1]. Sampling ends at 0.

    Attributes:
        num_train_timesteps: number N.
        shift: of the levels towards noise (Esser et al. 2024, equation 23); 1 is none.
    """

    num_train_timesteps: int = 1000
    shift: float = 1.0

    _domains = {"num_train_timesteps": (1, 1_000_000), "shift": (1e-6, 1e6)}

    @property
    def parametrization(self) -> FlowMatching:
        """The straight path."""
        return FlowMatching(self.num_train_timesteps)

    @property
    def sigma_range(self) -> tuple[float, float]:
        """The lowest and highest `sigma / (1 - sigma)`."""
        return _SIGMA_RANGE

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the initial noise, 1."""
        return 1.0

    def levels(self, name: str, value: Any) -> Levels:
        """Returns the shifted levels, and then 0."""
        unshifted = self.unshifted_sigmas(name, value)
        return self.levels_of(shifted(unshifted, self.shift))

    def unshifted_sigmas(self, name: str, value: Any, lowest: float | None = None) -> jax.Array:
        """Returns the noise levels before the shift, f32[n].

        Args:
            name: which argument of `set_timesteps` was given.
            value: its value.
            lowest: the last of n spaced levels, which begin at 1; None for 1/n.

        Raises:
            ValueError: for an invalid value.
        """
        if name == "num_inference_steps":
            n = check_num_steps(value, self.num_train_timesteps, "num_train_timesteps")
            lowest = 1 / n if lowest is None else lowest
            return jnp.asarray(1 - (1 - lowest) * ramp(n), jnp.float32)
        scale = 1 if name == "sigmas" else self.num_train_timesteps
        return parse_levels(name, value, 1e-6 * scale, scale) / scale

    def levels_of(self, sigmas: jax.Array) -> Levels:
        """Returns the levels of a run over the noise levels f32[N], and then 0."""
        ending = append_zero(sigmas)
        return Levels(sigmas * self.num_train_timesteps, 1 - ending, ending)

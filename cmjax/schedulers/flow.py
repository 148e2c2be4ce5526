"""Shared base of samplers for flow-matching models: straight paths, shifted noise levels."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from cmjax.parametrization import FlowMatching
from cmjax.schedulers.facts import Facts
from cmjax.schedulers.levels import Levels, append_zero, check_num_steps, parse_levels, ramp
from cmjax.schedulers.table import TableScheduler

# The range of sigma / (1 - sigma), which would be infinite at sigma = 1.
SIGMA_RANGE = (1e-6, 1e6)


def shifted(sigmas: Any, shift: Any) -> Any:
    """Returns noise levels t moved towards noise by the shift s, `s t / (1 + (s - 1) t)`.

    Equation 23 of Esser et al. 2024.
    """
    # Written so that 1 stays exactly 1; rounding could lift it above, where alpha is negative.
    return sigmas / (sigmas + (1 - sigmas) / shift)


def stretched(sigmas: jax.Array, terminal: float) -> jax.Array:
    """Returns levels f32[N], from 1 down, stretched so that the lowest is `terminal`."""
    low = sigmas[-1]

    # 1 - (1 - sigmas) (1 - terminal) / (1 - low), written so that small results lose nothing to
    # rounding.
    stretched = (sigmas - low + terminal * (1 - sigmas)) / jnp.where(low < 1, 1 - low, 1)

    # A single level, pure noise, has nothing to stretch.
    return jnp.where(low < 1, stretched, sigmas)


@dataclasses.dataclass(frozen=True)
class FlowScheduler(TableScheduler):
    """A sampler of flow matching: `x = (1 - sigma) x0 + sigma z`; the network returns `z - x0`.

    The network's time input is `N sigma`. `set_timesteps` takes as `num_inference_steps` a number
    of levels, equally spaced before they are shifted; as `timesteps` N times the levels before the
    shift; as `sigmas` the levels before the shift, in (0, 1]. Sampling ends at 0.

    Attributes:
        num_train_timesteps: number N, the scale of the network's time.
        shift: how far the levels are moved towards noise (Esser et al. 2024, equation 23); 1 is not
            at all.
    """

    num_train_timesteps: int = 1000
    shift: float = 1.0

    facts = Facts(predicts="z - x0", levels="1 to 0, shifted")
    _domains = {"num_train_timesteps": (1, 1_000_000), "shift": (1e-6, 1e6)}

    @property
    def parametrization(self) -> FlowMatching:
        """The straight path, with the network's time `N sigma`."""
        return FlowMatching(self.num_train_timesteps)

    @property
    def sigma_range(self) -> tuple[float, float]:
        """The lowest and highest `sigma / (1 - sigma)`."""
        return SIGMA_RANGE

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the initial noise, 1."""
        return 1.0

    def levels(self, name: str, value: Any) -> Levels:
        """Returns the shifted levels, ending at 0."""
        unshifted = unshifted_sigmas(self.num_train_timesteps, name, value)
        return flow_levels(self.parametrization, shifted(unshifted, self.shift))


def unshifted_sigmas(
    num_train_timesteps: int, name: str, value: Any, lowest: float | None = None
) -> jax.Array:
    """Returns the noise levels before the shift, f32[n].

    Args:
        num_train_timesteps: number N, the scale of times.
        name: which argument of `set_timesteps` was given.
        value: its value.
        lowest: the last of n equally spaced levels, which begin at 1; None for 1/n.

    Raises:
        ValueError: for an invalid value.
    """
    if name == "num_inference_steps":
        n = check_num_steps(value, num_train_timesteps, "num_train_timesteps")

        # 1, 1 - 1/n, ..., 1/n by default: n steps of equal length down to 0.
        lowest = 1 / n if lowest is None else lowest
        return jnp.asarray(1 - (1 - lowest) * ramp(n), jnp.float32)

    return explicit_sigmas(num_train_timesteps, name, value)


def explicit_sigmas(num_train_timesteps: int, name: str, value: Any) -> jax.Array:
    """Returns the noise levels that a caller gave, before the shift, f32[n].

    Args:
        num_train_timesteps: number N, the scale of times.
        name: "sigmas", or "timesteps" for N times the levels.
        value: the levels or times, descending.

    Raises:
        ValueError: for an invalid value.
    """
    # A network call at level 0 would divide by sigma = 0; only the end of a run may be 0.
    scale = 1 if name == "sigmas" else num_train_timesteps
    return parse_levels(name, value, 1e-6 * scale, scale) / scale


def flow_levels(parametrization: FlowMatching, fractions: jax.Array) -> Levels:
    """Returns the levels of a run at f32[N] fractions of the way to noise, ending at 0."""
    ending = append_zero(fractions)
    sigmas = parametrization.noise_scale * ending
    return Levels(parametrization.time_of(fractions), 1 - ending, sigmas)

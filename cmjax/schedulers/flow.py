"""What samplers of flow-matching models share: straight paths, and levels shifted towards noise."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from cmjax.schedulers.levels import check_count, descending, exactly_one, ramp
from cmjax.schedulers.linear import LinearScheduler


def shifted(sigmas: Any, shift: float) -> Any:
    """Returns flow times moved towards noise: `s t / (1 + (s - 1) t)` (Esser et al. 2024, equation 23)."""
    return sigmas / (sigmas + (1 - sigmas) / shift)  # 1 stays 1 exactly, not above it


@dataclasses.dataclass(frozen=True)
class FlowScheduler(LinearScheduler):
    """A sampler of flow matching: `x = (1 - sigma) x0 + sigma z`; the network returns `z - x0`, told N sigma.

    Attributes:
        num_train_timesteps: number N.
        shift: of the levels towards noise (Esser et al. 2024, equation 23); 1 is none.
    """

    num_train_timesteps: int = 1000
    shift: float = 1.0

    _domains = {"num_train_timesteps": (1, 1_000_000), "shift": (1e-6, 1e6)}

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the initial noise, 1."""
        return 1.0

    def path(self, times: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns (1 - sigma, sigma) at what the network is told, of its shape."""
        return 1 - times / self.num_train_timesteps, times / self.num_train_timesteps

    def preconditioning(self, alphas: jax.Array, sigmas: jax.Array) -> tuple[Any, Any, Any]:
        """Returns (c_in, c_skip, c_out) = (1, 1, -sigma)."""
        return 1.0, 1.0, -sigmas

    def levels(
        self, n: int | None, timesteps: Any, sigmas: Any, lowest: float | None = None
    ) -> jax.Array:
        """Returns the noise levels before the shift, f32[n], from exactly one argument: n from 1 to `lowest`, or 1/n.

        Raises:
            ValueError: unless exactly one is given, and valid.
        """
        name, value = exactly_one(num_inference_steps=n, timesteps=timesteps, sigmas=sigmas)
        if name == "num_inference_steps":
            n = check_count(value, self.num_train_timesteps, "num_train_timesteps")
            lowest = 1 / n if lowest is None else lowest
            return jnp.asarray(1 - (1 - lowest) * ramp(n), jnp.float32)
        scale = 1 if name == "sigmas" else self.num_train_timesteps
        return descending(name, value, 1e-6 * scale, scale) / scale

    def ending_at_zero(self, levels: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns (times, alphas, sigmas) of a run over these noise levels and then 0, for `new_state`."""
        sigmas = jnp.append(levels, jnp.zeros(1, levels.dtype))
        return levels * self.num_train_timesteps, 1 - sigmas, sigmas

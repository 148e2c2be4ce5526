"""Latent consistency sampling (Luo et al. 2023, arXiv 2310.04378)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cmjax.arrays import combine
from cmjax.configs import is_finite
from cmjax.schedulers.bounded import BoundedDiscreteScheduler
from cmjax.schedulers.levels import check_count
from cmjax.schedulers.linear import LinearState, rows

_SIGMA_DATA = 0.5  # of the boundary condition; fixed in the paper's code


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class DistilledScheduler(BoundedDiscreteScheduler):
    """Training times of a model that was distilled on a coarse grid of them: LCM and TCD.

    Attributes:
        original_inference_steps: number of times on the grid that the model was distilled on; the steps
            of a run are taken from it.
        timestep_scaling: factor on t in LCM's boundary condition; of no effect on TCD, whose configs in diffusers
            have it too.

    Others as in `BoundedDiscreteScheduler`; `timestep_spacing` and `steps_offset` have no effect, as in the
    reference.
    """

    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    original_inference_steps: int = 50
    timestep_scaling: float = 10.0

    _domains = {"original_inference_steps": (1, 1_000_000), "timestep_scaling": (1e-6, 1e6)}

    def __post_init__(self):
        super().__post_init__()
        if self.original_inference_steps > self.num_train_timesteps:
            raise ValueError(
                f"original_inference_steps {self.original_inference_steps} must be at most num_train_timesteps "
                f"{self.num_train_timesteps}"
            )

    def distilled_times(self, n: int | None, strength: float, **levels: Any) -> jax.Array:
        """Returns f32[N] training times: n of the distilled ones, the noisiest at `strength` of the way, or `levels`.

        Raises:
            ValueError: for more steps than there are on the grid, or a strength outside of (0, 1].
        """
        if not is_finite(strength) or not 0 < strength <= 1:
            raise ValueError(f"strength must be a number above 0 and at most 1, got {strength!r}")
        if n is None or any(value is not None for value in levels.values()):
            if strength != 1:
                raise ValueError(
                    "strength shortens num_inference_steps; with timesteps, start the list lower instead"
                )
            return self.times(n, **levels)
        stride = self.num_train_timesteps // self.original_inference_steps
        grid = np.arange(int(self.original_inference_steps * strength), 0, -1) * stride - 1
        n = check_count(n, len(grid), "original_inference_steps * strength")
        return self.times(
            timesteps=grid[np.floor(np.linspace(0, len(grid), n, endpoint=False)).astype(int)]
        )


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class LCMScheduler(DistilledScheduler):
    """Sampler of latent consistency models (Luo et al. 2023, Algorithm 3).

    `x' = alpha' f(x, t) + sigma' z`, where `f = c_skip(t) x + c_out(t) x0` keeps the boundary condition.

    Attributes as in `DistilledScheduler`. Sampling ends at f(x, t), whatever `set_alpha_to_one` says, as in the
    reference.
    """

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        *,
        timesteps: Any = None,
        sigmas: Any = None,
        strength: float = 1.0,
    ) -> LinearState:
        """Returns the state at the start of a run; give exactly one of the number of steps and training times.

        Args:
            num_inference_steps: number of times from the grid of `original_inference_steps`.
            timesteps: training times, descending.
            sigmas: not supported.
            strength: start at this share of the grid, from a noised image: `add_noise(state, image, noise)`.

        Raises:
            ValueError: for neither or both, or for values that break the rules above.
        """
        times = self.distilled_times(
            num_inference_steps, strength, timesteps=timesteps, sigmas=sigmas
        )
        alphas, sigmas = self.path(times)
        alphas, sigmas = (
            jnp.append(alphas, jnp.ones(1, alphas.dtype)),
            jnp.append(sigmas, jnp.zeros(1, sigmas.dtype)),
        )
        return self.new_state(times, alphas, sigmas, rows(alphas[1:], 0.0, sigmas[1:]))

    def denoise(self, state: LinearState, model_output: jax.Array, sample: jax.Array) -> jax.Array:
        """Returns f(x, t), `[B, ...]`: the x0 estimate, bounded if so configured, under the boundary condition."""
        c_skip, c_out = self.get_scalings_for_boundary_condition(state.timesteps[state.step_index])
        return combine((c_out, super().denoise(state, model_output, sample)), (c_skip, sample))

    def get_scalings_for_boundary_condition(
        self, timestep: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Returns (c_skip, c_out) with f(x, 0) = x, of the shape of `timestep` (section 4.1)."""
        t = timestep * self.timestep_scaling
        total = jnp.square(t) + _SIGMA_DATA**2
        return _SIGMA_DATA**2 / total, t / jnp.sqrt(total)

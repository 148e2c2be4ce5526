"""Multistep consistency sampling (Song et al. 2023, Algorithm 1)."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cmjax.arrays import combine
from cmjax.schedulers.levels import check_count, descending, exactly_one, karras_sigmas, ramp
from cmjax.schedulers.linear import LinearScheduler, LinearState, root_of_difference, rows


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class CMStochasticIterativeScheduler(LinearScheduler):
    """One-step and multistep sampling of consistency models.

    Every step jumps to an x0 estimate and adds fresh noise to land on the next level:
    `x' = f(x, sigma) + sqrt(sigma'^2 - sigma_min^2) z` ("Consistency Models", Song, Dhariwal, Chen
    and Sutskever 2023, Algorithm 1). Levels lie on the grid of Karras et al. 2022, equation 5.

    Attributes:
        num_train_timesteps: number N of levels of the training grid; 40 for the released distilled models.
        sigma_min: lowest noise level; where sampling ends, and the epsilon of the boundary condition.
        sigma_max: highest noise level, where sampling starts.
        sigma_data: standard deviation of the data (EDM).
        s_noise: factor on the noise added between steps; 1 is the algorithm, up to 1.011 adds detail.
        rho: curvature of the level grid.
        clip_denoised: clip x0 estimates to [-1, 1].
        timestep_spacing: how `num_inference_steps` picks from the grid: "linspace" (rounded, equally
            spaced) or "leading" (the integer stride of diffusers).

    Raises:
        ValueError: for values outside their domain, or `sigma_min >= sigma_max`.
    """

    num_train_timesteps: int = 40
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    sigma_data: float = 0.5
    s_noise: float = 1.0
    rho: float = 7.0
    clip_denoised: bool = True
    timestep_spacing: str = "linspace"

    _diffusers_defaults = {"timestep_spacing": "leading"}
    _domains = {
        "num_train_timesteps": (1, 1_000_000),
        **dict.fromkeys(
            ("sigma_min", "sigma_max", "sigma_data"), (1e-18, 1e18)
        ),  # float32 holds their squares
        "s_noise": (0.0, 1e18),
        "rho": (0.1, 1000.0),  # float64 holds sigma ** (1 / rho)
        "timestep_spacing": ("linspace", "leading"),
    }

    def __post_init__(self):
        super().__post_init__()
        if self.sigma_min >= self.sigma_max:
            raise ValueError(
                f"sigma_min {self.sigma_min} must be less than sigma_max {self.sigma_max}"
            )

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the initial noise, `sigma_max`."""
        return self.sigma_max

    def grid(self) -> np.ndarray:
        """Returns the N training levels, f64[N] from `sigma_max` down to `sigma_min`."""
        return karras_sigmas(
            ramp(self.num_train_timesteps), self.sigma_min, self.sigma_max, self.rho
        )

    def set_timesteps(
        self, num_inference_steps: int | None = None, *, timesteps: Any = None, sigmas: Any = None
    ) -> LinearState:
        """Returns the state at the start of a run; give exactly one argument.

        Args:
            num_inference_steps: number of equally spaced indices into the training grid.
            timesteps: indices into the grid counted from the noisy end, in strictly descending
                order as diffusers wants them: `[22, 0]` is sigma_max, then level 22.
            sigmas: noise levels in strictly descending order, in `[sigma_min, sigma_max]`.

        Returns:
            A state with `sigmas` f32[N+1] (ending at `sigma_min`), `timesteps` f32[N], `step_index` 0.
            Arrays may be traced; their values are then taken on trust.

        Raises:
            ValueError: if not exactly one argument is given, or for values that break the rules above.
        """
        name, value = exactly_one(
            num_inference_steps=num_inference_steps, timesteps=timesteps, sigmas=sigmas
        )
        total, grid = self.num_train_timesteps, jnp.asarray(self.grid(), jnp.float32)
        if name == "sigmas":
            levels = descending(name, value, self.sigma_min, self.sigma_max)
        elif name == "timesteps":
            indices = descending(
                name,
                value,
                0,
                total - 1,
                integers=True,
                way_out="; sigmas=[...] takes noise levels",
            )
            levels = grid[indices[::-1].astype(jnp.int32)]
        else:
            n = check_count(
                value, total, "num_train_timesteps", "; sigmas=[...] takes any number of levels"
            )
            leading = self.timestep_spacing == "leading"
            levels = grid[
                np.arange(n) * (total // n)
                if leading
                else np.round(np.arange(n) * total / n).astype(int)
            ]
        sigmas = jnp.append(levels, jnp.float32(self.sigma_min))
        return self.new_state(
            self.sigma_to_t(levels), jnp.ones_like(sigmas), sigmas, self.weights(sigmas)
        )

    def weights(self, sigmas: jax.Array) -> jax.Array:
        """Rows of Algorithm 1, `x' = x0 + sqrt(sigma'^2 - sigma_min^2) z`, for levels f32[N+1]."""
        return rows(1.0, 0.0, self.s_noise * root_of_difference(sigmas[1:], self.sigma_min))

    def path(self, times: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns (1, sigma) at `times`, of their shape."""
        return jnp.ones_like(times), jnp.exp(times / 250)

    def preconditioning(self, alphas: jax.Array, sigmas: jax.Array) -> tuple[Any, Any, Any]:
        """Returns (c_in, c_skip, c_out) with the boundary condition, of the shape of `sigmas`."""
        return self.get_input_scaling(sigmas), *self.get_scalings_for_boundary_condition(sigmas)

    def bound(self, denoised: jax.Array) -> jax.Array:
        """Returns the x0 estimate, clipped if so configured."""
        return jnp.clip(denoised, -1, 1) if self.clip_denoised else denoised

    def init_sample(self, state: LinearState, noise: jax.Array) -> jax.Array:
        """Returns `sigma * noise` at the first level, which explicit levels may place below sigma_max."""
        return combine((state.sigma, noise))

    def get_input_scaling(self, sigma: jax.Array) -> jax.Array:
        """Returns `c_in = 1 / sqrt(sigma^2 + sigma_data^2)` (Karras et al. 2022, table 1)."""
        return 1 / jnp.sqrt(jnp.square(sigma) + self.sigma_data**2)

    def get_scalings(self, sigma: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns EDM's `(c_skip, c_out)` (Karras et al. 2022, table 1), of the shape of `sigma`."""
        return self._scalings(sigma, sigma)

    def get_scalings_for_boundary_condition(self, sigma: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns `(c_skip, c_out)` with f(x, sigma_min) = x (Song et al. 2023, Appendix C)."""
        return self._scalings(sigma, sigma - self.sigma_min)

    def _scalings(self, sigma, distance):
        c_skip = self.sigma_data**2 / (jnp.square(distance) + self.sigma_data**2)
        return c_skip, distance * self.sigma_data * self.get_input_scaling(sigma)

    def sigma_to_t(self, sigma: jax.Array) -> jax.Array:
        """Returns the network's time `1000 * 0.25 * log(sigma + 1e-44)`, of the shape of `sigma`."""
        # 1e-44 is subnormal in float32 and flushed to zero on many devices; it matters at sigma = 0 only.
        positive = jnp.where(sigma > 0, sigma, 1)
        return 250 * jnp.where(sigma > 0, jnp.log(positive), math.log(1e-44))

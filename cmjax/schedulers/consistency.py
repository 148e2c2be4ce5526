"""Multistep consistency sampling (Song et al. 2023, Algorithm 1)."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cmjax.configs import is_finite, is_int
from cmjax.schedulers.base import (
    Scheduler,
    SchedulerState,
    check_shapes,
    combine,
    concrete,
)
from cmjax.schedulers.levels import exactly_one, karras_sigmas

_SPACINGS = ("linspace", "leading")
_LARGEST = 1e18  # float32 holds its square
_MOST_LEVELS = 1_000_000
_DOMAINS = {
    "sigma_min": (1 / _LARGEST, _LARGEST),
    "sigma_max": (1 / _LARGEST, _LARGEST),
    "sigma_data": (1 / _LARGEST, _LARGEST),
    "rho": (0.1, 1000.0),  # float64 holds sigma ** (1 / rho)
}


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class CMStochasticIterativeScheduler(Scheduler[SchedulerState]):
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

    def __post_init__(self):
        if not is_int(self.num_train_timesteps, 1) or self.num_train_timesteps > _MOST_LEVELS:
            raise ValueError(
                f"num_train_timesteps must be a positive integer up to {_MOST_LEVELS}, got {self.num_train_timesteps!r}"
            )
        for name, (low, high) in _DOMAINS.items():
            value = getattr(self, name)
            if not is_finite(value) or value <= 0:
                raise ValueError(f"{name} must be positive and finite, got {value!r}")
            if not low <= value <= high:
                raise ValueError(f"{name} must be between {low:g} and {high:g}, got {value!r}")
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min {self.sigma_min} must be less than sigma_max {self.sigma_max}")
        if not is_finite(self.s_noise) or not 0 <= self.s_noise <= _LARGEST:
            raise ValueError(f"s_noise must be finite, not negative and at most {_LARGEST:g}, got {self.s_noise!r}")
        if not isinstance(self.clip_denoised, bool):
            raise ValueError(f"clip_denoised must be true or false, got {self.clip_denoised!r}")
        if self.timestep_spacing not in _SPACINGS:
            raise ValueError(f"timestep_spacing must be one of {_SPACINGS}, got {self.timestep_spacing!r}")

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the initial noise, `sigma_max`."""
        return self.sigma_max

    def grid(self) -> np.ndarray:
        """Returns the N training levels, f64[N] from `sigma_max` down to `sigma_min`."""
        ramp = np.arange(self.num_train_timesteps) / max(self.num_train_timesteps - 1, 1)
        return karras_sigmas(ramp, self.sigma_min, self.sigma_max, self.rho)

    def set_timesteps(
        self, num_inference_steps: int | None = None, *, timesteps: Any = None, sigmas: Any = None
    ) -> SchedulerState:
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
        exactly_one(num_inference_steps=num_inference_steps, timesteps=timesteps, sigmas=sigmas)
        if num_inference_steps is not None:
            levels = self.grid()[self._spaced_indices(num_inference_steps)]
        elif timesteps is not None:
            levels = _take(self.grid(), self._check_timesteps(timesteps))
        else:
            levels = self._check_sigmas(sigmas)
        return SchedulerState(
            sigmas=jnp.append(_as_float32(levels), jnp.float32(self.sigma_min)),
            timesteps=self.sigma_to_t(_as_float32(levels)),
            step_index=jnp.zeros((), jnp.int32),
        )

    def init_sample(self, state: SchedulerState, noise: jax.Array) -> jax.Array:
        """Returns `sigma * noise` at the first level, which explicit levels may place below sigma_max."""
        return combine((state.sigma, noise))

    def scale_input(self, state: SchedulerState, sample: jax.Array) -> jax.Array:
        """Returns `sample / sqrt(sigma^2 + sigma_data^2)`, `[B, ...]` in the sample's dtype."""
        return combine((self.get_input_scaling(state.sigma), sample))

    def denoise(self, state: SchedulerState, model_output: jax.Array, sample: jax.Array) -> jax.Array:
        """Returns the x0 estimate `c_out * model_output + c_skip * sample`, clipped if so configured.

        Args:
            state: the run; its level is `state.sigma`.
            model_output: what the network returned, `[B, ...]`.
            sample: the sample at this level, `[B, ...]`; its dtype is kept.

        Raises:
            ValueError: if the shapes differ.
        """
        check_shapes(model_output=model_output, sample=sample)
        c_skip, c_out = self.get_scalings_for_boundary_condition(state.sigma)
        denoised = combine((c_skip, sample), (c_out, model_output))
        return jnp.clip(denoised, -1, 1) if self.clip_denoised else denoised

    def advance(
        self, state: SchedulerState, sample: jax.Array, denoised: jax.Array, noise: jax.Array
    ) -> tuple[SchedulerState, jax.Array]:
        """Noises the x0 estimate to the next level (Algorithm 1); adds exactly nothing on the last step.

        Args:
            state: the run.
            sample: the sample at this level, `[B, ...]`; unused by this sampler except for its shape.
            denoised: the x0 estimate, `[B, ...]`.
            noise: standard normal, `[B, ...]`.

        Returns:
            The state of the next step, and the sample `[B, ...]` at its level.

        Raises:
            ValueError: if the shapes differ, or the run has already ended.
        """
        check_shapes(sample=sample, denoised=denoised, noise=noise)
        sigma = jnp.clip(state.next_sigma, self.sigma_min, self.sigma_max)
        # Factored: a fused multiply-add of sigma^2 - sigma_min^2 would not be zero at sigma_min.
        variance = (sigma - self.sigma_min) * (sigma + self.sigma_min)
        noise_scale = jnp.where(variance > 0, self.s_noise * jnp.sqrt(jnp.where(variance > 0, variance, 1)), 0)
        return state.replace(step_index=state.step_index + 1), combine((1, denoised), (noise_scale, noise))

    def add_noise(self, state: SchedulerState, original: jax.Array, noise: jax.Array) -> jax.Array:
        """Returns `original + sigma * noise` at the state's current level, `[B, ...]`.

        Raises:
            ValueError: if the shapes differ.
        """
        check_shapes(original=original, noise=noise)
        return combine((1, original), (state.sigma, noise))

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

    def _spaced_indices(self, n: int) -> np.ndarray:
        total = self.num_train_timesteps
        if not is_int(n, 1) or n > total:
            raise ValueError(
                f"num_inference_steps must be an integer from 1 to num_train_timesteps={total}, got {n!r}; "
                "sigmas=[...] takes any number of levels"
            )
        if self.timestep_spacing == "leading":
            return np.arange(n) * (total // n)
        return np.round(np.arange(n) * total / n).astype(int)

    def _check_timesteps(self, timesteps):
        if not jnp.issubdtype(jnp.result_type(_array(timesteps)), jnp.integer) or np.ndim(timesteps) != 1:
            raise ValueError(
                f"timesteps must be a list of integers, got {timesteps!r}; sigmas=[...] takes noise levels"
            )
        values = concrete(timesteps)
        if values is None:
            return timesteps[::-1]
        if values.size == 0 or values.min() < 0 or values.max() >= self.num_train_timesteps:
            raise ValueError(f"timesteps must lie in 0..{self.num_train_timesteps - 1}, got {values.tolist()}")
        if np.any(np.diff(values) >= 0):
            raise ValueError(f"timesteps must be strictly descending, such as [22, 0], got {values.tolist()}")
        return values[::-1]

    def _check_sigmas(self, sigmas):
        if np.ndim(sigmas) != 1:
            raise ValueError(f"sigmas must be a list of noise levels, got {sigmas!r}")
        values = concrete(sigmas)
        if values is None:
            return sigmas
        values = values.astype(np.float32)
        low, high = np.float32(self.sigma_min), np.float32(self.sigma_max)
        if values.size == 0 or not np.all((low <= values) & (values <= high)):  # NaN fails too
            raise ValueError(
                f"sigmas must lie in [{self.sigma_min}, {self.sigma_max}] (sigma_min, sigma_max), got {values.tolist()}"
            )
        if np.any(np.diff(values) >= 0):
            raise ValueError(f"sigmas must be strictly descending, such as [80, 0.8], got {values.tolist()}")
        return values


def _array(value: Any) -> Any:
    return value if hasattr(value, "dtype") else np.asarray(value)


def _as_float32(levels: Any) -> jax.Array:
    return jnp.asarray(levels).astype(jnp.float32)


def _take(grid: np.ndarray, indices: Any) -> Any:
    return grid[indices] if isinstance(indices, np.ndarray) else _as_float32(grid)[indices]

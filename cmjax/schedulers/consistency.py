"""Multistep consistency sampling (Song et al. 2023, Algorithm 1)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cmjax.arrays import as_reals
from cmjax.parametrization import EDM
from cmjax.parametrization.edm import CONSISTENCY_TIME_FACTOR
from cmjax.schedulers.exploding import ExplodingScheduler
from cmjax.schedulers.facts import Facts
from cmjax.schedulers.levels import (
    Levels,
    check_num_steps,
    exploding_levels,
    karras_sigmas,
    parse_levels,
    ramp,
    root_of_difference,
)
from cmjax.schedulers.weights import Weights


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class CMStochasticIterativeScheduler(ExplodingScheduler):
    """One-step and multistep sampling of consistency models.

    Every step jumps to an x0 estimate and adds fresh noise to land on the next level:
    `x' = f(x, sigma) + sqrt(sigma'^2 - sigma_min^2) z` ("Consistency Models", Song, Dhariwal, Chen
    and Sutskever 2023, Algorithm 1). Levels lie on the grid of Karras et al. 2022, equation 5.

    The network's time input is `250 log(sigma)`. `set_timesteps` takes as `num_inference_steps` a
    number of equally spaced indices into the training grid; as `timesteps` indices into that grid
    counted from the noisy end, in descending order as in diffusers (`[22, 0]` is sigma_max, then
    level 22); as `sigmas` any levels in [sigma_min, sigma_max]. Sampling ends at sigma_min.

    Example:
        >>> import cmjax
        >>> scheduler = cmjax.CMStochasticIterativeScheduler()
        >>> state = scheduler.set_timesteps(timesteps=[22, 0])
        >>> [round(sigma, 3) for sigma in state.sigmas.tolist()]  # of each call, and of the end
        [80.0, 1.382, 0.002]

    Attributes:
        num_train_timesteps: number N of levels of the training grid; 40 for the released distilled
            models.
        sigma_min: lowest noise level; where sampling ends, and where f is the identity.
        sigma_max: highest noise level, where sampling starts.
        sigma_data: standard deviation of the data (EDM).
        s_noise: factor on the noise added between steps; 1 is the algorithm, up to 1.011 adds
            detail.
        rho: curvature of the level grid.
        clip_denoised: clip x0 estimates to [-1, 1].
        timestep_spacing: how `num_inference_steps` picks from the grid: "linspace" (rounded,
            equally spaced) or "leading" (the integer stride of diffusers).

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

    facts = Facts(
        predicts="F of f = c_skip x + c_out F",
        levels="Karras, `sigma_max` to `sigma_min`",
        noise="yes",
        paper="Song et al. 2023",
    )

    # diffusers knows only the stride, so its files do not name the spacing, or name a sibling's.
    _diffusers_defaults = {"timestep_spacing": "leading"}
    _sibling_options = frozenset({"timestep_spacing"})
    _domains = {
        "num_train_timesteps": (1, 1_000_000),
        "sigma_data": (1e-18, 1e18),
        "s_noise": (0.0, 1e18),
        "rho": (0.1, 1000.0),  # float64 holds sigma ** (1 / rho)
        "timestep_spacing": ("linspace", "leading"),
    }

    @property
    def parametrization(self) -> EDM:
        """EDM's parametrization, with f(x, sigma_min) = x."""
        return EDM(self.sigma_data, self.sigma_min, CONSISTENCY_TIME_FACTOR)

    def levels(self, name: str, value: Any) -> Levels:
        """Returns the noise levels of a run, ending at sigma_min."""
        total = self.num_train_timesteps
        grid = jnp.asarray(self.training_sigmas(), jnp.float32)

        # The levels of the network calls, f32[n], descending.
        if name == "sigmas":
            sigmas = parse_levels(name, value, self.sigma_min, self.sigma_max)
        elif name == "timesteps":
            hint = "; sigmas=[...] takes noise levels"
            indices = parse_levels(name, value, 0, total - 1, integers=True, hint=hint)

            # Descending indices are ascending levels, since index 0 is sigma_max: the same indices
            # from the other end are a run.
            sigmas = grid[indices[::-1].astype(jnp.int32)]
        else:
            hint = "; sigmas=[...] takes any number of levels"
            n = check_num_steps(value, total, "num_train_timesteps", hint)
            if self.timestep_spacing == "linspace":
                indices = np.round(np.arange(n) * total / n).astype(int)
            else:  # "leading"
                indices = np.arange(n) * (total // n)
            sigmas = grid[indices]

        # Then sigma_min, where f is the identity and sampling ends.
        sigmas = jnp.append(sigmas, jnp.float32(self.sigma_min))
        return exploding_levels(self.parametrization, sigmas)

    def weights(self, levels: Levels) -> Weights:
        """Returns the table of Algorithm 1: `x' = x0 + sqrt(sigma'^2 - sigma_min^2) z`."""
        # f returns a sample at sigma_min rather than 0, hence the difference of variances.
        fresh = root_of_difference(levels.sigmas[1:], self.sigma_min)
        return Weights(x0=1.0, eps=0.0, noise=self.s_noise * fresh)

    def bound(self, denoised: jax.Array) -> jax.Array:
        """Returns the x0 estimate, clipped if so configured."""
        return jnp.clip(denoised, -1, 1) if self.clip_denoised else denoised

    def training_sigmas(self) -> np.ndarray:
        """Returns the N training levels, f64[N] from `sigma_max` down to `sigma_min`."""
        steps = ramp(self.num_train_timesteps)
        return karras_sigmas(steps, self.sigma_min, self.sigma_max, self.rho)

    def get_scalings(self, sigma: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns EDM's `(c_skip, c_out)` (Karras et al. 2022, table 1)."""
        sigma = as_reals("sigma", sigma)
        _, c_skip, c_out = self.parametrization.without_boundary().scalings(1.0, sigma)
        return c_skip, c_out

    def get_scalings_for_boundary_condition(
        self, sigma: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Returns `(c_skip, c_out)` with f(x, sigma_min) = x (Song et al. 2023, appendix C)."""
        # Not self.parametrization, which in subclasses may have no boundary.
        boundary = EDM(self.sigma_data, self.sigma_min)
        _, c_skip, c_out = boundary.scalings(1.0, as_reals("sigma", sigma))
        return c_skip, c_out

    def sigma_to_t(self, sigma: jax.Array) -> jax.Array:
        """Returns the network's time, `1000 * 0.25 * log(sigma + 1e-44)`, shaped as `sigma`."""
        return self.parametrization.time(as_reals("sigma", sigma))

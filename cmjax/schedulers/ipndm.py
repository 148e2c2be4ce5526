"""iPNDM: PNDM's multistep method without its start (Zhang and Chen 2022, Katherine Crowson)."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cmjax.parametrization import VDiffusion
from cmjax.parametrization.trigflow import MAX_ANGLE
from cmjax.schedulers.checks import check_noise_levels
from cmjax.schedulers.config_files import FileOption
from cmjax.schedulers.facts import Facts
from cmjax.schedulers.levels import (
    MOST_STEPS,
    Levels,
    append_zero,
    check_num_steps,
    parse_levels,
    root_of_difference,
)
from cmjax.schedulers.pseudo_numerical import adams_bashforth, pseudo_weights
from cmjax.schedulers.table import TableScheduler
from cmjax.schedulers.weights import Weights


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class IPNDMScheduler(TableScheduler):
    """Improved pseudo linear multistep method for networks of v-diffusion (Dance Diffusion).

    Each step is one of DDIM with a mean of this and the last three steps' eps, in a run's first
    steps of as many as there are. The means are those of equal steps: the error falls with the
    square of the step, as in PNDM (Liu et al. 2022, section 1), and with the fourth power only if
    steps are equal in sigma / alpha.

    The network predicts v on the path `x = cos(a) x0 + sin(a) z`. Its time input is
    `t = a / (pi / 2)`, from 0 to 1. `set_timesteps` takes as `num_inference_steps` a number of
    steps, at sigmas `sin(pi s / 2)^2` of equally spaced s (v-diffusion's "crash" schedule); as
    `timesteps` times t in (0, 1]; as `sigmas` noise levels sin(a) in (0, 1]. Sampling ends at 0.

    Attributes:
        trained_betas: noise levels sin(a) in (0, 1] for every run, the last being that of the end,
            or None; not betas, and taken as they are, as in diffusers.
    """

    trained_betas: tuple[float, ...] | None = None

    solves_ode = True
    facts = Facts(
        predicts="v",
        levels="angles, pi/2 to 0",
        order="2",
        memory="3",
        paper="Zhang and Chen 2022; v-diffusion",
    )

    # Files of diffusers have this too; it has no effect where times are angles.
    _file_options = {"num_train_timesteps": FileOption(1000, numbers=(1, 1_000_000))}

    def __post_init__(self):
        super().__post_init__()
        if self.trained_betas is not None:
            check_noise_levels("trained_betas", self.trained_betas)

    @property
    def parametrization(self) -> VDiffusion:
        """The path of a quarter turn."""
        return VDiffusion()

    @property
    def sigma_range(self) -> tuple[float, float]:
        """The lowest and highest sigma / alpha of the angles below a right one."""
        return 0.0, math.tan(MAX_ANGLE)

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the initial noise, 1."""
        return 1.0

    def levels(self, name: str, value: Any) -> Levels:
        """Returns the levels of the steps, and of the end."""
        if name == "timesteps":
            times = append_zero(parse_levels(name, value, 1e-6, 1))
            return Levels(times[:-1], *self.parametrization.path(times))
        if name == "sigmas":
            sigmas = append_zero(parse_levels(name, value, 1e-6, 1))
            alphas = root_of_difference(1.0, sigmas)
        else:
            # In float64: where there is little signal, alpha is a root of almost equal numbers.
            grid = self._grid(value)
            sigmas = jnp.asarray(grid, jnp.float32)
            alphas = jnp.asarray(np.sqrt((1 - grid) * (1 + grid)), jnp.float32)
        angles = jnp.arctan2(sigmas, alphas)
        return Levels(angles[:-1] * (2 / math.pi), alphas, sigmas)

    def _grid(self, n):
        """The noise levels of n steps and of the end, f64[n+1]."""
        n = check_num_steps(n, MOST_STEPS)
        if self.trained_betas is None:
            return np.sin(np.linspace(1, 0, n + 1) * (math.pi / 2)) ** 2
        steps = len(self.trained_betas) - 1
        if n != steps:
            raise ValueError(
                f"num_inference_steps must be {steps}, the steps of trained_betas, got {n}"
            )
        return np.array(self.trained_betas)

    def weights(self, levels: Levels) -> Weights:
        """Returns the table of the multistep method (Zhang and Chen 2022, "iPNDM")."""
        # Each step has one call, which is also the first one of the step.
        calls = [adams_bashforth(range(step + 1)) for step in range(len(levels.times))]

        # At pure noise alpha is 0. Only a first step starts there, and its weights do not need it.
        alpha = jnp.maximum(levels.alphas[:-1], math.cos(MAX_ANGLE))
        sigma = levels.sigmas[:-1]
        return pseudo_weights(
            calls,
            alphas=(alpha, alpha, levels.alphas[1:]),
            sigmas=(sigma, sigma, levels.sigmas[1:]),
        )

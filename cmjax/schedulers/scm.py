"""Sampling of continuous-time consistency models (Lu and Song 2024, arXiv 2410.11081)."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cmjax.parametrization import TrigFlow
from cmjax.parametrization.trigflow import MAX_ANGLE
from cmjax.schedulers.config_files import FileOption
from cmjax.schedulers.facts import Facts
from cmjax.schedulers.levels import (
    MOST_STEPS,
    Levels,
    append_zero,
    check_num_steps,
    parse_levels,
)
from cmjax.schedulers.table import TableScheduler
from cmjax.schedulers.weights import Weights

# The second angle of two steps; tuned in the paper, and diffusers' default.
_MIDDLE_ANGLE = 1.3


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class SCMScheduler(TableScheduler):
    """Multistep sampling with angles for noise levels: `x = cos(t) x0 + sin(t) sigma_data z`.

    The network sees `x / sigma_data`, and `x0 = cos(t) x - sin(t) sigma_data F` (section 3). EDM's
    noise level is `sigma_data tan(t)`. Samples have the scale of the data; in diffusers the caller
    divides them by sigma_data.

    The network's time input is the angle t. `set_timesteps` takes as `num_inference_steps` a number
    of steps: two steps are at pi/2 and 1.3, any other number is equally spaced from pi/2 to 0; as
    `timesteps` angles in (0, pi/2]; as `sigmas` EDM's noise levels. Sampling ends at angle 0, where
    the network is not called.

    Attributes:
        sigma_data: standard deviation of the data.

    Raises:
        ValueError: for values outside their domain.
    """

    sigma_data: float = 0.5

    facts = Facts(
        predicts="F of cos(t) x - sin(t) sigma_data F",
        levels="angles, pi/2 to 0",
        noise="yes",
        paper="Lu and Song 2024",
    )
    _domains = {"sigma_data": (1e-18, 1e18)}

    # Files of diffusers have these too; N has no effect where times are angles.
    _file_options = {
        "num_train_timesteps": FileOption(1000, numbers=(1, 1_000_000)),
        "prediction_type": FileOption("trigflow"),
    }

    @property
    def parametrization(self) -> TrigFlow:
        """TrigFlow's parametrization."""
        return TrigFlow(self.sigma_data)

    @property
    def sigma_range(self) -> tuple[float, float]:
        """EDM's noise levels of the angles from 0 up to the largest below pi/2."""
        return 0.0, self.sigma_data * math.tan(MAX_ANGLE)

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the initial noise, `sigma_data`."""
        return self.sigma_data

    def levels(self, name: str, value: Any) -> Levels:
        """Returns the levels of the angles, ending at angle 0."""
        # The angles of the network calls, f32[n], descending.
        if name == "timesteps":
            what = "timesteps (angles, pi/2 being 1.5707964)"
            times = parse_levels(what, value, 1e-6, math.pi / 2)
        elif name == "sigmas":
            sigmas = parse_levels(name, value, 1e-6 * self.sigma_data, 1e18)
            times = self.parametrization.time(sigmas)
        else:
            n = check_num_steps(value, MOST_STEPS)
            angles = np.linspace(math.pi / 2, 0, n + 1)[:-1]
            if n == 2:  # not pi/4, the middle
                angles = np.array([math.pi / 2, _MIDDLE_ANGLE])
            times = jnp.asarray(angles, jnp.float32)

        # pi/2 itself is allowed as an argument, but must not round up.
        times = jnp.minimum(times, MAX_ANGLE)
        alphas, sigmas = self.parametrization.path(append_zero(times))
        return Levels(times, alphas, sigmas)

    def weights(self, levels: Levels) -> Weights:
        """Returns the table of `x' = cos(t') x0 + sin(t') sigma_data z`."""
        return Weights(x0=levels.alphas[1:], eps=0.0, noise=levels.sigmas[1:])

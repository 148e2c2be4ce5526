"""Continuous-time consistency models in the TrigFlow parametrisation (Lu and Song 2024, arXiv 2410.11081)."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cmjax.schedulers.levels import check_count, descending, exactly_one
from cmjax.schedulers.linear import LinearScheduler, LinearState, rows

MAX_ANGLE = float(
    np.nextafter(np.float32(math.pi / 2), np.float32(0))
)  # float32's pi/2 is above pi/2
_MIDDLE_ANGLE = 1.3  # of two steps; tuned in the paper, and the reference's default


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class SCMScheduler(LinearScheduler):
    """Multistep sampling with angles for noise levels: `x = cos(t) x0 + sin(t) sigma_data z` (section 3).

    The network sees `x / sigma_data` and the angle t, and `x0 = cos(t) x - sin(t) sigma_data F`. EDM's noise level is
    `sigma_data tan(t)`.

    Attributes:
        num_train_timesteps: the largest number of steps; of no other effect, as in the reference.
        prediction_type: "trigflow".
        sigma_data: standard deviation of the data. Samples have the scale of the data, where in the reference the
            caller divides by sigma_data.

    Raises:
        ValueError: for values outside their domain.
    """

    num_train_timesteps: int = 1000
    prediction_type: str = "trigflow"
    sigma_data: float = 0.5

    _domains = {"num_train_timesteps": (1, 1_000_000), "sigma_data": (1e-18, 1e18)}

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the initial noise, `sigma_data`."""
        return self.sigma_data

    def set_timesteps(
        self, num_inference_steps: int | None = None, *, timesteps: Any = None, sigmas: Any = None
    ) -> LinearState:
        """Returns the state at the start of a run; give exactly one argument.

        Args:
            num_inference_steps: two steps are at pi/2 and 1.3; any other number is equally spaced from pi/2 to 0.
            timesteps: angles in (0, pi/2], descending. The end, 0, is not among them.
            sigmas: EDM noise levels instead of angles, `t = arctan(sigma / sigma_data)`.

        Raises:
            ValueError: if not exactly one is given, or for values that break the rules above.
        """
        name, value = exactly_one(
            num_inference_steps=num_inference_steps, timesteps=timesteps, sigmas=sigmas
        )
        if name == "num_inference_steps":
            n = check_count(value, self.num_train_timesteps, "num_train_timesteps")
            angles = (
                np.array([math.pi / 2, _MIDDLE_ANGLE])
                if n == 2
                else np.linspace(math.pi / 2, 0, n + 1)[:-1]
            )
            times = jnp.asarray(angles, jnp.float32)
        elif name == "timesteps":
            times = descending("timesteps (angles, pi/2 being 1.5707964)", value, 1e-6, math.pi / 2)
        else:
            times = jnp.arctan(
                descending("sigmas", value, 1e-6 * self.sigma_data, 1e18) / self.sigma_data
            )
        times = jnp.minimum(times, MAX_ANGLE)
        alphas, sigmas = self.path(jnp.append(times, jnp.zeros(1, times.dtype)))
        return self.new_state(times, alphas, sigmas, rows(alphas[1:], 0.0, sigmas[1:]))

    def path(self, times: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns (cos t, sigma_data sin t)."""
        return jnp.cos(times), self.sigma_data * jnp.sin(times)

    def preconditioning(self, alphas: jax.Array, sigmas: jax.Array) -> tuple[Any, Any, Any]:
        """Returns (c_in, c_skip, c_out) = (1 / sigma_data, cos t, -sigma_data sin t)."""
        return 1 / self.sigma_data, alphas, -sigmas

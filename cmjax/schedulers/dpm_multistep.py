"""DPM-Solver++ 2M: second order with one network call a step (Lu et al. 2022, arXiv 2211.01095)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from cmjax.schedulers.bounded import dynamic_threshold
from cmjax.schedulers.edm import EDMScheduler
from cmjax.schedulers.linear import LinearState, root_of_difference, rows

_FEW_STEPS = 15  # below, the reference ends with lower orders


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class EDMDPMSolverMultistepScheduler(EDMScheduler):
    """DPM-Solver++ on EDM noise levels (Lu et al. 2022, Algorithm 2).

    The second order comes from the x0 estimate of the step before.

    Attributes:
        solver_order: 1 or 2.
        thresholding: scale x0 estimates that leave [-1, 1] (Saharia et al. 2022, section 2.3).
        dynamic_thresholding_ratio: quantile of |x0| of a sample that is scaled to 1, if it is larger.
        sample_max_value: and at most this.
        algorithm_type: "dpmsolver++", or "sde-dpmsolver++" with fresh noise at every step but the last.
        solver_type: "midpoint" or "heun" form of the second order.
        lower_order_final: end with a first-order step in runs of fewer than 15 steps.
        euler_at_final: in all runs.

    Others as in `EDMScheduler`. A last step to sigma = 0 is of the first order always.
    """

    solver_order: int = 2
    thresholding: bool = False
    dynamic_thresholding_ratio: float = 0.995
    sample_max_value: float = 1.0
    algorithm_type: str = "dpmsolver++"
    solver_type: str = "midpoint"
    lower_order_final: bool = True
    euler_at_final: bool = False

    _domains = {
        "solver_order": (1, 2),
        "dynamic_thresholding_ratio": (0.0, 1.0),
        "sample_max_value": (1.0, 1e6),
        "algorithm_type": ("dpmsolver++", "sde-dpmsolver++"),
        "solver_type": ("midpoint", "heun"),
    }

    @property
    def stochastic(self) -> bool:
        """Whether steps add fresh noise."""
        return self.algorithm_type == "sde-dpmsolver++"

    def set_timesteps(
        self, num_inference_steps: int | None = None, *, timesteps: Any = None, sigmas: Any = None
    ) -> LinearState:
        """Returns the state at the start of a run; arguments and errors as in `EDMScheduler.levels`."""
        levels = self.levels(num_inference_steps, timesteps, sigmas)
        return self.solver_state(levels, self._weights(levels))

    def bound(self, denoised: jax.Array) -> jax.Array:
        """Returns the x0 estimate, thresholded if so configured."""
        if not self.thresholding:
            return denoised
        return dynamic_threshold(denoised, self.dynamic_thresholding_ratio, self.sample_max_value)

    def _weights(self, sigmas: jax.Array) -> jax.Array:
        """Rows of `x' = a x + (1 - a) (x0 + c (x0 - x0_before)) + up z`, with `h = log(sigma / sigma')`.

        The ODE has a = exp(-h) = sigma' / sigma; the SDE has a = exp(-2h) and `up = sigma' sqrt(1 - a)`, but for the
        last step, which adds no noise.
        """
        n, noisy = len(sigmas) - 1, self.algorithm_type == "sde-dpmsolver++"
        ratio = sigmas[1:] / sigmas[:-1]
        steps = -jnp.log(jnp.where(ratio > 0, ratio, 1))
        index = jnp.arange(n)
        sde = noisy & (index < n - 1)
        a = jnp.where(sde, ratio * ratio, ratio)
        up = jnp.where(sde, ratio * root_of_difference(sigmas[:-1], sigmas[1:]), 0)
        exponent = jnp.where(sde, 2 * steps, steps)
        moving = steps > 0
        before = jnp.append(jnp.ones(1, steps.dtype), steps[:-1])
        if self.solver_type == "midpoint":
            second = (1 - a) / 2
        else:
            second = 1 - (1 - a) / jnp.where(moving, exponent, 1)
        last_is_first = self.euler_at_final or self.final_sigmas_type == "zero"
        last_is_first |= self.lower_order_final and n < _FEW_STEPS
        order_two = (
            (self.solver_order == 2)
            & (index > 0)
            & moving
            & ((index < n - 1) | (not last_is_first))
        )
        back = jnp.where(order_two, second * steps / before, 0)
        return rows(1 + back, a * sigmas[:-1], up, -back, 0.0)

"""Trajectory consistency sampling (Zheng et al. 2024, arXiv 2402.19159)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cmjax.configs import is_finite
from cmjax.schedulers.discrete import noise_between
from cmjax.schedulers.lcm import DistilledScheduler
from cmjax.schedulers.linear import LinearState, rows


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class TCDScheduler(DistilledScheduler):
    """Strategic stochastic sampling of trajectory consistency models (Zheng et al. 2024, Algorithm 4).

    Each step goes along the trajectory to a time s below the next one, `s = floor((1 - eta) t')`, then adds fresh
    noise to reach t'. Sampling ends at training time 0.

    Attributes:
        eta: gamma in the paper, in [0, 1], one for all steps or one per step: 0 adds no noise, 1 all of it.

    Others as in `DistilledScheduler`. In the reference eta is an argument of `step`, `denoised` is the sample at s
    where here it is the x0 estimate, and the options that bound x0 are of no effect, where here they are obeyed.
    """

    eta: float | tuple[float, ...] = 0.3

    def __post_init__(self):
        super().__post_init__()
        etas = self.eta if isinstance(self.eta, tuple) else (self.eta,)
        if not etas or not all(is_finite(eta) and 0 <= eta <= 1 for eta in etas):
            raise ValueError(
                f"eta must be a number from 0 to 1, or a tuple of one per step, got {self.eta!r}"
            )

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        *,
        timesteps: Any = None,
        sigmas: Any = None,
        strength: float = 1.0,
    ) -> LinearState:
        """Returns the state at the start of a run; arguments and errors as for `LCMScheduler`.

        Raises:
            ValueError: also if eta is a tuple of another length than the run.
        """
        times = self.distilled_times(
            num_inference_steps, strength, timesteps=timesteps, sigmas=sigmas
        )
        if isinstance(self.eta, tuple) and len(self.eta) != len(times):
            raise ValueError(f"eta has {len(self.eta)} entries, but the run has {len(times)} steps")
        ends = jnp.append(times, jnp.zeros(1, times.dtype))
        alphas, sigmas = self.path(ends)
        # Rounded once: float32's 1 - 0.8 is below 0.2, and a fifth of 350 must be 70.
        kept = jnp.asarray(1 - np.asarray(self.eta, np.float64), jnp.float32)
        alpha_s, sigma_s = self.path(jnp.floor(kept * ends[1:]))
        # Equation 21: x' = (alpha' / alpha_s) x_s + sqrt(1 - (alpha' / alpha_s)^2) z.
        down = alphas[1:] / alpha_s * sigma_s
        up = noise_between((alpha_s, sigma_s), (alphas[1:], sigmas[1:])) / alpha_s
        return self.new_state(times, alphas, sigmas, rows(alphas[1:], down, up))

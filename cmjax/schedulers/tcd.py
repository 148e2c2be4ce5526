"""Trajectory consistency sampling (Zheng et al. 2024, arXiv 2402.19159)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cmjax.configs import is_finite, shown
from cmjax.schedulers.config_files import FileOption
from cmjax.schedulers.discrete import noise_between, with_signal
from cmjax.schedulers.distilled import DistilledScheduler
from cmjax.schedulers.field_docs import inherit_field_docs
from cmjax.schedulers.levels import Levels, append_zero
from cmjax.schedulers.weights import Weights


@inherit_field_docs
@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class TCDScheduler(DistilledScheduler):
    """Strategic stochastic sampling of trajectory consistency models.

    Each step goes along the trajectory to a time s below the next one, `s = floor((1 - eta) t')`,
    then adds fresh noise to reach t' (Zheng et al. 2024, Algorithm 4). Sampling ends at training
    time 0. Three things differ from diffusers: there eta is an argument of `step`, `denoised` is
    the sample at s instead of the x0 estimate, and the options that bound x0 have no effect.

    The network's time input is a training time, 0..N-1. `set_timesteps` takes as
    `num_inference_steps` a number of times from the grid of `original_inference_steps`, or as
    `timesteps` whole training times; its additional argument `strength` starts lower on that grid.

    Attributes:
        eta: share of fresh noise, in [0, 1] (gamma in the paper): a number, or a tuple of one per
            step. 0 adds no noise; at 1 all noise is fresh.
    """

    eta: float | tuple[float, ...] = 0.3

    facts = DistilledScheduler.facts.replace(
        order="1", noise="`eta`", paper="Zheng et al. 2024"
    )

    # Files of diffusers have LCM's option too; TCD has no boundary condition to scale.
    _file_options = {"timestep_scaling": FileOption(10.0, numbers=(1e-6, 1e6))}

    def __post_init__(self):
        super().__post_init__()

        # `_domains` knows single numbers only.
        etas = self.eta if isinstance(self.eta, tuple) else (self.eta,)
        if not etas or not all(is_finite(eta) and 0 <= eta <= 1 for eta in etas):
            raise ValueError(
                "eta must be a number from 0 to 1, or a tuple of one per step, "
                f"got {shown(self.eta)}"
            )

    def levels(self, name: str, value: Any) -> Levels:
        """Returns the levels of the training times, ending at training time 0."""
        times = self.times(name, value)
        alphas, sigmas = self.parametrization.path(append_zero(times))
        return Levels(times, alphas, sigmas)

    def weights(self, levels: Levels) -> Weights:
        """Returns the table of equation 21, f32[N] each column.

        `x' = (alpha' / alpha_s) x_s + sqrt(1 - (alpha' / alpha_s)^2) z`.
        """
        n = len(levels.times)
        if isinstance(self.eta, tuple) and len(self.eta) != n:
            raise ValueError(f"eta has {len(self.eta)} entries, but the run has {n} steps")

        # s = floor((1 - eta) t'). 1 - eta is computed in float64 and rounded once: in float32
        # 1 - 0.8 is below 0.2, and the floor of 0.2 * 350 would be 69.
        next_times = append_zero(levels.times[1:])
        kept = jnp.asarray(1 - np.asarray(self.eta, np.float64), jnp.float32)
        alpha_s, sigma_s = self.parametrization.path(jnp.floor(kept * next_times))
        alpha_s = with_signal(alpha_s)

        # x_s = alpha_s x0 + sigma_s eps, so x' = alpha' x0 + (alpha' / alpha_s) sigma_s eps + up z.
        # The last step ends at s = t' = 0, where up is 0.
        next_alpha = levels.alphas[1:]
        next_sigma = levels.sigmas[1:]
        down = next_alpha / alpha_s * sigma_s
        up = noise_between((alpha_s, sigma_s), (next_alpha, next_sigma)) / alpha_s
        return Weights(x0=next_alpha, eps=down, noise=up)

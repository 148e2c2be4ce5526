"""Gamma sampling of consistency trajectory models (Kim et al. 2023, arXiv 2310.02279)."""

import dataclasses

import jax
import jax.numpy as jnp

from cmjax.configs import is_finite
from cmjax.schedulers.base import SchedulerState, check_shapes, combine
from cmjax.schedulers.consistency import CMStochasticIterativeScheduler
from cmjax.schedulers.linear import root_of_difference


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class CTMScheduler(CMStochasticIterativeScheduler):
    """Sampler of networks that jump from any noise level to any lower one (Kim et al. 2023, Algorithm 3).

    `G(x, t, s) = (s / t) x + (1 - s / t) g(x, t, s)`, with `g = c_skip x + c_out F` by EDM's scalings; the network is
    told t and s. Each step jumps to `s^2 = sigma_min^2 + (1 - gamma^2) (t'^2 - sigma_min^2)` and adds noise to reach
    t'. With sigma_min = 0 that is the paper's `s = sqrt(1 - gamma^2) t'`; measured from sigma_min, where sampling ends,
    gamma = 1 is consistency sampling exactly.

    Attributes:
        gamma: share of fresh noise: 0 adds none, 1 is consistency sampling.

    Others as in `CMStochasticIterativeScheduler`.
    """

    gamma: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        if not is_finite(self.gamma) or not 0 <= self.gamma <= 1:
            raise ValueError(f"gamma must be a number from 0 to 1, got {self.gamma!r}")

    def time_inputs(self, state: SchedulerState) -> tuple[jax.Array, ...]:
        """Returns the network's times of t and of s, f32[] each."""
        return state.timesteps[state.step_index], self.sigma_to_t(self._jump(state)[0])

    def denoise(self, state: SchedulerState, model_output: jax.Array, sample: jax.Array) -> jax.Array:
        """Returns g(x, t, s), `[B, ...]`, clipped if so configured."""
        check_shapes(model_output=model_output, sample=sample)
        c_skip, c_out = self.get_scalings(state.sigma)
        denoised = combine((c_skip, sample), (c_out, model_output))
        return jnp.clip(denoised, -1, 1) if self.clip_denoised else denoised

    def advance(
        self, state: SchedulerState, sample: jax.Array, denoised: jax.Array, noise: jax.Array
    ) -> tuple[SchedulerState, jax.Array]:
        """Jumps to s, and adds noise to reach the next level; adds exactly nothing on the last step.

        Arguments, results and errors as for `CMStochasticIterativeScheduler.advance`.
        """
        check_shapes(sample=sample, denoised=denoised, noise=noise)
        target, noise_scale = self._jump(state)
        kept = target / state.sigma
        next_sample = combine((1 - kept, denoised), (kept, sample), (noise_scale, noise))
        return state.replace(step_index=state.step_index + 1), next_sample

    def _jump(self, state):
        """Returns s, and the standard deviation of the noise from there to the next level."""
        span = root_of_difference(state.next_sigma, self.sigma_min)
        target = jnp.sqrt(self.sigma_min**2 + (1 - self.gamma**2) * jnp.square(span))
        return target, self.s_noise * self.gamma * span

"""Heun's method: second order, two network calls a step."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from cmjax.schedulers.discrete_sigmas import DiscreteSigmasScheduler
from cmjax.schedulers.edm import ChurnedEDMScheduler
from cmjax.schedulers.linear import LinearState, interleave, rows


def heun(raised: jax.Array, sigmas: jax.Array, up: Any = 0.0) -> jax.Array:
    """Weights [2n-1, 5] of Heun's method (Karras et al. 2022, Algorithm 2), the last step being Euler's.

    Even calls go from `raised[i]` to `sigmas[i+1]`; odd ones go back, and again with the mean of both slopes.

    Args:
        raised: [n+1], where each step starts from.
        sigmas: [n+1], where the steps before it ended.
        up: [n], noise added after each step.
    """
    start, end = raised[:-1], sigmas[1:]
    half = (end - start) / 2
    return interleave(
        rows(1.0, end, 0.0, 0.0, 0.0), rows(0.0, half, up, -half / start, 1 + half / start)
    )


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class EDMHeunScheduler(ChurnedEDMScheduler):
    """EDM's own sampler (Karras et al. 2022, Algorithms 1 and 2): n steps take 2n - 1 network calls.

    Attributes as in `ChurnedEDMScheduler`.
    """

    def set_timesteps(
        self, num_inference_steps: int | None = None, *, timesteps: Any = None, sigmas: Any = None
    ) -> LinearState:
        """Returns the state at the start of a run; arguments, of steps, and errors as in `EDMScheduler.levels`."""
        levels = self.levels(num_inference_steps, timesteps, sigmas)
        raised, up = self.churn(levels)
        calls = jnp.append(interleave(raised[:-1], levels[1:]), levels[-1:])
        return self.solver_state(calls, heun(raised, levels, up))


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class HeunDiscreteScheduler(DiscreteSigmasScheduler):
    """Heun's method for models with discrete times: n steps take 2n - 1 network calls.

    Attributes:
        clip_sample: clip x0 estimates.
        clip_sample_range: to plus or minus this.

    Others as in `DiscreteSigmasScheduler`.
    """

    beta_start: float = 0.00085
    beta_end: float = 0.012
    clip_sample: bool = False
    clip_sample_range: float = 1.0

    _domains = {"clip_sample_range": (1e-6, 1e6)}

    def bound(self, denoised: jax.Array) -> jax.Array:
        """Returns the x0 estimate, clipped if so configured."""
        limit = self.clip_sample_range
        return jnp.clip(denoised, -limit, limit) if self.clip_sample else denoised

    @property
    def stochastic(self) -> bool:
        """Whether steps add fresh noise."""
        return False

    def set_timesteps(
        self, num_inference_steps: int | None = None, *, timesteps: Any = None, sigmas: Any = None
    ) -> LinearState:
        """Returns the state at the start of a run; arguments, of steps, and errors as in `levels`."""
        times, levels = self.levels(num_inference_steps, timesteps, sigmas)
        times = interleave(times, jnp.append(times[1:], times[-1:]))
        calls = jnp.append(interleave(levels[:-1], levels[1:]), levels[-1:])
        return self.new_state(times, jnp.ones_like(calls), calls, heun(levels, levels))

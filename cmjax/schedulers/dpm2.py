"""DPM-Solver-2, the midpoint method in log sigma: second order, two network calls a step (Lu et al. 2022)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from cmjax.schedulers.discrete_sigmas import DiscreteSigmasScheduler
from cmjax.schedulers.edm import ChurnedEDMScheduler
from cmjax.schedulers.linear import LinearState, interleave, rows


def midpoint(raised: jax.Array, sigmas: jax.Array, up: Any = 0.0) -> tuple[jax.Array, jax.Array]:
    """Middle levels f32[n] and weights [2n-1, 5] of the midpoint method, the last step being Euler's.

    Even calls go from `raised[i]` to the geometric mean of it and `sigmas[i+1]`; odd ones go back, and all the way with
    the slope from there (Lu et al. 2022, DPM-Solver-2 with r = 1/2; Karras et al. 2022, appendix D).

    Args:
        raised: [n+1], where each step starts from.
        sigmas: [n+1], where the steps before it ended.
        up: [n], noise added after each step.
    """
    start, end = raised[:-1], sigmas[1:]
    middle = jnp.sqrt(start * end).at[-1].set(end[-1])  # the last half step is the whole one
    return middle, interleave(
        rows(1.0, middle, 0.0, 0.0, 0.0), rows(0.0, end - start, up, 0.0, 1.0)
    )


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class EDMDPM2Scheduler(ChurnedEDMScheduler):
    """DPM-Solver-2 on EDM noise levels: n steps take 2n - 1 network calls. Attributes as in `ChurnedEDMScheduler`."""

    def set_timesteps(
        self, num_inference_steps: int | None = None, *, timesteps: Any = None, sigmas: Any = None
    ) -> LinearState:
        """Returns the state at the start of a run; arguments, of steps, and errors as in `EDMScheduler.levels`."""
        levels = self.levels(num_inference_steps, timesteps, sigmas)
        raised, up = self.churn(levels)
        middle, weights = midpoint(raised, levels, up)
        return self.solver_state(jnp.append(interleave(raised[:-1], middle), levels[-1:]), weights)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class KDPM2DiscreteScheduler(DiscreteSigmasScheduler):
    """DPM-Solver-2 for models with discrete times: n steps take 2n - 1 network calls.

    Attributes as in `DiscreteSigmasScheduler`.
    """

    beta_start: float = 0.00085
    beta_end: float = 0.012

    @property
    def stochastic(self) -> bool:
        """Whether steps add fresh noise."""
        return False

    def set_timesteps(
        self, num_inference_steps: int | None = None, *, timesteps: Any = None, sigmas: Any = None
    ) -> LinearState:
        """Returns the state at the start of a run; arguments, of steps, and errors as in `levels`."""
        times, levels = self.levels(num_inference_steps, timesteps, sigmas)
        middle, weights = midpoint(levels, levels)
        times = interleave(times, self.sigma_to_t(jnp.where(middle > 0, middle, 1)))
        calls = jnp.append(interleave(levels[:-1], middle), levels[-1:])
        return self.new_state(times, jnp.ones_like(calls), calls, weights)

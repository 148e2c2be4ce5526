"""PNDM: pseudo numerical methods for diffusion models (Liu et al. 2022, arXiv 2202.09778)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cmjax.parametrization import NoiseLevel
from cmjax.schedulers.discrete import SpacedScheduler
from cmjax.schedulers.field_docs import inherit_field_docs
from cmjax.schedulers.levels import Levels
from cmjax.schedulers.pseudo_numerical import (
    START,
    Call,
    adams_bashforth,
    improved_euler,
    pseudo_weights,
    runge_kutta,
)
from cmjax.schedulers.weights import Weights


@inherit_field_docs
@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class PNDMScheduler(SpacedScheduler):
    """Pseudo linear multistep method, of fourth-order slopes (Liu et al. 2022, Algorithm 2).

    Each step is one of DDIM with a mean of this and the last three steps' eps. To begin with, the
    first three steps (all but the last one, in runs of fewer) are by the Runge-Kutta method with
    four calls each; with `skip_prk_steps` the first step takes two calls, and the next ones look
    back at as many steps as there are. So n steps are n + 9 calls, or n + 1. The error falls with
    the square of the step, as the paper says (section 1); with the fourth power only if steps are
    equal in sigma / alpha.

    The network's time input is a whole training time, 0..N-1; halfway through a step, the middle
    between its two times, rounded down. `set_timesteps` takes as `num_inference_steps` a number of
    steps, whose times are spaced by `timestep_spacing`, or as `timesteps` the steps' whole training
    times.

    Attributes:
        prediction_type: what the network returns: "epsilon", "sample" or "v_prediction". Means are
            those of eps for all of them; diffusers takes means of v.
        rescale_betas_zero_snr: make the last time all but pure noise (Lin et al. 2023).
        set_alpha_to_one: end without noise, rather than at training time 0.
        skip_prk_steps: begin without Runge-Kutta steps, as with Stable Diffusion.
    """

    set_alpha_to_one: bool = False
    skip_prk_steps: bool = False

    facts = SpacedScheduler.facts.replace(
        order="2",
        calls="1; 4 in the first three steps, or 2 in the first",
        memory="4 to 12",
        paper="Liu et al. 2022",
    )

    # diffusers' class of this name does not rescale.
    _sibling_options = frozenset({"rescale_betas_zero_snr"})

    def levels(self, name: str, value: Any) -> Levels:
        """Returns the levels of the steps, and of the end."""
        levels = super().levels(name, value)
        return levels._replace(alphas=self._with_signal(levels.alphas))

    def calls(self, levels: Levels) -> Levels:
        """Returns where the network is called: at starts, middles and ends of steps."""
        _, here, _ = self._levels_of_calls(levels)
        alphas = jnp.append(here.alpha, levels.alphas[-1:])
        sigmas = jnp.append(here.sigma, levels.sigmas[-1:])
        return Levels(here.time, alphas, sigmas)

    def weights(self, levels: Levels) -> Weights:
        """Returns the table of equations 9 (the step), 12 and 13 (the means of eps)."""
        plan = self._plan(len(levels.times))
        start, here, target = self._levels_of_calls(levels)
        return pseudo_weights(
            plan,
            alphas=(start.alpha, here.alpha, target.alpha),
            sigmas=(start.sigma, here.sigma, target.sigma),
        )

    def _with_signal(self, alphas: jax.Array) -> jax.Array:
        """Returns signal levels to divide by, as B does: at least that of the last time, not 0."""
        highest = jnp.float32(self.sigma_range[1])
        return jnp.maximum(alphas, self.parametrization.level(highest).alpha)

    def _plan(self, n: int) -> list[Call]:
        """The network calls of n steps. The last step has one: its end may be pure data."""
        calls = []
        firsts = []  # the number of each step's first call
        for step in range(n):
            first = len(calls)
            firsts.append(first)
            is_last = step == n - 1
            if self.skip_prk_steps and step == 0 and not is_last:
                calls += improved_euler(first, step)
            elif not self.skip_prk_steps and step < 3 and not is_last:
                calls += runge_kutta(first, step)
            else:
                calls.append(adams_bashforth(firsts))
        return calls

    def _levels_of_calls(self, levels: Levels) -> tuple[NoiseLevel, NoiseLevel, NoiseLevel]:
        """Where the step of each call starts, where the call itself is, and where it goes.

        Time, alpha and sigma are f32[N] each, an entry for each of the N calls.
        """
        # The network is not called in the middle or at the end of the last step: its own time
        # stands in there.
        next_times = jnp.append(levels.times[1:], levels.times[-1:])
        middle_times = jnp.floor((levels.times + next_times) / 2)
        middle_alphas, middle_sigmas = self.parametrization.path(middle_times)
        middle_alphas = self._with_signal(middle_alphas)

        # All steps' starts, middles and ends, f32[3, n] each: START, MIDDLE and END are the rows.
        times = jnp.stack([levels.times, middle_times, next_times])
        alphas = jnp.stack([levels.alphas[:-1], middle_alphas, levels.alphas[1:]])
        sigmas = jnp.stack([levels.sigmas[:-1], middle_sigmas, levels.sigmas[1:]])

        # Of these, the entry of each call's step in the row of the place that is asked for.
        plan = self._plan(len(levels.times))
        steps = np.array([call.step for call in plan])

        def at(places):
            rows = np.array(places)
            return NoiseLevel(times[rows, steps], alphas[rows, steps], sigmas[rows, steps])

        start = at([START] * len(plan))
        here = at([call.at for call in plan])
        target = at([call.to for call in plan])
        return start, here, target

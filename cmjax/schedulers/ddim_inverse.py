"""DDIM backwards: from a sample to the noise that DDIM makes it from (Song et al. 2020)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from cmjax.arrays import weighted_sum
from cmjax.schedulers.discrete import SpacedScheduler
from cmjax.schedulers.field_docs import inherit_field_docs
from cmjax.schedulers.levels import Levels
from cmjax.schedulers.table import TableState
from cmjax.schedulers.weights import Weights


@inherit_field_docs
@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class DDIMInverseScheduler(SpacedScheduler):
    """The steps of a `DDIMScheduler` with the same options and eta = 0, backwards and upwards.

    Give the sample to invert as `init=`. A step of DDIM calls the network at the level that it
    leaves. Its inverse would have to call it on the sample that it is looking for; it takes the
    sample that it has instead, at the level that it goes to. So `state.sigmas` are those upper
    levels, and `denoised` is the x0 estimate as if the sample were there.

    The network's time input is a training time, 0..N-1. `set_timesteps` takes what that of the DDIM
    run took: a number of times, or as `timesteps` the run's times, descending.

    Attributes:
        prediction_type: what the network returns: "epsilon" or "v_prediction"; "sample" only
            without `set_alpha_to_one`, since x0 alone does not say which way noise lies.
        set_alpha_to_one: the sample is x0, rather than at training time 0.
        clip_sample: clip what a step takes for x0.
        clip_sample_range: x0 is clipped to plus or minus this.
    """

    set_alpha_to_one: bool = True
    clip_sample: bool = True
    clip_sample_range: float = 1.0

    facts = SpacedScheduler.facts.replace(
        predicts="epsilon or v; sample from training time 0",
        levels="training times, upwards",
        order="1",
        paper="Song et al. 2020",
    )
    _domains = {"clip_sample_range": (1e-6, 1e6)}

    def __post_init__(self):
        super().__post_init__()
        if self.prediction_type == "sample" and self.set_alpha_to_one:
            raise ValueError(
                "prediction_type='sample' says no direction at x0 itself, where sampling starts "
                "with set_alpha_to_one=True; use set_alpha_to_one=False"
            )

    def levels(self, name: str, value: Any) -> Levels:
        """Returns the levels of the steps upwards, f32[N+1]: where each starts, and the end."""
        down = super().levels(name, value)
        return Levels(down.times[::-1], down.alphas[::-1], down.sigmas[::-1])

    def _bottom(self) -> Levels:
        """The level where DDIM's run ends, as that of a run without any calls, f32[1]."""
        return self.levels_at(jnp.zeros(0, jnp.float32))

    def calls(self, levels: Levels) -> Levels:
        """Returns the levels that the network is called at: where each step arrives."""
        alphas = jnp.append(levels.alphas[1:], levels.alphas[-1:])
        sigmas = jnp.append(levels.sigmas[1:], levels.sigmas[-1:])
        return Levels(levels.times, alphas, sigmas)

    def weights(self, levels: Levels) -> Weights:
        """Returns the table of `x' = alpha' x0 + sigma' eps`, read at the level of the sample."""
        # Each step goes from (alpha, sigma) up to (alpha', sigma'), f32[N] each.
        alpha, sigma = levels.starts
        up_alpha, up_sigma = levels.ends

        # The step in terms of the sample and the network's output, x' = skip x + out F.
        if self.prediction_type == "epsilon":
            skip = up_alpha / alpha
            out = up_sigma - up_alpha * sigma / alpha
        elif self.prediction_type == "v_prediction":
            skip = alpha * up_alpha + sigma * up_sigma
            out = alpha * up_sigma - sigma * up_alpha
        else:
            skip = up_sigma / sigma
            out = up_alpha - alpha * up_sigma / sigma

        # The table weighs x0 and eps as they are read at the upper level, where the network is
        # called: F = (x0 - c_skip x) / c_out, and then x = alpha' x0 + sigma' eps. So x' is
        #     of_x0 x0 + of_x x = (of_x0 + of_x alpha') x0 + of_x sigma' eps.
        _, c_skip, c_out = self.parametrization.scalings(up_alpha, up_sigma)
        of_x0 = out / c_out
        of_x = skip - of_x0 * c_skip
        return Weights(x0=of_x0 + of_x * up_alpha, eps=of_x * up_sigma)

    def advance(
        self, state: TableState, sample: jax.Array, denoised: jax.Array, noise: jax.Array
    ) -> tuple[TableState, jax.Array]:
        """Moves up to the next level; see `TableScheduler.advance`."""
        next_state, moved = super().advance(state, sample, denoised, noise)
        if not self.clip_sample:
            return next_state, moved

        # The level of the sample, below that of the call: where the call before arrived, or for the
        # first one where DDIM's run ends.
        index = state.step_index
        bottom = self._bottom()
        alpha = jnp.append(bottom.alphas, state.alphas)[index]
        sigma = jnp.append(bottom.sigmas, state.sigmas)[index]

        # x0 as the step takes it, c_skip x + c_out F at that level. `denoised` is the same sum at
        # the level of the call, so F = (denoised - called.c_skip x) / called.c_out.
        _, c_skip, c_out = self.parametrization.scalings(alpha, sigma)
        called = jax.tree.map(lambda column: column[index], state.scalings)
        factor = c_out / called.c_out
        x0 = weighted_sum((c_skip - factor * called.c_skip, sample), (factor, denoised))

        # What clipping changes of x0 moves the sample by alpha' times as much.
        clipped = jnp.clip(x0, -self.clip_sample_range, self.clip_sample_range)
        next_sample = weighted_sum((1, moved), (state.alpha, clipped), (-state.alpha, x0))
        return next_state, next_sample

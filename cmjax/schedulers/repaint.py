"""RePaint (Lugmayr et al. 2022): inpainting that goes back up to noise what it has filled in."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from cmjax.arrays import at_least_float32, weighted_sum
from cmjax.schedulers.base import Constraint, StepOutput
from cmjax.schedulers.checks import apply_constraint
from cmjax.schedulers.ddim import ddim_weights
from cmjax.schedulers.discrete import SpacedScheduler, noise_between
from cmjax.schedulers.field_docs import inherit_field_docs
from cmjax.schedulers.jumps import jump_places
from cmjax.schedulers.levels import MOST_STEPS, Levels
from cmjax.schedulers.table import TableState
from cmjax.schedulers.weights import Weights


@inherit_field_docs
@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class RePaintScheduler(SpacedScheduler):
    """Steps of DDIM that blend in what is known, and jumps back up (Algorithm 1).

    What is known is the `constrain` of `cmjax.sample`, such as `inpaint(image, mask)`. Other
    samplers put it into the x0 estimate. Here each step ends with it in the sample, with fresh
    noise of the level reached. `constrain` must be affine, as all of `cmjax.constraints` are. That
    noise is also the step's own, as in diffusers; the paper draws another. Only with `eta` above 0
    and masks between 0 and 1 do the samples differ for it: they vary more.

    A jump goes up `jump_length` levels of the run by adding noise. The network is not called on the
    way, so a jump is part of the step before it, whose noise and that of the jump are one normal
    noise. A run of n steps makes more than n calls: `state.num_steps` of them.

    The network's time input is a training time, 0..N-1. `set_timesteps` takes as
    `num_inference_steps` the number n of levels without the jumps, or as `timesteps` these levels,
    whole training times.

    Attributes:
        clip_sample: clip x0 estimates to [-1, 1].
        eta: share of fresh noise: 0 for DDIM, 1 for the variance of DDPM, which is the paper's.
        jump_length: number j of levels that a jump goes up.
        jump_n_sample: number r of times that each stretch of j levels is sampled; 1 for no jumps.
    """

    # The step, and the jumps.
    clip_sample: bool = True
    eta: float = 0.0
    jump_length: int = 10
    jump_n_sample: int = 10

    facts = SpacedScheduler.facts.replace(
        order="1",
        calls="1, and again after each jump",
        noise="`eta`, and jumps",
        paper="Lugmayr et al. 2022",
    )
    _domains = {
        "eta": (0.0, 1.0),
        "jump_length": (1, MOST_STEPS),
        "jump_n_sample": (1, MOST_STEPS),
    }
    _sibling_options = frozenset(
        {"prediction_type", "rescale_betas_zero_snr", "timestep_spacing", "steps_offset"}
    )

    def calls(self, levels: Levels) -> Levels:
        """Returns the levels of the calls, in their order."""
        places = jump_places(self, len(levels.times))
        arrivals = np.append(places, len(levels.times))
        return Levels(
            levels.times[places], levels.alphas[arrivals], levels.sigmas[arrivals]
        )

    def weights(self, levels: Levels) -> Weights:
        """Returns the table: of each call the step of DDIM, then the jump if there is one."""
        places = jump_places(self, len(levels.times))
        down = ddim_weights(levels, self.eta)
        step = jax.tree.map(lambda column: column[places], down)

        # Each step goes down to the level below, and a jump from there to that of the next call.
        arrivals = np.append(places[1:], len(levels.times))
        low_alpha = levels.alphas[places + 1]
        low_sigma = levels.sigmas[places + 1]
        high_alpha = levels.alphas[arrivals]
        high_sigma = levels.sigmas[arrivals]

        # The steps of Algorithm 1, line 10, in one: x' = kept x + sqrt(1 - kept^2) z. Without a
        # jump both levels are the same, and kept is 1.
        kept = high_alpha / low_alpha
        added = noise_between((low_alpha, low_sigma), (high_alpha, high_sigma)) / low_alpha

        # The noise of the step and that of the jump are independent: their variances add up.
        noise = None
        has_jumps = np.any(arrivals <= places)
        if step.noise is not None:
            noise = jnp.hypot(kept * step.noise, added)
        elif has_jumps:
            noise = added
        return Weights(x0=kept * step.x0, eps=kept * step.eps, noise=noise)

    def bound_last(self, denoised: jax.Array) -> jax.Array:
        """Returns the x0 estimate clipped, if so configured; eps is of the unclipped one."""
        return jnp.clip(denoised, -1, 1) if self.clip_sample else denoised

    def advance_constrained(
        self,
        constrain: Constraint,
        state: TableState,
        sample: jax.Array,
        denoised: jax.Array,
        noise: jax.Array,
    ) -> tuple[TableState, StepOutput]:
        """Moves to the next level, then blends in what is known (Algorithm 1, line 8)."""
        state, unknown = self.advance(state, sample, denoised, noise)

        # The known part is `alpha y + sigma z`. Blending that in with weights m is the constraint's
        # own blending of y, `(1 - m) x0 + m y`, at the x0 that the sample has with this noise.
        wide = at_least_float32(unknown)
        x0 = weighted_sum((1 / state.alpha, wide), (-state.sigma / state.alpha, noise))
        blended = apply_constraint(constrain, x0)
        prev_sample = weighted_sum((state.alpha, blended), (state.sigma, noise))

        estimate = self.bound_last(denoised.astype(sample.dtype))
        estimate = apply_constraint(constrain, estimate)
        return state, StepOutput(prev_sample.astype(unknown.dtype), estimate)

"""DPM-Solver-2 with ancestral noise (k-diffusion's `sample_dpm_2_ancestral`)."""

import dataclasses

import jax
import jax.numpy as jnp

from cmjax.schedulers.ancestral import ancestral_weights
from cmjax.schedulers.discrete_sigmas import DiscreteSigmasScheduler
from cmjax.schedulers.dpm2 import midpoint_calls_between_times, midpoint_weights
from cmjax.schedulers.field_docs import inherit_field_docs
from cmjax.schedulers.levels import Levels
from cmjax.schedulers.weights import Weights


@inherit_field_docs
@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class KDPM2AncestralDiscreteScheduler(DiscreteSigmasScheduler):
    """Midpoint steps to below the next level, each followed by noise: n steps take 2n - 1 calls.

    The step of DPM-Solver-2 (Lu et al. 2022) in place of the Euler step of ancestral sampling.

    The network's time input is a training time, 0..N-1, also between two. `set_timesteps` takes
    what `DiscreteSigmasScheduler.set_timesteps` takes.
    """

    facts = DiscreteSigmasScheduler.facts.replace(
        order="1", calls="2", memory="1", noise="yes", paper="k-diffusion"
    )

    # diffusers' class of this name does not rescale.
    _sibling_options = frozenset({"rescale_betas_zero_snr"})

    # As diffusers' default for this solver.
    beta_start: float = 0.00085
    beta_end: float = 0.012

    def calls(self, levels: Levels) -> Levels:
        """Returns where the network is called: at each step's start and middle."""
        down, _ = _ancestral_steps(levels)
        return midpoint_calls_between_times(self.parametrization, levels, down)

    def weights(self, levels: Levels) -> Weights:
        """Returns the table of the midpoint method, with noise after each step."""
        down, up = _ancestral_steps(levels)
        return midpoint_weights(levels.sigmas, down, up)


def _ancestral_steps(levels: Levels) -> tuple[jax.Array, jax.Array]:
    """The level where each step ends, f32[n+1] after that of the first start, and its noise."""
    euler = ancestral_weights(levels.sigmas)
    return jnp.append(levels.sigmas[:1], euler.eps), euler.noise

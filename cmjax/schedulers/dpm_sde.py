"""DPM-Solver++ of the SDE, in steps of two calls (k-diffusion's `sample_dpmpp_sde`)."""

import dataclasses

import jax
import jax.numpy as jnp

from cmjax.schedulers.ancestral import ancestral_weights
from cmjax.schedulers.config_files import FileOption
from cmjax.schedulers.discrete_sigmas import DiscreteSigmasScheduler
from cmjax.schedulers.dpm2 import (
    middle_sigmas,
    midpoint_calls,
    midpoint_calls_between_times,
)
from cmjax.schedulers.field_docs import inherit_field_docs
from cmjax.schedulers.levels import Levels
from cmjax.schedulers.weights import Weights, alternate


@inherit_field_docs
@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class DPMSolverSDEScheduler(DiscreteSigmasScheduler):
    """The midpoint method for the reverse SDE, in log sigma: n steps take 2n - 1 network calls.

    DPM-Solver++ (Lu et al. 2022, arXiv 2211.01095, Algorithm 1 with r = 1/2) with the noise of
    ancestral sampling. An ancestral step goes to the middle; from the step's start, another one
    goes to its end with the x0 of the middle. The noises of both lie on one Brownian path over the
    noise levels, so the second contains the first; diffusers draws that path with torchsde.

    The network's time input is a training time, 0..N-1, also between two. `set_timesteps` takes
    what `DiscreteSigmasScheduler.set_timesteps` takes.

    Attributes:
        s_noise: factor on the noise; in diffusers an argument of `step`.
    """

    # As diffusers' default for this solver.
    beta_start: float = 0.00085
    beta_end: float = 0.012

    s_noise: float = 1.0

    facts = DiscreteSigmasScheduler.facts.replace(
        order="2, in distribution",
        calls="2",
        memory="2",
        noise="yes",
        paper="Lu et al. 2022 (++); k-diffusion",
    )

    # diffusers' class of this name does not rescale. Its seed is a key here.
    _sibling_options = frozenset({"rescale_betas_zero_snr"})
    _file_options = {"noise_sampler_seed": FileOption(None, numbers=(0, 2**64))}
    _domains = {"s_noise": (0.0, 1e18)}

    def calls(self, levels: Levels) -> Levels:
        """Returns where the network is called: at each step's start and middle."""
        return midpoint_calls_between_times(self.parametrization, levels, levels.sigmas)

    def weights(self, levels: Levels) -> Weights:
        """Returns the table of ancestral steps to the middle, then from the start to the end."""
        start = levels.sigmas[:-1]
        middle = middle_sigmas(levels.sigmas, levels.sigmas)

        # The first call of a step: an ancestral step to the middle. Of the ancestral steps from
        # call to call, these are every second one.
        between = ancestral_weights(midpoint_calls(levels.sigmas, levels.sigmas))
        predict = Weights(
            x0=1.0, eps=between.eps[::2], noise=self.s_noise * between.noise[::2]
        )

        # The second call: an ancestral step from the start to the end, with the x0 of the middle.
        # In terms of the sample x at the start, x0 + down eps is
        #     (down / start) x + (1 - down / start) x0.
        whole = ancestral_weights(levels.sigmas)
        kept = whole.eps / start

        # The noise W(start) - W(end) of a Brownian path W over sigma has the variance start - end.
        # The first call's noise is W(start) - W(middle). Its part of that variance is
        #     (start - middle) / (start - end) = 1 / (1 + middle / start),
        # as middle^2 = start end; fresh noise is the rest. A middle of 0 is that of the last step,
        # which has no noise.
        middle_of_start = jnp.where(middle > 0, middle, 1) / start
        shared = 1 / (1 + middle_of_start)
        up = self.s_noise * whole.noise
        correct = Weights(
            x0=1 - kept,
            eps=0.0,
            noise=up * jnp.sqrt(middle_of_start * shared),
            last_sample=kept,
            last_noise=up * jnp.sqrt(shared),
        )
        return alternate(predict, correct, len(start))

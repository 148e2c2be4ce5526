"""DPM-Solver-2, the midpoint method in log sigma: second order, two network calls a step."""

import dataclasses

import jax
import jax.numpy as jnp

from cmjax.parametrization import Parametrization
from cmjax.schedulers.churn import ChurnOptions, churn
from cmjax.schedulers.discrete_sigmas import DiscreteSigmasScheduler
from cmjax.schedulers.edm import EDMScheduler
from cmjax.schedulers.field_docs import inherit_field_docs
from cmjax.schedulers.levels import Levels, exploding_levels
from cmjax.schedulers.weights import Weights, alternate, interleave


def middle_sigmas(raised: jax.Array, sigmas: jax.Array) -> jax.Array:
    """Returns the geometric mean of each step's first and last level, f32[n].

    The last step has no middle: it reaches its end in one call (Lu et al. 2022, DPM-Solver-2 with
    r = 1/2; Karras et al. 2022, appendix D).

    Args:
        raised: f32[n+1], the level where each step starts.
        sigmas: f32[n+1], the level where the step before it ended.
    """
    # sqrt(sigma sigma') is the middle in log sigma. The last step, which may end at 0, is left
    # out: the gradient of sqrt(0) is infinite.
    middles = jnp.sqrt(raised[:-2] * sigmas[1:-1])
    return jnp.append(middles, sigmas[-1:])


def midpoint_weights(
    raised: jax.Array, sigmas: jax.Array, noise: jax.Array | None = None
) -> Weights:
    """Returns the table of the midpoint method, whose last step is Euler's: 2n - 1 rows.

    Args:
        raised: f32[n+1], the level where each step starts.
        sigmas: f32[n+1], the level where the step before it ended.
        noise: f32[n], added after each step, or None.
    """
    # Each step goes from `start` to `end`, f32[n] each.
    start = raised[:-1]
    end = sigmas[1:]

    # The first call goes to the middle by Euler's method.
    predict = Weights(x0=1.0, eps=middle_sigmas(raised, sigmas))

    # The second starts again from x, and takes the whole step with the slope of the middle:
    # x' = x + (end - start) d', where d' = eps.
    correct = Weights(x0=0.0, eps=end - start, noise=noise, last_sample=1.0)
    return alternate(predict, correct, len(start))


def midpoint_calls(raised: jax.Array, sigmas: jax.Array) -> jax.Array:
    """Returns the noise levels of the calls (each step's start and middle) and of the end, f32[2n].

    Args:
        raised: f32[n+1], the level where each step starts.
        sigmas: f32[n+1], the level where the step before it ended.
    """
    # start, middle, start, middle, ..., last start; and the end.
    calls = interleave(raised[:-1], middle_sigmas(raised, sigmas))
    return jnp.append(calls, sigmas[-1:])


def midpoint_calls_between_times(
    parametrization: Parametrization, levels: Levels, sigmas: jax.Array
) -> Levels:
    """Returns where a solver with discrete times is called: at each step's start and middle.

    Args:
        parametrization: of the network.
        levels: of the steps.
        sigmas: f32[n+1], the level where the step before ended, without its noise.
    """
    middle = middle_sigmas(levels.sigmas, sigmas)

    # The entry of the last step is the end, 0, where log sigma is not finite; `interleave` drops
    # it.
    middle_times = parametrization.time(jnp.where(middle > 0, middle, 1))
    times = interleave(levels.times, middle_times)
    calls = midpoint_calls(levels.sigmas, sigmas)
    return exploding_levels(parametrization, calls, times)


@inherit_field_docs
@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class EDMDPM2Scheduler(ChurnOptions, EDMScheduler):
    """DPM-Solver-2 on EDM noise levels (Lu et al. 2022): n steps take 2n - 1 network calls.

    The network's time input is `log(sigma) / 4`. `set_timesteps` takes what
    `EDMScheduler.set_timesteps` takes.
    """

    facts = EDMScheduler.facts.replace(
        order="2", calls="2", memory="1", noise="`s_churn`", paper="Lu et al. 2022"
    )

    def calls(self, levels: Levels) -> Levels:
        """Returns where the network is called: at each step's start and middle."""
        raised = churn(self, levels.sigmas).raised
        return exploding_levels(self.parametrization, midpoint_calls(raised, levels.sigmas))

    def weights(self, levels: Levels) -> Weights:
        """Returns the table of the midpoint method, with the noise that raises the next level."""
        added = churn(self, levels.sigmas)
        return midpoint_weights(added.raised, levels.sigmas, added.noise)


@inherit_field_docs
@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class KDPM2DiscreteScheduler(DiscreteSigmasScheduler):
    """DPM-Solver-2 for models with discrete times (Lu et al. 2022): n steps take 2n - 1 calls.

    The network's time input is a training time, 0..N-1, also between two. `set_timesteps` takes
    what `DiscreteSigmasScheduler.set_timesteps` takes.
    """

    # As diffusers' default for this solver.
    beta_start: float = 0.00085
    beta_end: float = 0.012

    facts = DiscreteSigmasScheduler.facts.replace(
        order="2", calls="2", memory="1", paper="Lu et al. 2022"
    )

    # diffusers' class of this name does not rescale.
    _sibling_options = frozenset({"rescale_betas_zero_snr"})

    def calls(self, levels: Levels) -> Levels:
        """Returns where the network is called: at each step's start and middle."""
        return midpoint_calls_between_times(self.parametrization, levels, levels.sigmas)

    def weights(self, levels: Levels) -> Weights:
        """Returns the table of the midpoint method."""
        return midpoint_weights(levels.sigmas, levels.sigmas)

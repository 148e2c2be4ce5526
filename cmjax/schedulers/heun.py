"""Heun's method: second order, two network calls a step (Karras et al. 2022, Algorithm 2)."""

import dataclasses

import jax
import jax.numpy as jnp

from cmjax.schedulers.churn import ChurnOptions, churn
from cmjax.schedulers.discrete_sigmas import DiscreteSigmasScheduler
from cmjax.schedulers.edm import EDMScheduler
from cmjax.schedulers.field_docs import inherit_field_docs
from cmjax.schedulers.levels import Levels, exploding_levels
from cmjax.schedulers.weights import Weights, alternate, interleave


def heun_calls(raised: jax.Array, sigmas: jax.Array) -> jax.Array:
    """Returns the noise levels of the calls (each step's start and end) and of the end, f32[2n].

    Args:
        raised: f32[n+1], the level where each step starts.
        sigmas: f32[n+1], the level where the step before it ended.
    """
    # start, end, start, end, ..., last start; and the last end.
    calls = interleave(raised[:-1], sigmas[1:])
    return jnp.append(calls, sigmas[-1:])


def heun_weights(
    raised: jax.Array,
    sigmas: jax.Array,
    noise: jax.Array | None = None,
    alphas: jax.Array | None = None,
) -> Weights:
    """Returns the table of Heun's method, whose last step is Euler's: 2n - 1 rows.

    Args:
        raised: f32[n+1], the level where each step starts.
        sigmas: f32[n+1], the level where the step before it ended.
        noise: f32[n], added after each step, or None.
        alphas: f32[n+1], the signal at each level; None for 1 everywhere.
    """
    # Each step goes from `start` to `end`, f32[n] each.
    start = raised[:-1]
    end = sigmas[1:]
    half = (end - start) / 2

    # The same of the signal, which on EDM's levels does not change.
    alphas = jnp.ones_like(sigmas) if alphas is None else alphas
    half_alpha = (alphas[1:] - alphas[:-1]) / 2

    # The first call goes from `start` to `end` by Euler's method.
    predict = Weights(x0=alphas[1:], eps=end)

    # The second starts again from x, with the mean of both slopes: x' = x + (d + d') / 2 with
    # d / 2 = half_alpha x0 + half eps. Of the call before, eps = (x - alpha x0) / start.
    correct = Weights(
        x0=half_alpha,
        eps=half,
        noise=noise,
        earlier_x0=(half_alpha - half * alphas[:-1] / start,),
        last_sample=1 + half / start,
    )
    return alternate(predict, correct, len(start))


@inherit_field_docs
@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class EDMHeunScheduler(ChurnOptions, EDMScheduler):
    """EDM's own sampler (Karras et al. 2022, Algorithms 1 and 2): n steps take 2n - 1 calls.

    The network's time input is `log(sigma) / 4`. `set_timesteps` takes what
    `EDMScheduler.set_timesteps` takes.
    """

    facts = EDMScheduler.facts.replace(
        order="2", calls="2", memory="2", noise="`s_churn`", paper="Karras et al. 2022"
    )

    def calls(self, levels: Levels) -> Levels:
        """Returns where the network is called: at each step's start and end."""
        raised = churn(self, levels.sigmas).raised
        return exploding_levels(self.parametrization, heun_calls(raised, levels.sigmas))

    def weights(self, levels: Levels) -> Weights:
        """Returns the table of Heun's method, with the noise that raises the next level."""
        added = churn(self, levels.sigmas)
        return heun_weights(added.raised, levels.sigmas, added.noise)


@inherit_field_docs
@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class HeunDiscreteScheduler(DiscreteSigmasScheduler):
    """Heun's method for models with discrete times: n steps take 2n - 1 network calls.

    The network's time input is a training time, 0..N-1, also between two. `set_timesteps` takes
    what `DiscreteSigmasScheduler.set_timesteps` takes.

    Attributes:
        clip_sample: clip x0 estimates.
        clip_sample_range: x0 is clipped to plus or minus this.
    """

    # As diffusers' default for this solver.
    beta_start: float = 0.00085
    beta_end: float = 0.012

    # Bounds of the x0 estimate.
    clip_sample: bool = False
    clip_sample_range: float = 1.0

    facts = DiscreteSigmasScheduler.facts.replace(
        order="2", calls="2", memory="2", paper="Karras et al. 2022"
    )

    # diffusers' class of this name does not rescale.
    _sibling_options = frozenset({"rescale_betas_zero_snr"})
    _domains = {"clip_sample_range": (1e-6, 1e6)}

    def bound(self, denoised: jax.Array) -> jax.Array:
        """Returns the x0 estimate, clipped if so configured."""
        if not self.clip_sample:
            return denoised
        return jnp.clip(denoised, -self.clip_sample_range, self.clip_sample_range)

    def calls(self, levels: Levels) -> Levels:
        """Returns where the network is called: at each step's start and end."""
        # There is no call at the end of the last step: its entry here only fills the shape, and
        # `interleave` drops it.
        arrivals = jnp.append(levels.times[1:], levels.times[-1:])
        times = interleave(levels.times, arrivals)
        sigmas = heun_calls(levels.sigmas, levels.sigmas)
        return exploding_levels(self.parametrization, sigmas, times)

    def weights(self, levels: Levels) -> Weights:
        """Returns the table of Heun's method."""
        return heun_weights(levels.sigmas, levels.sigmas)

"""Predictor-corrector sampling of the variance-exploding SDE (Song et al. 2021)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from cmjax.arrays import at_least_float32, scaled
from cmjax.parametrization import VESDE
from cmjax.schedulers.config_files import FileOption
from cmjax.schedulers.exploding import ExplodingScheduler
from cmjax.schedulers.facts import Facts
from cmjax.schedulers.langevin import langevin_columns, langevin_weights, ratio_of_norms
from cmjax.schedulers.levels import (
    Levels,
    append_zero,
    exploding_levels,
    parse_levels,
    root_of_difference,
    sde_times,
)
from cmjax.schedulers.table import TableState
from cmjax.schedulers.weights import Weights


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class ScoreSdeVeScheduler(ExplodingScheduler):
    """Langevin steps at each noise level, then a step of the reverse SDE to the next one.

    With the score s and noise z, the corrector's call is `x' = x + h s + sqrt(2 h) z` with `h = 2
    (snr |z| / |s|)^2`, the predictor's `x' = x + G^2 s + G z` with `G^2 = sigma^2 - sigma'^2` (Song
    et al. 2021, Algorithms 2 and 4; in the order of the authors' code). The norms are of each
    sample: diffusers takes their means over the batch, where samples depend on their neighbours,
    and agrees for a batch of one. A score of 0 leaves a sample as it is. For data of few dimensions
    set `correct_steps=0`: there |s| is small at many samples, and the corrector's steps too large.

    The network's time input is sigma, and its output the score, `(x0 - x) / sigma^2`.
    `set_timesteps` takes as `num_inference_steps` a number of times t from 1 to sampling_eps, as
    `timesteps` such times, and as `sigmas` levels in [sigma_min, sigma_max]. At time t the network
    takes `sigma_min (sigma_max / sigma_min)^t`, while steps go from sigma_max to sigma_min, a
    little lower, and then to 0; with explicit sigmas it takes the levels of the steps.

    Attributes:
        snr: signal-to-noise ratio of the corrector, which sets the size of its steps.
        sigma_min: lowest noise level.
        sigma_max: highest noise level, where sampling starts.
        sampling_eps: the last time that the network is called at, below 1.
        correct_steps: number of corrector's calls at each level; 0 for the predictor alone.
    """

    snr: float = 0.15
    sigma_min: float = 0.01
    sigma_max: float = 1348.0
    sampling_eps: float = 1e-5
    correct_steps: int = 1

    solves_ode = True
    facts = Facts(
        predicts="score",
        levels="exponential, `sigma_max` to `sigma_min`",
        calls="1 + `correct_steps`",
        noise="yes",
        order="1",
        paper="Song et al. 2021",
    )
    _file_options = {"num_train_timesteps": FileOption(2000, numbers=(1, 1_000_000))}
    _domains = {
        "snr": (0.0, 1000.0),
        "sampling_eps": (0.0, 0.999),
        "correct_steps": (0, 1000),
    }

    @property
    def parametrization(self) -> VESDE:
        """The variance-exploding path, and a network that returns the score."""
        return VESDE()

    def levels(self, name: str, value: Any) -> Levels:
        """Returns the levels between which steps go; their times are the network's inputs."""
        if name == "sigmas":
            sigmas = parse_levels(name, value, *self.sigma_range)
            return exploding_levels(self.parametrization, append_zero(sigmas))

        # The levels that the network is called at, and those between which steps go, f32[n] each.
        # diffusers calls the former `sigmas` and the latter `discrete_sigmas`.
        away = 1 - sde_times(name, value, self.sampling_eps)
        called = self.exponential_sigmas(away)
        sigmas = self.exponential_sigmas(away / (1 - self.sampling_eps))
        return exploding_levels(self.parametrization, append_zero(sigmas), called)

    def calls(self, levels: Levels) -> Levels:
        """Returns the level of each call: at every level the corrector's, then the predictor's."""
        _, called = self.parametrization.path(levels.times)
        called = jnp.repeat(called, self.correct_steps + 1)
        return exploding_levels(self.parametrization, append_zero(called))

    def weights(self, levels: Levels) -> Weights:
        """Returns the table of `x + G^2 s + G z`, after the rows of the corrector at each level."""
        # The network is called at the levels c, and steps go from sigma to sigma', f32[n] each.
        _, called = self.parametrization.path(levels.times)
        high = levels.sigmas[:-1]
        low = levels.sigmas[1:]

        # With x = x0 + c eps and s = -eps / c,
        #     x + G^2 s = x0 + (c - (sigma^2 - sigma'^2) / c) eps,
        # where c^2 - sigma^2 is a product, which cancels less. The last step adds no noise.
        eps = ((called - high) * (called + high) + jnp.square(low)) / called
        noise = root_of_difference(high, low).at[-1].set(0)
        predictor = Weights(x0=jnp.ones_like(called), eps=eps, noise=noise)
        corrector = langevin_columns(called, self.snr)
        of_calls = [corrector] * self.correct_steps + [predictor]

        # In the order of the calls: all of one level, then those of the next, f32[N].
        def column(*of_each_call):
            by_level = jnp.stack(of_each_call, axis=1)  # [n, correct_steps + 1]
            return by_level.reshape(-1)

        return jax.tree.map(column, *of_calls)

    def call_weights(self, state: TableState, row: Weights, arrays: Weights) -> Weights:
        """Returns the weights of a call: of the corrector's, f32[B] each, by norms."""
        if self.correct_steps == 0:
            return row

        # eps is (x - x0) / sigma, and so has the rounding of x0, of up to half of its last digit.
        # Where that is all of eps, as in bfloat16 at low levels, a step by its norm could be of any
        # size.
        half_a_digit = float(jnp.finfo(arrays.x0.dtype).eps) / 2
        error = scaled(half_a_digit / state.sigma, at_least_float32(arrays.x0))
        ratio = ratio_of_norms(arrays.noise, arrays.eps, error)

        # The last call at each level is the predictor's, whose row is not scaled.
        is_last = state.step_index % (self.correct_steps + 1) == self.correct_steps
        return langevin_weights(row, jnp.where(is_last, 1, ratio), self.snr)

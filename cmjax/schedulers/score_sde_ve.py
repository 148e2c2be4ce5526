"""Predictor-corrector sampling of the variance-exploding SDE (Song et al. 2021)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from cmjax.arrays import at_least_float32
from cmjax.parametrization import VESDE
from cmjax.schedulers.config_files import FileOption
from cmjax.schedulers.consistency import check_sigma_order
from cmjax.schedulers.facts import Facts
from cmjax.schedulers.levels import (
    MOST_STEPS,
    Levels,
    append_zero,
    check_num_steps,
    exploding_levels,
    exponential_sigmas,
    parse_levels,
    ramp,
)
from cmjax.schedulers.table import TableScheduler, TableState, Weights, root_of_difference

# A squared norm of eps below this is none: eps is of size 1, and float32 holds 1 / this squared.
_SMALLEST = 1e-18


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class ScoreSdeVeScheduler(TableScheduler):
    """Langevin steps at each noise level, then a step of the reverse SDE to the next one.

    With the score s and fresh noise z, a corrector's call is `x' = x + h s + sqrt(2 h) z` with
    `h = 2 (snr |z| / |s|)^2`, and the predictor's `x' = x + G^2 s + G z` with `G^2 = sigma^2 -
    sigma'^2` ("Score-Based Generative Modeling through Stochastic Differential Equations", Song et
    al. 2021, Algorithms 2 and 4). The corrector comes first, as in the authors' code. The norms are
    those of each sample alone; diffusers takes their means over the batch, so that there a sample
    depends on its neighbours. For a batch of one both are the same. Where the score is 0 a
    corrector's call leaves the sample as it is. The last step adds no noise.

    The network is told sigma, and returns the score, `(x0 - x) / sigma^2`. `set_timesteps` takes as
    `num_inference_steps` a number n of predictor steps, with `n (correct_steps + 1)` network calls;
    as `timesteps` times t of the SDE in [sampling_eps, 1]; as `sigmas` any levels in [sigma_min,
    sigma_max]. The network is told `sigma_min (sigma_max / sigma_min)^t` at n times t from 1 to
    sampling_eps. Steps go between n levels from sigma_max to sigma_min, a little lower than what
    the network is told, and then to 0; explicit sigmas are both.

    Attributes:
        snr: signal-to-noise ratio of the corrector, which sets the size of its steps.
        sigma_min: lowest noise level.
        sigma_max: highest noise level, where sampling starts.
        sampling_eps: the last time that the network is told of, below 1.
        correct_steps: number of corrector's calls at each level; 0 for the predictor alone.

    Raises:
        ValueError: for values outside their domain, or `sigma_min >= sigma_max`.
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
        "sigma_min": (1e-18, 1e18),  # float32 holds their squares
        "sigma_max": (1e-18, 1e18),
        "sampling_eps": (0.0, 0.999),
        "correct_steps": (0, 1000),
    }

    def __post_init__(self):
        super().__post_init__()
        check_sigma_order(self.sigma_min, self.sigma_max)

    @property
    def parametrization(self) -> VESDE:
        """The variance-exploding path, and a network that returns the score."""
        return VESDE()

    @property
    def sigma_range(self) -> tuple[float, float]:
        """The noise levels that the network knows, (sigma_min, sigma_max)."""
        return self.sigma_min, self.sigma_max

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the initial noise, `sigma_max`."""
        return self.sigma_max

    def first_scale(self, state: TableState) -> jax.Array:
        """Returns sigma of the first level, which may be below sigma_max, f32[]."""
        return state.sigma

    def levels(self, name: str, value: Any) -> Levels:
        """Returns the levels between which steps go; their times are what the network is told."""
        if name == "sigmas":
            sigmas = parse_levels(name, value, self.sigma_min, self.sigma_max)
            return exploding_levels(self.parametrization, append_zero(sigmas))

        # How far each call is from t = 1, f32[n].
        if name == "timesteps":
            away = 1 - parse_levels(name, value, self.sampling_eps, 1)
        else:
            away = (1 - self.sampling_eps) * ramp(check_num_steps(value, MOST_STEPS))

        # diffusers' `sigmas`, and its `discrete_sigmas` from above.
        ends = self.sigma_min, self.sigma_max
        told = jnp.asarray(exponential_sigmas(away, *ends), jnp.float32)
        sigmas = exponential_sigmas(away / (1 - self.sampling_eps), *ends)
        sigmas = append_zero(jnp.asarray(sigmas, jnp.float32))
        return exploding_levels(self.parametrization, sigmas, told)

    def calls(self, levels: Levels) -> Levels:
        """Returns the level that each call is told: the corrector's calls, then the predictor's."""
        told = jnp.repeat(levels.times, self.correct_steps + 1)
        return exploding_levels(self.parametrization, append_zero(told))

    def weights(self, levels: Levels) -> Weights:
        """Returns the table: a Langevin step where |z| = |eps|, and the predictor's."""
        told = levels.times
        high = levels.sigmas[:-1]
        low = levels.sigmas[1:]

        # x + G^2 s + G z with s = -eps / told and x = x0 + told eps, f32[n] each.
        fresh = root_of_difference(high, low).at[-1].set(0)
        eps = ((told - high) * (told + high) + jnp.square(low)) / told

        # The same with h = 2 (snr told)^2 instead of G^2.
        langevin_fresh = 2 * self.snr * told
        langevin_eps = told - self.snr * langevin_fresh

        # [n, correct_steps + 1] -> f32[N].
        before = [langevin_fresh] * self.correct_steps
        noise = jnp.stack([*before, fresh], axis=1).reshape(-1)
        before = [langevin_eps] * self.correct_steps
        return Weights(
            x0=1.0, eps=jnp.stack([*before, eps], axis=1).reshape(-1), noise=noise
        )

    def call_weights(self, state: TableState, row: Weights, arrays: Weights) -> Weights:
        """Returns the weights of a call, f32[B] each: h grows with (|z| / |eps|)^2 = ratio^2."""
        if self.correct_steps == 0:
            return row
        ratio = _ratio_of_norms(arrays.noise, arrays.eps)

        # The last call at each level is the predictor's.
        place = state.step_index % (self.correct_steps + 1)
        ratio = jnp.where(place == self.correct_steps, 1, ratio)
        eps = row.eps + self.snr * row.noise * (1 - jnp.square(ratio))
        return row._replace(eps=eps, noise=row.noise * ratio)


def _ratio_of_norms(noise: jax.Array, eps: jax.Array) -> jax.Array:
    """Returns |noise| / |eps| of each sample, f32[B]; 0, with gradient 0, where either is 0."""

    def squared_norm(x):
        square = jnp.square(at_least_float32(x))
        return jnp.sum(square, axis=tuple(range(1, x.ndim))).astype(jnp.float32)

    above = squared_norm(noise)
    below = squared_norm(eps)
    known = (above > 0) & (below > _SMALLEST)
    square = jnp.where(known, above, 1) / jnp.where(known, below, 1)
    return jnp.where(known, jnp.sqrt(square), 0)

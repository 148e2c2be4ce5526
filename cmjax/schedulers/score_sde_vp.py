"""Euler-Maruyama steps of the variance-preserving SDE, backwards (Song et al. 2021)."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from cmjax.parametrization import VPSDE
from cmjax.parametrization.sde import VP_TIME_FACTOR
from cmjax.schedulers.config_files import FileOption
from cmjax.schedulers.facts import Facts
from cmjax.schedulers.levels import Levels, append_zero, sde_times
from cmjax.schedulers.table import TableScheduler, TableState
from cmjax.schedulers.weights import Weights


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class ScoreSdeVpScheduler(TableScheduler):
    """Steps of length d back along the reverse SDE of `dx = -beta x / 2 dt + sqrt(beta) dw`.

    With h = beta(t) d, `x' = x + h (x / 2 + s) + sqrt(h) z`, where s is the score and z fresh
    noise. It is the reverse SDE (Song et al. 2021, arXiv 2011.13456, equation 6) of the VP SDE
    (equation 32). The last step adds no noise.

    The network's time input is 999 t, as in the authors' code. The network predicts the noise,
    `-sigma s`. `set_timesteps` takes as `num_inference_steps` a number n of times t from 1 to
    sampling_eps, with steps of length 1/n from each, as in diffusers; or as `timesteps` times t in
    [sampling_eps, 1], with steps from each to the next one, and from the last to 0.

    Attributes:
        beta_min: beta at t = 0.
        beta_max: beta at t = 1, between which it is linear.
        sampling_eps: the last time, where the network is called last.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    sampling_eps: float = 1e-3

    solves_ode = True
    facts = Facts(
        predicts="epsilon",
        levels="times, 1 to `sampling_eps`",
        order="1",
        noise="yes",
        paper="Song et al. 2021",
    )
    _file_options = {"num_train_timesteps": FileOption(2000, numbers=(1, 1_000_000))}
    _domains = {
        # float32 holds 1 / alpha^2 = exp((beta_min + beta_max) / 2).
        "beta_min": (1e-4, 80.0),
        "beta_max": (1e-4, 80.0),
        "sampling_eps": (1e-8, 0.999),
    }

    @property
    def parametrization(self) -> VPSDE:
        """The variance-preserving path in continuous time, and a network that predicts noise."""
        return VPSDE(self.beta_min, self.beta_max)

    @property
    def sigma_range(self) -> tuple[float, float]:
        """The lowest and highest sigma / alpha, at t = sampling_eps and at t = 1."""
        # sigma^2 / alpha^2 = 1 / alpha^2 - 1.
        low, high = map(self.parametrization.integral, (self.sampling_eps, 1.0))
        return math.sqrt(math.expm1(low)), math.sqrt(math.expm1(high))

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the initial noise, 1."""
        return 1.0

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        *,
        timesteps: Any = None,
        sigmas: Any = None,
    ) -> TableState:
        """Returns the state at the start of a run; see `TableScheduler.set_timesteps`."""
        state = super().set_timesteps(
            num_inference_steps, timesteps=timesteps, sigmas=sigmas
        )
        if num_inference_steps is None:
            return state

        # Steps of length 1/n, a little shorter than from one of diffusers' times to the next.
        levels = Levels(state.timesteps, state.alphas, state.sigmas)
        return self._state(levels, self._table(levels, 1 / state.num_steps))

    def levels(self, name: str, value: Any) -> Levels:
        """Returns the levels of the times of a run, ending at x0."""
        if name == "sigmas":
            raise ValueError(
                f"{type(self).__name__} takes timesteps=[1.0, ...], not sigmas"
            )

        times = jnp.asarray(sde_times(name, value, self.sampling_eps), jnp.float32)
        time_inputs = VP_TIME_FACTOR * times
        alphas, sigmas = self.parametrization.path(time_inputs)
        alphas = jnp.append(alphas, jnp.ones(1, jnp.float32))
        return Levels(time_inputs, alphas, append_zero(sigmas))

    def weights(self, levels: Levels) -> Weights:
        """Returns the table of steps from each time to the next one, and from the last to 0."""
        return self._table(levels, -jnp.diff(append_zero(levels.times)) / VP_TIME_FACTOR)

    def _table(self, levels: Levels, lengths: Any) -> Weights:
        """The table of `x' = (1 + h / 2) x - (h / sigma) eps + sqrt(h) z`, h = beta lengths."""
        h = self.parametrization.beta(levels.times) * lengths
        alpha = levels.alphas[:-1]
        sigma = levels.sigmas[:-1]

        # With x = alpha x0 + sigma eps.
        growth = 1 + h / 2
        noise = jnp.sqrt(h).at[-1].set(0)
        return Weights(x0=growth * alpha, eps=growth * sigma - h / sigma, noise=noise)

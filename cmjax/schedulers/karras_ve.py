"""EDM's stochastic sampler for networks of variance-exploding diffusion (Karras et al. 2022)."""

import dataclasses
from typing import Any

import jax

from cmjax.parametrization import KarrasVe
from cmjax.schedulers.churn import Churn, churn
from cmjax.schedulers.exploding import ExplodingScheduler
from cmjax.schedulers.facts import Facts
from cmjax.schedulers.heun import heun_calls, heun_weights
from cmjax.schedulers.levels import (
    MOST_STEPS,
    Levels,
    append_zero,
    check_num_steps,
    exploding_levels,
    parse_levels,
    ramp,
)
from cmjax.schedulers.weights import Weights


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class KarrasVeScheduler(ExplodingScheduler):
    """Heun's method with churn (Karras et al. 2022, Algorithm 2): n steps take 2n - 1 calls.

    Its networks are those of Song et al. 2021: they return the negative noise, so that
    `x0 = x + sigma F`, and see the sample as it is. The network's time input is `sigma / 2`. That
    is the noise level of images in [0, 1]; the `UNet2DModel` of such a model, which takes these and
    returns a score, becomes `apply_fn` by

        lambda params, x, t: t[:, None, None, None] * unet(params, (x + 1) / 2, t)

    `set_timesteps` takes as `num_inference_steps` a number of steps, from sigma_max to sigma_min in
    equal steps of log sigma (table 1, column VE), and then to 0; as `timesteps` the network's
    times, `sigma / 2`; as `sigmas` any levels in [sigma_min, sigma_max].

    Attributes:
        sigma_min: lowest noise level at which the network is called.
        sigma_max: highest noise level, where sampling starts.
        s_noise: factor on the added noise.
        s_churn: total amount of noise added before steps; 0 is the deterministic Algorithm 1.
        s_min: lowest level before which noise is added.
        s_max: highest level before which noise is added.

    Raises:
        ValueError: for values outside their domain, or `sigma_min >= sigma_max`.
    """

    # The levels of a run.
    sigma_min: float = 0.02
    sigma_max: float = 100.0

    # Karras et al. 2022, Algorithm 2.
    s_noise: float = 1.007
    s_churn: float = 80.0
    s_min: float = 0.05
    s_max: float = 50.0

    solves_ode = True
    facts = Facts(
        predicts="F of x0 = x + sigma F, about -z",
        levels="exponential, `sigma_max` to `sigma_min`",
        order="2",
        calls="2",
        memory="2",
        noise="`s_churn`",
        paper="Karras et al. 2022",
    )
    _domains = {
        "s_noise": (0.0, 1e18),
        "s_churn": (0.0, 1e18),
        "s_min": (0.0, 1e18),
        "s_max": (0.0, 1e18),
    }

    @property
    def parametrization(self) -> KarrasVe:
        """What the network means."""
        return KarrasVe()

    def levels(self, name: str, value: Any) -> Levels:
        """Returns the noise levels of the solver's steps, and of the end."""
        low, high = self.sigma_range
        if name == "sigmas":
            sigmas = parse_levels(name, value, low, high)
        elif name == "timesteps":
            _, sigmas = self.parametrization.path(
                parse_levels(name, value, low / 2, high / 2)
            )
        else:
            sigmas = self.exponential_sigmas(ramp(check_num_steps(value, MOST_STEPS)))
        return exploding_levels(self.parametrization, append_zero(sigmas))

    def calls(self, levels: Levels) -> Levels:
        """Returns where the network is called: at each step's start and end."""
        raised = self._churn(levels).raised
        return exploding_levels(self.parametrization, heun_calls(raised, levels.sigmas))

    def weights(self, levels: Levels) -> Weights:
        """Returns the table of Heun's method, with the noise that raises the next level."""
        added = self._churn(levels)
        return heun_weights(added.raised, levels.sigmas, added.noise)

    def _churn(self, levels: Levels) -> Churn:
        """The noise that is added before steps from levels between s_min and s_max."""
        return churn(self, levels.sigmas, within=(self.s_min, self.s_max))

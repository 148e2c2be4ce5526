"""DPM-Solver++ 2M: second order with one network call a step (Lu et al. 2022, arXiv 2211.01095)."""

import dataclasses

import jax
import jax.numpy as jnp

from cmjax.schedulers.bounds import dynamic_threshold
from cmjax.schedulers.edm import EDMScheduler
from cmjax.schedulers.levels import Levels
from cmjax.schedulers.table import Weights, root_of_difference

_FEW_STEPS = 15  # runs of fewer steps end with a lower order, as in diffusers


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class EDMDPMSolverMultistepScheduler(EDMScheduler):
    """DPM-Solver++ on EDM noise levels (Lu et al. 2022, Algorithm 2).

    The second order comes from the x0 estimate of the step before. A last step to sigma = 0 always
    is of first order.

    The network is told `log(sigma) / 4`. `set_timesteps` takes what that of `EDMScheduler` takes.

    Attributes:
        sigma_min: lowest noise level at which the network is called.
        sigma_max: highest noise level, where sampling starts.
        sigma_data: standard deviation of the data.
        sigma_schedule: spacing of the levels: "karras" (equation 5) or "exponential".
        prediction_type: "epsilon" is EDM's network, "v_prediction" its negative.
        rho: curvature of the levels.
        final_sigmas_type: sampling ends at "zero" or at "sigma_min".
        solver_order: order of the solver, 1 or 2.
        thresholding: scale x0 estimates that leave [-1, 1] (Saharia et al. 2022, section 2.3).
        dynamic_thresholding_ratio: which quantile of a sample's |x0| is scaled to 1, if it is
            above 1.
        sample_max_value: the largest number that a sample is divided by.
        algorithm_type: "dpmsolver++", or "sde-dpmsolver++" with fresh noise at every step but the
            last.
        solver_type: "midpoint" or "heun" form of the second order.
        lower_order_final: end with a first-order step in runs of fewer than 15 steps.
        euler_at_final: end with a first-order step in all runs.
    """

    solver_order: int = 2

    # Bounds of the x0 estimate.
    thresholding: bool = False
    dynamic_thresholding_ratio: float = 0.995
    sample_max_value: float = 1.0

    # The form of the step, and which steps are of first order.
    algorithm_type: str = "dpmsolver++"
    solver_type: str = "midpoint"
    lower_order_final: bool = True
    euler_at_final: bool = False

    _domains = {
        "solver_order": (1, 2),
        "dynamic_thresholding_ratio": (0.0, 1.0),
        "sample_max_value": (1.0, 1e6),
        "algorithm_type": ("dpmsolver++", "sde-dpmsolver++"),
        "solver_type": ("midpoint", "heun"),
    }

    def bound(self, denoised: jax.Array) -> jax.Array:
        """Returns the x0 estimate, thresholded if so configured."""
        if not self.thresholding:
            return denoised
        return dynamic_threshold(
            denoised, self.dynamic_thresholding_ratio, self.sample_max_value
        )

    def weights(self, levels: Levels) -> Weights:
        """Returns the table of DPM-Solver++, with `h = log(sigma / sigma')`.

        `x' = a x + (1 - a) (x0 + c (x0 - x0_before)) + up z`. The ODE has a = exp(-h) =
        sigma' / sigma and no noise. The SDE has a = exp(-2h) and `up = sigma' sqrt(1 - a)`, except
        in the last step, which is the ODE's.
        """
        # Each step goes from sigma to sigma', f32[n] each.
        high = levels.sigmas[:-1]
        low = levels.sigmas[1:]
        n = len(high)
        index = jnp.arange(n)

        # exp(-h), and h itself; 0 stands for infinity where the step ends at sigma' = 0.
        ratio = low / high
        h = -jnp.log(jnp.where(ratio > 0, ratio, 1))

        # a, and with it the noise and the exponent: h for the ODE, 2h for the SDE.
        stochastic = self.algorithm_type == "sde-dpmsolver++"
        adds_noise = stochastic & (index < n - 1)
        a = jnp.where(adds_noise, ratio * ratio, ratio)
        up = jnp.where(adds_noise, ratio * root_of_difference(high, low), 0)
        exponent = jnp.where(adds_noise, 2 * h, h)

        # (1 - a) c r, where r = h_before / h is the ratio of the step before to this one. The two
        # forms differ by terms of third order in h.
        moving = h > 0
        if self.solver_type == "midpoint":
            second = (1 - a) / 2
        else:
            second = 1 - (1 - a) / jnp.where(moving, exponent, 1)

        # The first step has no estimate before it; the last step may be of first order.
        last_is_first_order = self.euler_at_final or self.final_sigmas_type == "zero"
        last_is_first_order |= self.lower_order_final and n < _FEW_STEPS
        not_last = (index < n - 1) | (not last_is_first_order)
        second_order = (self.solver_order == 2) & (index > 0) & moving & not_last

        # (1 - a) c = ((1 - a) c r) h / h_before: the weight that x0 gains and x0_before loses.
        before = jnp.append(jnp.ones(1, h.dtype), h[:-1])
        back = jnp.where(second_order, second * h / before, 0)

        # With x = x0 + sigma eps, a x + (1 - a) x0 is x0 + a sigma eps.
        return Weights(
            x0=1 + back,
            eps=a * high,
            noise=up if stochastic else None,
            earlier_x0=(-back,) if self.solver_order == 2 else (),
        )

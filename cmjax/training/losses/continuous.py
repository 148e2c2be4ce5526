"""The continuous-time losses of 2023: consistency between infinitely close noise levels."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import random

from cmjax.arrays import ApplyFn, combine
from cmjax.parametrization import consistency_function
from cmjax.schedulers.levels import karras_sigmas
from cmjax.training.losses.base import (
    Loss,
    add_noise,
    check_sigma_data,
    karras_range,
    split_batch,
    teacher_slope,
)
from cmjax.training.losses.metrics import mean_square


@dataclasses.dataclass(frozen=True)
class ContinuousConsistencyTraining(Loss):
    """Consistency training between infinitely close levels (Song et al. 2023, theorem 6).

    Its gradient is the limit of N - 1 times that of `ConsistencyTraining` on N levels with the l2
    metric, which is what the paper's pseudo-objective is for. The value is the square of which
    that is the gradient, `|f - f_target + df_target/du|^2`. Kept for study: it is unstable, as the
    paper says.

    Attributes:
        scheduler: says what the network means, and the range of noise levels.

    Raises:
        ValueError: if the scheduler has no range of noise levels.
    """

    scheduler: Any

    def __post_init__(self):
        super().__post_init__()
        check_sigma_data(self.scheduler)
        karras_range(self.scheduler)

    def __call__(self, key, apply_fn, params, frozen, batch, step):
        """Returns the loss; `frozen.teacher` and `step` are not used."""
        del step

        def slope(x, sigma, noise):
            # Without a teacher the slope of x0 + sigma z at fixed z, right on average.
            del x, sigma
            return noise

        return _continuous_loss(self.scheduler, key, apply_fn, params, frozen.target, batch, slope)


@dataclasses.dataclass(frozen=True)
class ContinuousConsistencyDistillation(Loss):
    """Consistency distillation between infinitely close levels (Song et al. 2023, theorem 5).

    As `ContinuousConsistencyTraining`, along the teacher's probability-flow ODE.

    Attributes:
        scheduler: says what the networks mean, and the range of noise levels.
        teacher_fn: the teacher's network, `(teacher, x, t, **cond) -> model_output`; None for the
            student's.

    Raises:
        ValueError: if the scheduler has no range of noise levels.
    """

    scheduler: Any
    teacher_fn: ApplyFn | None = None

    needs_teacher: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        check_sigma_data(self.scheduler)
        karras_range(self.scheduler)

    def __call__(self, key, apply_fn, params, frozen, batch, step):
        """Returns the loss; `step` is not used."""
        del step
        cond = split_batch(batch)[1]
        ode_slope = teacher_slope(self.teacher_fn or apply_fn, frozen.teacher, self.scheduler, cond)

        def slope(x, sigma, noise):
            del noise
            return ode_slope(x, sigma)

        return _continuous_loss(self.scheduler, key, apply_fn, params, frozen.target, batch, slope)


def _continuous_loss(scheduler, key, apply_fn, params, target_params, batch, slope):
    """The loss with x moving along `slope(x, sigma, noise)`, dx/dsigma."""
    data, cond = split_batch(batch)

    # Levels uniform along the grid, u from 0 (sigma_min) to 1, and dsigma/du.
    level_key, noise_key = random.split(key)
    u = random.uniform(level_key, data.shape[:1])
    sigma, rate = jax.jvp(
        lambda u: karras_sigmas(1 - u, *karras_range(scheduler)), (u,), (1 + 0 * u,)
    )
    noise = random.normal(noise_key, data.shape)
    noisy = add_noise(data, sigma, noise)

    def f(params, x, sigma):
        return consistency_function(apply_fn, params, scheduler, x, sigma, **cond)

    # The target's total derivative df/du along the path, in one forward-mode pass.
    dx_du = combine((rate, slope(noisy, sigma, noise)))
    value, tangent = jax.jvp(
        lambda x, sigma: f(target_params, x, sigma), (noisy, sigma), (dx_du, rate)
    )
    target = jax.lax.stop_gradient(value - tangent)
    loss = jnp.mean(mean_square(f(params, noisy, sigma) - target))
    return loss, {"loss": loss}

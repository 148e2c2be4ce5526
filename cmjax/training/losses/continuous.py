"""The continuous-time losses of 2023: consistency between infinitely close noise levels."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from cmjax import random
from cmjax.arrays import ApplyFn, scaled
from cmjax.parametrization import consistency_function
from cmjax.schedulers.levels import karras_sigmas
from cmjax.training.losses.base import Loss
from cmjax.training.losses.batches import split_batch
from cmjax.training.losses.checks import check_edm_scheduler, karras_range
from cmjax.training.losses.draws import add_noise
from cmjax.training.losses.frozen_networks import denoiser_slope, target_of
from cmjax.training.losses.metrics import mean_square


@dataclasses.dataclass(frozen=True)
class ContinuousConsistencyTraining(Loss):
    """Consistency training between infinitely close levels (Song et al. 2023, theorem 6).

    Its gradient is that of the paper's pseudo-objective: the limit of N - 1 times the gradient of
    `ConsistencyTraining` on N levels with the l2 metric. Its value is the squared error that has
    this gradient, `|f - f_target + df_target/du|^2`. For study only: it is unstable, as the paper
    says.

    Attributes:
        scheduler: gives the network's parametrization and the range of noise levels.

    Raises:
        ValueError: if the scheduler has no range of noise levels.
    """

    scheduler: Any

    def __post_init__(self):
        super().__post_init__()
        check_edm_scheduler(self.scheduler)

    def __call__(self, key, apply_fn, params, frozen, batch, step):
        """Returns the loss; `frozen.teacher` and `step` are not used."""
        del step

        def slope(x, sigma, noise):
            # Without a teacher, the slope of x0 + sigma z at fixed z: z, whose mean given x is the
            # slope of the probability-flow ODE.
            del x, sigma
            return noise

        return _continuous_loss(
            self.scheduler, key, apply_fn, params, target_of(params, frozen), batch, slope
        )


@dataclasses.dataclass(frozen=True)
class ContinuousConsistencyDistillation(Loss):
    """Consistency distillation between infinitely close levels (Song et al. 2023, theorem 5).

    Like `ContinuousConsistencyTraining`, but x moves along the teacher's probability-flow ODE.

    Attributes:
        scheduler: gives the networks' parametrization and the range of noise levels.
        teacher_fn: the teacher's network, `(teacher, x, t, **cond) -> model_output`; None if it is
            the student's.

    Raises:
        ValueError: if the scheduler has no range of noise levels.
    """

    scheduler: Any
    teacher_fn: ApplyFn | None = None

    needs_teacher: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        check_edm_scheduler(self.scheduler)

    def __call__(self, key, apply_fn, params, frozen, batch, step):
        """Returns the loss; `step` is not used."""
        del step

        # dx/dsigma of the teacher; the noise that was drawn no longer matters.
        _, cond = split_batch(batch)
        ode_slope = denoiser_slope(self, apply_fn, params, frozen, cond)

        def slope(x, sigma, noise):
            del noise
            return ode_slope(x, sigma)

        return _continuous_loss(
            self.scheduler, key, apply_fn, params, target_of(params, frozen), batch, slope
        )


def _continuous_loss(scheduler, key, apply_fn, params, target_params, batch, slope):
    """Returns (loss, metrics) where x moves along dx/dsigma = `slope(x, sigma, noise)`."""
    data, cond = split_batch(batch)

    # Levels sigma(u) uniform along the grid, u from 0 (sigma_min) to 1 (sigma_max), and the rate
    # dsigma/du, f32[B] each. The tangent of u is 1 + 0 u: ones with the type that `jvp` wants.
    def level_at(u):
        return karras_sigmas(1 - u, *karras_range(scheduler))

    level_key, noise_key = random.split(key)
    u = random.uniform(level_key, data.shape[:1])
    sigma, dsigma_du = jax.jvp(level_at, (u,), (1 + 0 * u,))

    # Noisy samples x0 + sigma z, and their derivative, `[B, ...]` each. A tangent must have the
    # dtype of the samples, which noise and the slopes of some teachers have not.
    noise = random.normal(noise_key, data.shape)
    noisy = add_noise(data, sigma, noise)
    dx_dsigma = slope(noisy, sigma, noise).astype(noisy.dtype)
    dx_du = scaled(dsigma_du, dx_dsigma)

    # f(x, sigma) of the target, and its total derivative df/du along the path, in one forward-mode
    # pass.
    def f(params, x, sigma):
        return consistency_function(apply_fn, params, scheduler, x, sigma, **cond)

    def f_target(x, sigma):
        return f(target_params, x, sigma)

    value, df_du = jax.jvp(f_target, (noisy, sigma), (dx_du, dsigma_du))

    # With f = f_target in value, the gradient of |f - (f_target - df/du)|^2 is 2 df/du . grad f.
    target = jax.lax.stop_gradient(value - df_du)
    error = mean_square(f(params, noisy, sigma) - target)
    loss = jnp.mean(error)
    return loss, {"loss": loss}

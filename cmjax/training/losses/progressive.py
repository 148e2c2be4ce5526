"""Progressive distillation, the few-step method that consistency models are compared with."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from cmjax import random
from cmjax.arrays import ApplyFn, weighted_sum
from cmjax.parametrization import edm_denoiser
from cmjax.schedulers.euler import EDMEulerScheduler
from cmjax.training.discretization import adjacent_levels
from cmjax.training.losses.base import Loss, Preview
from cmjax.training.losses.batches import split_batch
from cmjax.training.losses.checks import check_edm_scheduler, karras_range
from cmjax.training.losses.draws import add_noise
from cmjax.training.losses.frozen_networks import teacher_network
from cmjax.training.losses.metrics import mean_square


@dataclasses.dataclass(frozen=True)
class ProgressiveDistillation(Loss):
    """One DDIM step of the student replaces two of the teacher (Salimans, Ho 2022, Algorithm 2).

    On EDM's noise levels DDIM is Euler's method. One run with this loss is one round of the
    distillation; the next round has half the `student_steps`, and this student as its teacher. The
    error of x0 is weighted by the truncated signal-to-noise ratio `max(1 / sigma^2, 1)` (section
    4).

    Attributes:
        scheduler: gives the networks' parametrization and the range of noise levels.
        student_steps: sampling steps of the student over the Karras grid; the teacher takes twice
            as many.
        teacher_fn: the teacher's network, `(teacher, x, t, **cond) -> model_output`; None if it is
            the student's.

    Raises:
        ValueError: for values outside their domain.
    """

    scheduler: Any
    student_steps: int = 512
    teacher_fn: ApplyFn | None = None

    needs_teacher: ClassVar[bool] = True
    _domains = {"student_steps": (1, 1_000_000)}

    def __post_init__(self):
        super().__post_init__()
        check_edm_scheduler(self.scheduler)

    @property
    def preview(self) -> Preview:
        """Euler's method in `student_steps` steps, the only number that the student learns."""
        return Preview((self.student_steps,), EDMEulerScheduler)

    def __call__(self, key, apply_fn, params, frozen, batch, step):
        """Returns the loss; `frozen.target` and `step` are not used."""
        del step
        data, cond = split_batch(batch)

        # Three neighbouring levels of the teacher's grid, f32[B] each; the student's grid is every
        # other one of them, so a step of the student is from `high` to `low`.
        level_key, noise_key = random.split(key)
        index = random.randint(level_key, data.shape[:1], 0, self.student_steps)
        num_levels = jnp.int32(2 * self.student_steps + 1)
        sigma_range = karras_range(self.scheduler)
        high, middle = adjacent_levels(2 * index, num_levels, *sigma_range)
        _, low = adjacent_levels(2 * index + 1, num_levels, *sigma_range)

        # The teacher's x0 at noisy data, and at what an Euler step from `high` to `middle` makes of
        # them.
        teacher_fn = teacher_network(self, apply_fn, params, frozen)

        def teacher(x, sigma):
            return edm_denoiser(
                teacher_fn, frozen.teacher, self.scheduler, x, sigma, **cond
            )

        noisy = add_noise(data, high, random.normal(noise_key, data.shape))
        first = teacher(noisy, high)
        halfway = weighted_sum((middle / high, noisy), (1 - middle / high, first))
        second = teacher(halfway, middle)

        # The x0 with which one Euler step goes where both of the teacher's do, down to `low`
        # (appendix G): end = noisy + (low - high) (noisy - x0) / high, solved for x0. Of the
        # teacher's end alone, it would be a small difference of large numbers; in terms of the two
        # estimates it is a mean, whose weights add up to 1.
        first_weight = low * (high - middle) / (middle * (high - low))
        target = weighted_sum((first_weight, first), (1 - first_weight, second))

        # The error of x0, with the truncated SNR weight: at high noise 1 / sigma^2 alone would
        # all but ignore the error, and one-step sampling depends on it.
        denoised = edm_denoiser(apply_fn, params, self.scheduler, noisy, high, **cond)
        error = denoised - jax.lax.stop_gradient(target)
        weight = jnp.maximum(1 / jnp.square(high), 1)
        loss = jnp.mean(weight * mean_square(error))
        return loss, {"loss": loss}

"""Progressive distillation, the few-step method that consistency models are compared with."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from cmjax import random
from cmjax.arrays import ApplyFn, combine
from cmjax.parametrization import edm_denoiser
from cmjax.schedulers.euler import EDMEulerScheduler
from cmjax.training.discretization import adjacent_levels
from cmjax.training.losses.base import Loss, Preview, add_noise, split_batch, teacher_slope
from cmjax.training.losses.checks import check_sigma_data, karras_range
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
        check_sigma_data(self.scheduler)
        karras_range(self.scheduler)

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

        # Two Euler steps of the teacher, from noisy data at `high` to `end` at `low`.
        noisy = add_noise(data, high, random.normal(noise_key, data.shape))
        slope = teacher_slope(
            self.teacher_fn or apply_fn, frozen.teacher, self.scheduler, cond
        )
        halfway = combine((1, noisy), (middle - high, slope(noisy, high)))
        end = combine((1, halfway), (low - middle, slope(halfway, middle)))

        # The x0 with which one Euler step goes from `noisy` to `end` (appendix G):
        # end = noisy + (low - high) (noisy - x0) / high, solved for x0.
        target = combine((high / (high - low), end), (-low / (high - low), noisy))

        # The error of x0, with the truncated SNR weight: at high noise 1 / sigma^2 alone would
        # all but ignore the error, and one-step sampling depends on it.
        denoised = edm_denoiser(apply_fn, params, self.scheduler, noisy, high, **cond)
        error = denoised - jax.lax.stop_gradient(target)
        weight = jnp.maximum(1 / jnp.square(high), 1)
        loss = jnp.mean(weight * mean_square(error))
        return loss, {"loss": loss}

"""Progressive distillation, which consistency models are compared with."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import random

from cmjax.arrays import ApplyFn, combine
from cmjax.parametrization import edm_denoiser
from cmjax.schedulers.euler import EDMEulerScheduler
from cmjax.training.discretization import adjacent_levels
from cmjax.training.losses.base import (
    Loss,
    Preview,
    add_noise,
    check_sigma_data,
    karras_range,
    split_batch,
    teacher_slope,
)
from cmjax.training.losses.metrics import mean_square


@dataclasses.dataclass(frozen=True)
class ProgressiveDistillation(Loss):
    """One DDIM step of the student does two of the teacher (Salimans and Ho 2022, Algorithm 2).

    DDIM on EDM's noise levels is Euler's method. A round of the distillation is a run with this
    loss; the next has half the `student_steps`, and this student for its teacher. Weighted by the
    truncated signal-to-noise ratio `max(1 / sigma^2, 1)` (section 4).

    Attributes:
        scheduler: says what the networks mean, and the range of noise levels.
        student_steps: steps that the student takes over the Karras grid; the teacher takes twice as
            many.
        teacher_fn: the teacher's network, `(teacher, x, t, **cond) -> model_output`; None for the
            student's.

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
        """Euler's method, in as many steps as the student learns to take."""
        return Preview((self.student_steps,), EDMEulerScheduler)

    def __call__(self, key, apply_fn, params, frozen, batch, step):
        """Returns the loss; `frozen.target` and `step` are not used."""
        del step
        data, cond = split_batch(batch)

        # Three neighbouring levels of the teacher's grid.
        level_key, noise_key = random.split(key)
        index = random.randint(level_key, data.shape[:1], 0, self.student_steps)
        num_levels = jnp.int32(2 * self.student_steps + 1)
        sigma_range = karras_range(self.scheduler)
        high, middle = adjacent_levels(2 * index, num_levels, *sigma_range)
        _, low = adjacent_levels(2 * index + 1, num_levels, *sigma_range)

        # Two Euler steps of the teacher.
        noisy = add_noise(data, high, random.normal(noise_key, data.shape))
        slope = teacher_slope(self.teacher_fn or apply_fn, frozen.teacher, self.scheduler, cond)
        halfway = combine((1, noisy), (middle - high, slope(noisy, high)))
        end = combine((1, halfway), (low - middle, slope(halfway, middle)))

        # The x0 with which one Euler step goes from `noisy` to `end` (appendix G).
        target = combine((high / (high - low), end), (-low / (high - low), noisy))

        denoised = edm_denoiser(apply_fn, params, self.scheduler, noisy, high, **cond)
        error = denoised - jax.lax.stop_gradient(target)
        weight = jnp.maximum(1 / jnp.square(high), 1)
        loss = jnp.mean(weight * mean_square(error))
        return loss, {"loss": loss}

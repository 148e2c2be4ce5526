"""Consistency between two noise levels: distillation (CD) and training (CT)."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from cmjax import random
from cmjax.arrays import ApplyFn, along_batch, weighted_sum
from cmjax.parametrization import Denoiser, consistency_function
from cmjax.training.discretization import (
    adjacent_levels,
    growing_num_levels,
    growing_target_decay,
)
from cmjax.training.losses.base import Batch, Loss
from cmjax.training.losses.batches import split_batch
from cmjax.training.losses.checks import (
    check_edm_scheduler,
    check_metric,
    check_total_steps,
    karras_range,
)
from cmjax.training.losses.draws import add_noise
from cmjax.training.losses.frozen_networks import denoiser_slope, target_of
from cmjax.training.losses.metrics import Metric, PseudoHuber, per_sample

LEVELS = (1, 1_000_000)  # fewest and most noise levels of a grid, or intervals between them


class TwoLevelLoss(Loss):
    """Base of the losses between two levels, which need a range of noise levels and a metric."""

    scheduler: Any
    metric: Any

    def __post_init__(self):
        super().__post_init__()
        check_edm_scheduler(self.scheduler)
        check_metric(self.metric)

    def distances(
        self,
        key: jax.Array,
        apply_fn: ApplyFn,
        params: Any,
        target_params: Any,
        batch: Batch,
        higher: jax.Array,
        lower: jax.Array,
        denoiser: Denoiser = consistency_function,
    ) -> jax.Array:
        """Returns d(f(x0 + higher z), f_target(x0 + lower z)), f32[B], with the same noise z.

        Args:
            key: draws z.
            apply_fn: the network.
            params: of f, which the gradient is taken with respect to.
            target_params: of f_target.
            batch: the data x0 and their conditioning.
            higher: noise levels, f32[B].
            lower: noise levels, f32[B]. Where one is 0, the target is x0 itself, which a
                consistency function does not change.
            denoiser: how f reads the network as x0: `consistency_function`, or `edm_denoiser`,
                which has no boundary condition.
        """
        data, cond = split_batch(batch)
        noise = random.normal(key, data.shape)

        # The same noise at both levels, so that the two points lie on one path.
        def f(params, sigma):
            noisy = add_noise(data, sigma, noise)
            return denoiser(apply_fn, params, self.scheduler, noisy, sigma, **cond)

        # Networks are not called at a level of 0, whose logarithm is not finite.
        is_noisy = lower > 0
        target = f(target_params, jnp.where(is_noisy, lower, higher))
        target = jax.lax.stop_gradient(target)
        target = jnp.where(along_batch(is_noisy, data.ndim), target, data)

        distances = self.metric(f(params, higher), target)
        return per_sample("metric", distances, data.shape[0])


@dataclasses.dataclass(frozen=True)
class ConsistencyDistillation(TwoLevelLoss):
    """Consistency distillation, CD (Song et al. 2023, Algorithm 2).

    The student's x0 at one noise level is compared with the target network's x0 at the next lower
    level, at the sample that one ODE step of the teacher gives. The teacher is an EDM denoiser.
    Defaults are the paper's for CIFAR-10 (appendix C, table 3), except the metric, which is LPIPS
    there.

    Attributes:
        scheduler: gives the networks' parametrization and the range of noise levels.
        num_levels: N, the number of noise levels on the Karras grid, which does not grow.
        target_decay: mu, the decay of the target's moving average; with 0 the target is the
            trained parameters.
        solver: method of the teacher's step, "heun" or "euler".
        metric: how two estimates of x0 are compared, `(a, b) -> f32[B]`.
        teacher_fn: the teacher's network, `(teacher, x, t, **cond) -> model_output`; None if it is
            the student's.

    Raises:
        ValueError: for values outside their domain.
    """

    scheduler: Any
    num_levels: int = 18
    target_decay: float = 0.0
    solver: str = "heun"
    metric: Metric = PseudoHuber()
    teacher_fn: ApplyFn | None = None

    needs_teacher: ClassVar[bool] = True
    _domains = {
        "num_levels": (2, 1_000_000),
        "target_decay": (0.0, 1.0),
        "solver": ("heun", "euler"),
    }

    def target_decay_at(self, step):
        """Returns `target_decay`, f32[], at every step."""
        return jnp.float32(self.target_decay)

    def __call__(self, key, apply_fn, params, frozen, batch, step):
        """Returns the loss; `step` is not used."""
        del step
        data, cond = split_batch(batch)
        level_key, noise_key = random.split(key)

        # x at the higher level of a pair, x0 + higher z, `[B, ...]`.
        higher, lower = _uniform_pair(
            level_key, data.shape[0], jnp.int32(self.num_levels), self.scheduler
        )
        noisy = add_noise(data, higher, random.normal(noise_key, data.shape))

        # One step of the teacher's probability-flow ODE from there down to the lower level. It gets
        # no gradient: the target that it leads to is behind `stop_gradient`.
        slope = denoiser_slope(self, apply_fn, params, frozen, cond)
        less_noisy = ode_step(self.solver, slope, noisy, higher, lower)

        # d(f(x, higher), f_target(x', lower)): both ends of the step map to the same x0.
        target = consistency_function(
            apply_fn, target_of(params, frozen), self.scheduler, less_noisy, lower, **cond
        )
        estimate = consistency_function(
            apply_fn, params, self.scheduler, noisy, higher, **cond
        )
        distance = self.metric(estimate, jax.lax.stop_gradient(target))
        loss = jnp.mean(per_sample("metric", distance, data.shape[0]))
        return loss, {"loss": loss}


@dataclasses.dataclass(frozen=True)
class ConsistencyTraining(TwoLevelLoss):
    """Consistency training, CT, on a grid of levels that grows (Song et al. 2023, Algorithm 3).

    Defaults are the paper's for CIFAR-10 (appendix C, table 3), except the metric, which is LPIPS
    there.

    Attributes:
        scheduler: gives the network's parametrization and the range of noise levels.
        total_steps: K, length of the run, over which the grid grows.
        initial_levels: s0, the number of noise levels at the start.
        final_levels: s1, the number of noise levels at the end (the paper's formula ends with one
            more).
        initial_target_decay: mu0, the decay of the target's moving average at the start; the decay
            grows with the number of levels.
        metric: how two estimates of x0 are compared, `(a, b) -> f32[B]`.

    Raises:
        ValueError: for values outside their domain.
    """

    scheduler: Any
    total_steps: int
    initial_levels: int = 2
    final_levels: int = 150
    initial_target_decay: float = 0.9
    metric: Metric = PseudoHuber()

    _domains = {
        "initial_levels": LEVELS,
        "final_levels": LEVELS,
        "initial_target_decay": (0.0, 1.0),
    }

    def __post_init__(self):
        super().__post_init__()
        check_total_steps(self.total_steps)
        check_growth(self, "initial_levels", "final_levels")

    def num_levels_at(self, step: jax.Array) -> jax.Array:
        """Returns N(k), the number of noise levels at a training step, i32[]."""
        return growing_num_levels(
            step, self.total_steps, self.initial_levels, self.final_levels
        )

    def target_decay_at(self, step):
        """Returns mu(k), the decay at a training step, f32[]."""
        return growing_target_decay(
            self.num_levels_at(step), self.initial_levels, self.initial_target_decay
        )

    def __call__(self, key, apply_fn, params, frozen, batch, step):
        """Returns the loss; `frozen.teacher` is not used."""
        level_key, noise_key = random.split(key)

        # The grid gets finer in the course of training: comparisons of distant levels have little
        # variance but a large bias, those of close levels the reverse.
        num_levels = self.num_levels_at(step)
        data, _ = split_batch(batch)
        higher, lower = _uniform_pair(level_key, data.shape[0], num_levels, self.scheduler)

        # Without a teacher, x0 + lower z with the same z stands in for the ODE step (theorem 2).
        distances = self.distances(
            noise_key, apply_fn, params, target_of(params, frozen), batch, higher, lower
        )
        loss = jnp.mean(distances)
        return loss, {"loss": loss, "num_levels": num_levels}


def ode_step(
    solver: str, slope: Any, x: jax.Array, sigma: jax.Array, next_sigma: jax.Array
) -> jax.Array:
    """Returns samples x `[B, ...]` after one step along an ODE (Karras et al. 2022, Algorithm 1).

    Args:
        solver: "euler", which evaluates the slope once, or "heun", which does so twice.
        slope: `(x, sigma) -> dx/dsigma`.
        x: samples `[B, ...]` at `sigma`.
        sigma: their noise levels, f32[B].
        next_sigma: noise levels to step to, f32[B].
    """
    # Euler's method: the slope at the start, over the whole step.
    gap = next_sigma - sigma
    first = slope(x, sigma)
    euler = weighted_sum((1, x), (gap, first))
    if solver == "euler":
        return euler

    # Heun's method: the mean of the slopes at the start and at Euler's end.
    return weighted_sum((1, x), (gap / 2, first), (gap / 2, slope(euler, next_sigma)))


def check_growth(loss, first, last):
    """Raises ValueError if the field `last` is below the field `first`: grids never shrink."""
    # The fields are named, so that the error can say which of the loss's own is wrong.
    least = getattr(loss, first)
    if getattr(loss, last) < least:
        raise ValueError(
            f"{last} must be at least {first}={least}, got {getattr(loss, last)}"
        )


def _uniform_pair(key, count, num_levels, scheduler):
    """Returns neighbouring levels (higher, lower), f32[count] each, uniform over the grid."""
    # N levels have N - 1 neighbouring pairs; index 0 is the pair with sigma_max.
    index = random.randint(key, (count,), 0, num_levels - 1)
    return adjacent_levels(index, num_levels, *karras_range(scheduler))

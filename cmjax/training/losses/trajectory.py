"""Consistency trajectory models, CTM (Kim et al. 2023, arXiv 2310.02279), without the adversary."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from cmjax import random
from cmjax.arrays import ApplyFn, scaled, weighted_sum
from cmjax.meshes import sharded_like
from cmjax.networks import call_network
from cmjax.parametrization import EDM
from cmjax.schedulers.levels import karras_sigmas
from cmjax.training.losses.base import Frozen, Loss
from cmjax.training.losses.batches import split_batch
from cmjax.training.losses.checks import check_edm_scheduler, check_metric, karras_range
from cmjax.training.losses.discrete import LEVELS, ode_step
from cmjax.training.losses.draws import DRAW_DOMAINS, add_noise, draw_sigmas
from cmjax.training.losses.frozen_networks import target_of, teacher_network, teacher_slope
from cmjax.training.losses.metrics import Metric, PseudoHuber, mean_square, per_sample
from cmjax.training.losses.weighting import edm_weight


@dataclasses.dataclass(frozen=True)
class ConsistencyTrajectory(Loss):
    """Distils jumps G(x, t, s) from any noise level t to any lower one s from a teacher.

    A jump from t to s is compared with a jump to s from a level u between them, which starts at the
    sample that the teacher's ODE leads to (equation 8). From s the target network takes both
    results on to sigma_min, where they are compared. A second term trains g(x, t, t), the denoiser
    within the network (equation 10). `CTMScheduler` samples these networks.

    The teacher is a denoiser with EDM's levels and one time. Defaults are the paper's for
    CIFAR-10, except the metric, which is LPIPS there, and the weight of the second term, which
    adapts there. The paper's adversarial term is left out; `Adversarial` with this loss as `inner`
    adds one. The moving average takes all jumps of the target, as the paper has it; in the authors'
    code the trained parameters take the one from u to s.

    Metrics are `loss`, and its parts `jump_loss` and `denoising_loss`.

    Attributes:
        scheduler: a `CTMScheduler`: the network's parametrization and the range of noise levels.
        num_levels: N, the number of noise levels on the Karras grid.
        solver_steps: largest number of levels from t to u; fewer where u would be below s.
        target_decay: decay of the moving average that the target network is.
        denoising_weight: weight of the second term.
        p_mean: mean of log sigma in the second term.
        p_std: standard deviation of log sigma in the second term.
        solver: method of the teacher's steps, "heun" or "euler".
        metric: how two estimates of x0 are compared, `(a, b) -> f32[B]`.
        teacher_fn: the teacher's network, `(teacher, x, t, **cond) -> model_output`; None if it is
            the student's, which then must take one time as well as two.

    Raises:
        ValueError: for values outside their domain, or another kind of scheduler.
    """

    scheduler: Any
    num_levels: int = 18
    solver_steps: int = 1
    target_decay: float = 0.999
    denoising_weight: float = 1.0
    p_mean: float = -1.2
    p_std: float = 1.2
    solver: str = "heun"
    metric: Metric = PseudoHuber()
    teacher_fn: ApplyFn | None = None

    needs_teacher: ClassVar[bool] = True
    _domains = {
        "num_levels": (2, LEVELS[1]),
        "solver_steps": (1, 1000),
        "target_decay": (0.0, 1.0),
        "denoising_weight": (0.0, 1e6),
        **DRAW_DOMAINS,
        "solver": ("heun", "euler"),
    }

    def __post_init__(self):
        super().__post_init__()
        check_edm_scheduler(self.scheduler)
        check_metric(self.metric)
        is_edm = isinstance(getattr(self.scheduler, "parametrization", None), EDM)
        if not is_edm or getattr(self.scheduler, "num_times", 1) != 2:
            raise ValueError(
                "scheduler must be a CTMScheduler for this loss, got "
                f"{type(self.scheduler).__name__}"
            )

    def target_decay_at(self, step):
        """Returns `target_decay`, f32[], at every step."""
        del step
        return jnp.float32(self.target_decay)

    def __call__(self, key, apply_fn, params, frozen, batch, step):
        """Returns the loss; `step` is not used."""
        del step
        data, cond = split_batch(batch)
        jump_key, denoising_key = random.split(key)

        # Jumps (equation 8) between random levels.
        level_key, end_key, noise_key = random.split(jump_key, 3)
        start, end = self._draw_indices(level_key, end_key, data.shape[0])
        noise = random.normal(noise_key, data.shape)
        loss = self.jump_loss(apply_fn, params, frozen, data, noise, start, end, cond)
        metrics = {"jump_loss": loss}

        # The denoiser within the network (equation 10).
        if self.denoising_weight > 0:
            level_key, noise_key = random.split(denoising_key)
            sigma = draw_sigmas(
                level_key, data.shape[0], self.scheduler, self.p_mean, self.p_std
            )
            noise = random.normal(noise_key, data.shape)
            denoising = self.denoising_loss(apply_fn, params, data, noise, sigma, cond)
            metrics["denoising_loss"] = denoising
            loss = loss + self.denoising_weight * denoising
        return loss, {"loss": loss, **metrics}

    def _draw_indices(self, level_key, end_key, count):
        """Returns where jumps start and end, i32[count] each, as indices into the grid."""
        # t is uniform over all levels except the last, s over those below t.
        start = random.randint(level_key, (count,), 0, self.num_levels - 1)
        below = (self.num_levels - 1 - start).astype(jnp.float32)
        gap = jnp.floor(random.uniform(end_key, (count,)) * below).astype(jnp.int32)
        return start, jnp.minimum(start + 1 + gap, self.num_levels - 1)

    def jump_loss(
        self,
        apply_fn: ApplyFn,
        params: Any,
        frozen: Frozen,
        data: jax.Array,
        noise: jax.Array,
        start: jax.Array,
        end: jax.Array,
        cond: dict[str, Any],
    ) -> jax.Array:
        """Returns the mean distance of jumps from t and from u to s, f32[], at given draws.

        Args:
            apply_fn: `(params, x, t, s, **cond) -> model_output`.
            params: of the network, which the gradient is taken with respect to.
            frozen: parameters of the target network and of the teacher.
            data: `[B, ...]`.
            noise: standard normal, `[B, ...]`.
            start: index of t in the grid, i32[B], from 0 (the highest level) on.
            end: index of s, i32[B], above `start`.
            cond: per-sample conditioning.
        """
        jump = trajectory_function(apply_fn, self.scheduler)
        t = self._level(start)
        s = self._level(end)

        # The teacher's ODE from t down to u, in steps of one level, at most to s. A step that would
        # go below s has length 0 and changes nothing.
        x = add_noise(data, t, noise)
        teacher_fn = teacher_network(self, apply_fn, params, frozen)
        slope = teacher_slope(
            teacher_fn, frozen.teacher, self.scheduler.parametrization, cond
        )
        moved = x
        u = t
        for number in range(self.solver_steps):
            lower = self._level(jnp.minimum(start + number + 1, end))
            moved = ode_step(self.solver, slope, moved, u, lower)
            u = lower

        # Both jumps to s, then by the target network to sigma_min (equation 8). Only the parameters
        # of the jump from t to s get a gradient.
        target = target_of(params, frozen)
        last = jnp.full_like(s, karras_range(self.scheduler).sigma_min)
        estimate = jump(target, jump(params, x, t, s, cond), s, last, cond)
        wanted = jump(target, jump(target, moved, u, s, cond), s, last, cond)
        wanted = jax.lax.stop_gradient(wanted)
        distance = per_sample("metric", self.metric(estimate, wanted), data.shape[0])
        return jnp.mean(distance)

    def denoising_loss(
        self,
        apply_fn: ApplyFn,
        params: Any,
        data: jax.Array,
        noise: jax.Array,
        sigma: jax.Array,
        cond: dict[str, Any],
    ) -> jax.Array:
        """Returns EDM's weighted error of g(x, t, t), f32[], at given noise.

        Args:
            apply_fn: `(params, x, t, s, **cond) -> model_output`.
            params: of the network, which the gradient is taken with respect to.
            data: `[B, ...]`.
            noise: standard normal, `[B, ...]`.
            sigma: noise levels, f32[B].
            cond: per-sample conditioning.
        """
        # Noisy samples x0 + sigma z, `[B, ...]`, and the network's estimates of x0.
        noisy = add_noise(data, sigma, noise)
        estimate = _estimate(apply_fn, self.scheduler, params, noisy, sigma, sigma, cond)

        weight = edm_weight(sigma, self.scheduler.sigma_data)
        return jnp.mean(weight * mean_square(estimate - data))

    def _level(self, index):
        """Returns the noise levels at indices of the grid, f32[B]."""
        ramp = index.astype(jnp.float32) / (self.num_levels - 1)
        return karras_sigmas(ramp, *karras_range(self.scheduler))


def trajectory_function(apply_fn: ApplyFn, scheduler: Any) -> Callable[..., jax.Array]:
    """Returns a CTM's jump, `(params, x, t, s, cond) -> G`, as `CTMScheduler` evaluates it.

    `G(x, t, s) = (s / t) x + (1 - s / t) g(x, t, s)` (Kim et al. 2023, equation 5).

    Args:
        apply_fn: the network, `(params, x, t, s, **cond) -> model_output`.
        scheduler: the `CTMScheduler` that it is for.
    """

    def jump(params, x, t, s, cond):
        estimate = _estimate(apply_fn, scheduler, params, x, t, s, cond)
        return weighted_sum((s / t, x), (1 - s / t, estimate))

    return jump


def _estimate(apply_fn, scheduler, params, x, t, s, cond):
    """Returns g(x, t, s) = c_skip x + c_out F(c_in x, t, s), `[B, ...]`."""
    # On EDM's path x0 + t z: alpha = 1 and sigma = t.
    parametrization = scheduler.parametrization
    c_in, c_skip, c_out = parametrization.scalings(jnp.ones_like(t), t)

    # The network takes both levels as times, divided over devices like the samples.
    start = sharded_like(parametrization.time(t), x)
    end = sharded_like(parametrization.time(s), x)
    output = call_network(apply_fn, params, scaled(c_in, x), (start, end), cond)
    return weighted_sum((c_skip, x), (c_out, output))

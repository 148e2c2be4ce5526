"""Mean flows (Geng et al. 2025, arXiv 2505.13447): the mean velocity between two times."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from cmjax import random
from cmjax.arrays import ApplyFn, check_shapes, weighted_sum
from cmjax.configs import LARGEST
from cmjax.training.losses.base import Loss
from cmjax.training.losses.batches import split_batch
from cmjax.training.losses.draws import DRAW_DOMAINS, rounded_count
from cmjax.training.losses.flow_paths import (
    check_flow_scheduler,
    check_times,
    draw_noise,
    draw_times,
    mean_velocity,
    on_path,
    velocity_of,
    without_class,
)
from cmjax.training.losses.metrics import mean_square, sum_of_squares

# Valid values of the fields that mean flow and its improved form have.
MEAN_FLOW_DOMAINS = {
    **DRAW_DOMAINS,
    "instant_fraction": (0.0, 1.0),
    "norm_p": (0.0, 10.0),
    "norm_eps": (1e-12, 1e6),
}


@dataclasses.dataclass(frozen=True)
class MeanFlow(Loss):
    """Trains u(x, t, r), the mean velocity from t to r, which takes a sample there in one call.

    The mean flow identity says `u = v - (t - r) du/dt`, where v is the velocity at t and du/dt the
    derivative along it at fixed r (equation 6). Its right side is the target; it has no gradient
    (equation 11), and du/dt takes one `jax.jvp`. For v a sample's own velocity `z - x0` is taken,
    whose mean is v. `FlowMapEulerDiscreteScheduler` samples these networks.

    Each sample's squared error e, a sum over its elements, is weighted by
    `1 / (e + norm_eps)^norm_p` (equation 22). Defaults are those of the authors' code, without its
    guidance.

    **Guidance inside** (section 4.2): v becomes `omega v + (1 - omega - kappa) u0 + kappa u1`,
    where u0 and u1 are the network's own velocities without and with the class. The network is then
    sampled in one call a step with a guidance of scale `omega / (1 - kappa)`. It needs samples
    without their class: some of the batch's `class_labels` have to be `null_class`.

    Metrics are `loss`, and `velocity_loss`, the mean of `(u - (z - x0))^2`.

    Attributes:
        scheduler: a `FlowMapEulerDiscreteScheduler`, which gives the network's times.
        p_mean: mean of the logit of t and r, which is log(t / (1 - t)); t is the larger of two.
        p_std: standard deviation of the logit.
        uniform_fraction: fraction of the times that are drawn uniformly instead; 0 in the paper.
        instant_fraction: fraction of the batch with r = t, which is flow matching.
        norm_p: power of the adaptive weight; 0 for none.
        norm_eps: what the weight adds to the squared error; 1e-3 in the paper's text.
        omega: guidance by the sample's own velocity; 1 is no guidance with kappa = 0.
        kappa: guidance by the network's velocity of the class.
        guidance_start: lowest time t with guidance.
        guidance_end: highest time t with guidance.
        null_class: the label that means no class, such as the number of classes if the network
            has one more; needed for guidance. Samples with this label are not guided.

    Raises:
        ValueError: for values outside their domain, another kind of scheduler, or guidance without
            `null_class`.
    """

    scheduler: Any
    p_mean: float = -0.4
    p_std: float = 1.0
    uniform_fraction: float = 0.0
    instant_fraction: float = 0.75
    norm_p: float = 1.0
    norm_eps: float = 0.01
    omega: float = 1.0
    kappa: float = 0.0
    guidance_start: float = 0.0
    guidance_end: float = 1.0
    null_class: int | None = None

    _domains = {
        **MEAN_FLOW_DOMAINS,
        "omega": (0.0, 1e6),
        "kappa": (0.0, 0.999),
        "guidance_start": (0.0, 1.0),
        "guidance_end": (0.0, 1.0),
        "null_class": (0, LARGEST),
    }

    def __post_init__(self):
        super().__post_init__()
        check_flow_scheduler(self.scheduler, num_times=2)
        if self.guided_by and self.null_class is None:
            raise ValueError(
                f"omega={self.omega} and kappa={self.kappa} guide by samples without a class: "
                "give null_class, their label"
            )
        if self.guidance_start > self.guidance_end:
            raise ValueError(
                f"guidance_start={self.guidance_start} must not be above "
                f"guidance_end={self.guidance_end}"
            )

    @property
    def guided_by(self) -> str:
        """The option that guides; see `Loss`."""
        if self.omega != 1:
            return "omega"
        return "kappa" if self.kappa != 0 else ""

    def __call__(self, key, apply_fn, params, frozen, batch, step):
        """Returns the loss; `frozen` and `step` are not used."""
        del frozen, step
        data, cond = split_batch(batch)
        time_key, noise_key = random.split(key)
        t, r = draw_time_pairs(time_key, data.shape[0], self)
        noise = draw_noise(noise_key, data, self.scheduler)
        return self.at(apply_fn, params, data, noise, t, r, cond)

    def at(
        self,
        apply_fn: ApplyFn,
        params: Any,
        data: jax.Array,
        noise: jax.Array,
        t: jax.Array,
        r: jax.Array,
        cond: dict[str, Any],
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns (loss, metrics) at given noise and times.

        Args:
            apply_fn: `(params, x, t, r, **cond) -> u`.
            params: of the network, which the gradient is taken with respect to.
            data: `[B, ...]`.
            noise: normal, with the scheduler's `noise_scale`, `[B, ...]`.
            t: times, f32[B], from 0 (data) to 1.
            r: where the mean ends, f32[B], from 0 to t.
            cond: per-sample conditioning.

        Raises:
            ValueError: for times of another shape.
        """
        check_times(data, t=t, r=r)
        network = mean_velocity(apply_fn, self.scheduler)

        # The samples (1 - t) x0 + t z, their velocity z - x0, and the velocity that is learned.
        x = on_path(data, noise, t)
        velocity = velocity_of(data, noise)
        guided = self._guided(apply_fn, params, x, t, velocity, cond)

        # The error of the identity u = v - (t - r) du/dt (equation 11): only u has a gradient.
        u = network(params, x, t, r, cond)
        slope = time_derivative(network, params, x, t, r, guided, cond)
        target = weighted_sum((1, guided), (r - t, slope))

        # Its squares, with the adaptive weight.
        error = weighted_sum((1, u), (-1, jax.lax.stop_gradient(target)))
        error = weigh_errors(error, self.norm_p, self.norm_eps)
        loss = jnp.mean(error)
        metrics = {
            "loss": loss,
            "velocity_loss": jnp.mean(mean_square(weighted_sum((1, u), (-1, velocity)))),
        }
        return loss, metrics

    def _guided(self, apply_fn, params, x, t, velocity, cond):
        """Returns the velocity that is learned, `[B, ...]`: guided within the interval."""
        if not self.guided_by:
            return velocity
        network = mean_velocity(apply_fn, self.scheduler)

        # The network's velocities without and with the class, u(x, t, t). They have no gradient.
        params = jax.lax.stop_gradient(params)
        u0 = network(params, x, t, t, without_class(apply_fn, cond, self.null_class))
        u1 = velocity
        if self.kappa != 0:
            u1 = network(params, x, t, t, cond)

        # omega v + (1 - omega - kappa) u0 + kappa u1. Outside of the interval, and for samples
        # without a class, omega = 1 and kappa = 0, which leaves v.
        inside = (t >= self.guidance_start) & (t <= self.guidance_end)
        inside = inside & (cond["class_labels"] != self.null_class)
        omega = jnp.where(inside, self.omega, 1.0)
        kappa = jnp.where(inside, self.kappa, 0.0)
        return weighted_sum((omega, velocity), (1 - omega - kappa, u0), (kappa, u1))


def draw_time_pairs(key: jax.Array, count: int, loss: Any) -> tuple[jax.Array, jax.Array]:
    """Returns times t >= r, f32[count] each: two draws of `draw_times`, the larger one first.

    Args:
        key: PRNG key.
        count: how many.
        loss: its `p_mean`, `p_std` and `uniform_fraction` are those of both draws; r = t in the
            first of the pairs, on average its `instant_fraction` of them.
    """
    # The larger of two independent draws is t, the smaller r.
    first_key, second_key, count_key = random.split(key, 3)
    options = (loss.p_mean, loss.p_std, loss.uniform_fraction)
    first = draw_times(first_key, count, *options)
    second = draw_times(second_key, count, *options)
    t = jnp.maximum(first, second)
    r = jnp.minimum(first, second)

    # With r = t the loss is that of flow matching.
    num_instant = rounded_count(count_key, count, loss.instant_fraction)
    is_instant = jnp.arange(count) < num_instant
    return t, jnp.where(is_instant, t, r)


def time_derivative(network, params, x, t, r, velocity, cond) -> jax.Array:
    """Returns du/dt along a velocity at fixed r, `[B, ...]`, in one forward-mode pass.

    `du/dt = v . grad_x u + du/dt at fixed x` (Geng et al. 2025, equation 8). It has no gradient,
    which spares a second derivative.

    Args:
        network: `(params, x, t, r, cond) -> u`, of `mean_velocity`.
        params: of the network.
        x: samples at t, `[B, ...]`.
        t: times, f32[B].
        r: second times, f32[B].
        velocity: how x moves with t, `[B, ...]`.
        cond: per-sample conditioning.
    """
    params, x, velocity = jax.lax.stop_gradient((params, x, velocity))
    check_shapes(sample=x, velocity=velocity)

    # The tangents (v, 1) of (x, t); r and the parameters do not move. A tangent must have the dtype
    # of the samples, which the network's own velocity need not have.
    def u(x, t):
        return network(params, x, t, r, cond)

    tangents = (velocity.astype(x.dtype), jnp.ones_like(t))
    _, slope = jax.jvp(u, (x, t), tangents)
    return slope


def weigh_errors(error: jax.Array, norm_p: float, norm_eps: float) -> jax.Array:
    """Returns `e / (e + norm_eps)^norm_p`, f32[B], with e the sum of squares of each sample.

    The weight has no gradient (Geng et al. 2025, equation 22).

    Args:
        error: `[B, ...]`.
        norm_p: power of the weight.
        norm_eps: what is added to e.
    """
    # e, a sum over the elements of each sample, and its weight.
    total = sum_of_squares(error)
    weight = jnp.power(jax.lax.stop_gradient(total) + norm_eps, -norm_p)
    return weight * total

"""Improved mean flows, iMF (Geng et al. 2025, arXiv 2512.02012)."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from cmjax import random
from cmjax.arrays import ApplyFn, combine
from cmjax.configs import LARGEST
from cmjax.training.losses.base import Loss, split_batch
from cmjax.training.losses.flow_paths import (
    check_flow_scheduler,
    mean_velocity,
    on_path,
    velocity_of,
    without_class,
)
from cmjax.training.losses.mean_flow import (
    MEAN_FLOW_DOMAINS,
    draw_time_pairs,
    time_derivative,
    weigh_errors,
)
from cmjax.training.losses.metrics import mean_square


@dataclasses.dataclass(frozen=True)
class ImprovedMeanFlow(Loss):
    """Trains mean velocities u(x, t, r), as `MeanFlow` does, by an error of the velocity at t.

    The velocity that follows from u, `V = u + (t - r) du/dt`, is compared with `z - x0`, and du/dt
    is taken along the network's own velocity `u(x, t, t)` instead of `z - x0`. So the target does
    not depend on the network, and the derivative depends on the sample alone, not on its noise
    (section 4.1). A second term trains u(x, t, t) itself. The authors' network has a second output
    for it instead, which saves a pass.

    **Guidance as an input** (section 4.2): with `largest_scale` above 1, the network also takes a
    scale w, `guidance_scale`, and the velocity becomes `z - x0 + (1 - 1/w) (u1 - u0)`, where u0 and
    u1 are its own velocities without and with the class. It needs samples without their class: some
    of the batch's `class_labels` have to be `null_class`. These are not guided.

    Metrics are `loss`, and its parts without weights, `mean_loss` and `velocity_loss`.

    Attributes:
        scheduler: a `FlowMapEulerDiscreteScheduler`, which gives the network's times.
        p_mean: mean of the logit of t and r, which is log(t / (1 - t)); t is the larger of two.
        p_std: standard deviation of the logit.
        uniform_fraction: share of the times that are drawn uniformly instead; 0 in the paper.
        instant_fraction: share of the batch with r = t, which is flow matching.
        norm_p: power of the adaptive weight; 0 for none.
        norm_eps: what the weight adds to the squared error.
        velocity_weight: weight of the second term; 0 for none.
        largest_scale: the guidance scale w is drawn from 1 to this, uniform in its logarithm, as 8
            in the authors' code; 1 for networks without a scale.
        null_class: the label that means no class, such as the number of classes if the network
            has one more; needed for guidance.

    Raises:
        ValueError: for values outside their domain, another kind of scheduler, or guidance without
            `null_class`.
    """

    scheduler: Any
    p_mean: float = -0.4
    p_std: float = 1.0
    uniform_fraction: float = 0.0
    instant_fraction: float = 0.5
    norm_p: float = 1.0
    norm_eps: float = 0.01
    velocity_weight: float = 1.0
    largest_scale: float = 1.0
    null_class: int | None = None

    _domains = {
        **MEAN_FLOW_DOMAINS,
        "velocity_weight": (0.0, 1e6),
        "largest_scale": (1.0, 1e6),
        "null_class": (0, LARGEST),
    }

    def __post_init__(self):
        super().__post_init__()
        check_flow_scheduler(self.scheduler, num_times=2)
        if self.largest_scale > 1 and self.null_class is None:
            raise ValueError(
                f"largest_scale={self.largest_scale} guides by samples without a class: give "
                "null_class, their label"
            )

    def __call__(self, key, apply_fn, params, frozen, batch, step):
        """Returns the loss; `frozen` and `step` are not used."""
        del frozen, step
        data, cond = split_batch(batch)

        # Noise and times t >= r of each sample.
        time_key, noise_key, scale_key = random.split(key, 3)
        count = data.shape[0]
        t, r = draw_time_pairs(time_key, count, self)
        noise = random.normal(noise_key, data.shape)

        # The guidance scales w from 1 to the largest, with a density in proportion to 1 / w.
        scale = None
        if self.largest_scale > 1:
            ramp = random.uniform(scale_key, (count,))
            scale = jnp.exp(ramp * math.log(self.largest_scale))
        return self.at(apply_fn, params, data, noise, t, r, cond, scale)

    def at(
        self,
        apply_fn: ApplyFn,
        params: Any,
        data: jax.Array,
        noise: jax.Array,
        t: jax.Array,
        r: jax.Array,
        cond: dict[str, Any],
        scale: jax.Array | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns (loss, metrics) at given noise, times and guidance scales.

        Args:
            apply_fn: `(params, x, t, r, **cond) -> u`.
            params: of the network, which the gradient is taken with respect to.
            data: `[B, ...]`.
            noise: standard normal, `[B, ...]`.
            t: times, f32[B], from 0 (data) to 1.
            r: where the mean ends, f32[B], from 0 to t.
            cond: per-sample conditioning.
            scale: guidance scales, f32[B]; None for a network that is not told them.
        """
        network = mean_velocity(apply_fn, self.scheduler)

        # The samples (1 - t) x0 + t z, and their velocity z - x0.
        x = on_path(data, noise, t)
        velocity = velocity_of(data, noise)

        # The network's own velocity u(x, t, t), and the velocity that both terms learn.
        told = cond if scale is None else {**cond, "guidance_scale": scale}
        own = network(params, x, t, t, told)
        target = velocity
        if scale is not None:
            target = self._guided(apply_fn, params, x, t, velocity, own, cond, scale)
        target = jax.lax.stop_gradient(target)

        # The error of V = u + (t - r) du/dt, where only u has a gradient, and that of u(x, t, t).
        u = network(params, x, t, r, told)
        slope = time_derivative(network, params, x, t, r, own, told)
        error = combine((1, u), (t - r, slope)) - target
        error_of_own = own - target

        # Their squares with adaptive weights, one for each term.
        loss = weigh_errors(error, self.norm_p, self.norm_eps)
        if self.velocity_weight > 0:
            own_loss = weigh_errors(error_of_own, self.norm_p, self.norm_eps)
            loss = loss + self.velocity_weight * own_loss
        loss = jnp.mean(loss)
        metrics = {
            "loss": loss,
            "mean_loss": jnp.mean(mean_square(error)),
            "velocity_loss": jnp.mean(mean_square(error_of_own)),
        }
        return loss, metrics

    def _guided(self, apply_fn, params, x, t, velocity, own, cond, scale):
        """Returns the guided velocity, `[B, ...]`; that of samples without a class is their own."""
        network = mean_velocity(apply_fn, self.scheduler)

        # The velocity without the class, u0, at the scale 1. It has no gradient.
        params = jax.lax.stop_gradient(params)
        without = without_class(apply_fn, cond, self.null_class)
        without["guidance_scale"] = jnp.ones_like(scale)
        u0 = network(params, x, t, t, without)

        # z - x0 + (1 - 1/w) (u1 - u0), where `own` is u1.
        is_null = cond["class_labels"] == self.null_class
        weight = jnp.where(is_null, 0, 1 - 1 / scale)
        return combine((1, velocity), (weight, own), (-weight, u0))

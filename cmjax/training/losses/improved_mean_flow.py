"""Improved mean flows, iMF (Geng et al. 2025, arXiv 2512.02012)."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cmjax import random
from cmjax.arrays import ApplyFn, known_reals, scaled, weighted_sum
from cmjax.configs import LARGEST, shown
from cmjax.training.losses.base import Loss
from cmjax.training.losses.batches import split_batch
from cmjax.training.losses.flow_paths import (
    both_velocities,
    check_flow_scheduler,
    check_times,
    draw_noise,
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
    is taken along the network's own velocity v(x, t) instead of `z - x0`. So the target does not
    depend on the network, and the derivative depends on the sample alone, not on its noise (section
    4.1). A second term trains v itself: `u(x, t, t)`, or the output of a second head, which is
    computed with u at no cost of another pass. Samplers call the first head only.

    **Guidance as an input** (section 4.2): with `largest_scale` above 1, the network also takes a
    scale w, `guidance_scale`, and the velocity becomes `z - x0 + (1 - 1/w) (v1 - v0)`, where v0 and
    v1 are its own velocities without and with the class. It needs samples without their class: some
    of the batch's `class_labels` have to be `null_class`. These are not guided. With
    `trains_interval` it takes an interval of times too, `guidance_interval`, outside of which the
    velocity is not guided.

    **Pixel MeanFlow** (Lu et al. 2026, arXiv 2601.22158) is this loss with a network that divides
    its estimate of x0 by t, a `PixelMeanFlow`, and `shortest_time`. The authors add perceptual
    losses of one-step samples, by networks of their own (LPIPS, ConvNeXt), which are not here.

    Metrics are `loss`, and its parts without weights, `mean_loss` and `velocity_loss`.

    Attributes:
        scheduler: a `FlowMapEulerDiscreteScheduler`, which gives the network's times and the scale
            of its noise.
        p_mean: mean of the logit of t and r, which is log(t / (1 - t)); t is the larger of two.
        p_std: standard deviation of the logit.
        uniform_fraction: fraction of the times that are drawn uniformly instead; 0 in the paper.
        instant_fraction: fraction of the batch with r = t, which is flow matching.
        norm_p: power of the adaptive weight; 0 for none.
        norm_eps: what the weight adds to the squared error.
        velocity_weight: weight of the second term; 0 for none, without a second head.
        second_head: whether the network has a second head, which v is the output of; the second
            term is the only one that trains it.
        largest_scale: the guidance scale w is drawn from 1 to this, uniform in its logarithm, as 8
            in the authors' code; 1 for networks without a scale.
        trains_interval: whether the network takes the interval of its guidance. It is drawn with
            its lower end uniform in 0 to 1/2 and its upper end in 1/2 to 1, and is 0 to 1 where
            r = t.
        shortest_time: below this t the velocity is not (x - x0) / t, but divided by this, as 0.05
            for `PixelMeanFlow`; 0 for the velocity itself.
        null_class: the label that means no class, such as the number of classes if the network
            has one more; needed for guidance.

    Raises:
        ValueError: for values outside their domain, another kind of scheduler, guidance without
            `null_class`, an interval without guidance, or a second head without the second term.
    """

    scheduler: Any
    p_mean: float = -0.4
    p_std: float = 1.0
    uniform_fraction: float = 0.0
    instant_fraction: float = 0.5
    norm_p: float = 1.0
    norm_eps: float = 0.01
    velocity_weight: float = 1.0
    second_head: bool = False
    largest_scale: float = 1.0
    trains_interval: bool = False
    shortest_time: float = 0.0
    null_class: int | None = None

    _domains = {
        **MEAN_FLOW_DOMAINS,
        "velocity_weight": (0.0, 1e6),
        "largest_scale": (1.0, 1e6),
        "shortest_time": (0.0, 1.0),
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
        if self.trains_interval and self.largest_scale == 1:
            raise ValueError(
                "trains_interval=True is of guidance as an input: give largest_scale, above 1"
            )
        if self.second_head and self.velocity_weight == 0:
            raise ValueError(
                f"velocity_weight={self.velocity_weight} leaves the second head untrained, which "
                "u learns from: give one above 0, or second_head=False"
            )

    @property
    def guided_by(self) -> str:
        """The option that guides; see `Loss`."""
        return "largest_scale" if self.largest_scale > 1 else ""

    def __call__(self, key, apply_fn, params, frozen, batch, step):
        """Returns the loss; `frozen` and `step` are not used."""
        del frozen, step
        data, cond = split_batch(batch)

        # Noise and times t >= r of each sample.
        time_key, noise_key, scale_key, interval_key = random.split(key, 4)
        count = data.shape[0]
        t, r = draw_time_pairs(time_key, count, self)
        noise = draw_noise(noise_key, data, self.scheduler)

        # The guidance scales w from 1 to the largest, with a density in proportion to 1 / w.
        scale = None
        interval = None
        if self.largest_scale > 1:
            ramp = random.uniform(scale_key, (count,))
            scale = jnp.exp(ramp * math.log(self.largest_scale))

        # Their intervals. Where r = t the guidance acts at t, so that it is of all times.
        if self.trains_interval:
            halves = random.uniform(interval_key, (count, 2)) / 2
            interval = halves + jnp.array([[0.0, 0.5]], jnp.float32)
            interval = jnp.where((r == t)[:, None], _always(count), interval)
        return self.at(apply_fn, params, data, noise, t, r, cond, scale, interval)

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
        interval: jax.Array | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns (loss, metrics) at given noise, times and guidance.

        Args:
            apply_fn: `(params, x, t, r, **cond) -> u`; with `second_head=True` it returns u and v,
                one after the other along the last axis.
            params: of the network, which the gradient is taken with respect to.
            data: `[B, ...]`.
            noise: normal, with the scheduler's `noise_scale`, `[B, ...]`.
            t: times, f32[B], from 0 (data) to 1.
            r: where the mean ends, f32[B], from 0 to t.
            cond: per-sample conditioning.
            scale: guidance scales, f32[B]; None for a network that does not take them.
            interval: times that guidance acts at, f32[B, 2], lowest and highest; None for a network
                that does not take them.

        Raises:
            ValueError: for times or guidance of another shape, or a scale that is known to be 0
                or less.
        """
        check_times(data, t=t, r=r)
        network = mean_velocity(apply_fn, self.scheduler)
        guided_cond = with_guidance(cond, scale, interval)

        # The samples (1 - t) x0 + t z, and their velocity (x - x0) / t, which is z - x0.
        x = on_path(data, noise, t)
        velocity = velocity_of(data, noise)
        if self.shortest_time > 0:
            velocity = scaled(t / jnp.maximum(t, self.shortest_time), velocity)

        # Mean velocity and velocity, which are trained, and the velocity to differentiate along.
        acting, always = guidance_at(t, scale, interval)
        cond_at_t = with_guidance(cond, acting, always)
        if self.second_head:
            both_heads = both_velocities(apply_fn, self.scheduler)
            u, v = both_heads(params, x, t, r, guided_cond)
            own = self._velocity_at(apply_fn, params, x, t, cond_at_t)
        else:
            u = network(params, x, t, r, guided_cond)
            v = network(params, x, t, t, cond_at_t)
            own = v

        # The velocity that both learn.
        target = velocity
        if scale is not None:
            target = self._guided(apply_fn, params, x, t, velocity, own, cond_at_t)
        target = jax.lax.stop_gradient(target)

        # The error of V = u + (t - r) du/dt, where only u has a gradient, and that of v.
        slope = time_derivative(network, params, x, t, r, own, guided_cond)
        error = weighted_sum((1, u), (t - r, slope), (-1, target))
        return self._weighted(error, weighted_sum((1, v), (-1, target)))

    def _guided(self, apply_fn, params, x, t, velocity, own, guided_cond):
        """Returns the guided velocity, `[B, ...]`; that of samples without a class is their own."""
        scale = guided_cond["guidance_scale"]

        # The velocity without the class, v0, at the scale 1. It has no gradient.
        without = without_class(apply_fn, guided_cond, self.null_class)
        without["guidance_scale"] = jnp.ones_like(scale)
        v0 = self._velocity_at(apply_fn, params, x, t, without)

        # z - x0 + (1 - 1/w) (v1 - v0), where `own` is v1.
        is_null = guided_cond["class_labels"] == self.null_class
        weight = jnp.where(is_null, 0, 1 - 1 / scale)
        return weighted_sum((1, velocity), (weight, own), (-weight, v0))

    def _velocity_at(self, apply_fn, params, x, t, cond):
        """Returns the network's own velocity v, `[B, ...]`, without a gradient."""
        params = jax.lax.stop_gradient(params)
        if self.second_head:
            network = both_velocities(apply_fn, self.scheduler)
            _, v = network(params, x, t, t, cond)
            return v
        network = mean_velocity(apply_fn, self.scheduler)
        return network(params, x, t, t, cond)

    def _weighted(self, error, error_of_own):
        """Returns (loss, metrics) of the errors of mean velocity and velocity, `[B, ...]` each."""
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


def guidance_at(
    t: jax.Array, scale: jax.Array | None, interval: jax.Array | None
) -> tuple[jax.Array | None, jax.Array | None]:
    """Returns the guidance scale and interval of a velocity at one time.

    There, guidance acts or does not: the scale is 1 outside of the interval, and the interval that
    of all times. Without an interval, both are as they are given.

    Args:
        t: times, f32[B].
        scale: f32[B], or None.
        interval: f32[B, 2], or None.

    Raises:
        ValueError: for an interval of another shape, or a scale that is known to be 0 or less.
    """
    known = None if scale is None else known_reals("scale", scale)
    if known is not None and (known.shape != t.shape or not np.all(known > 0)):
        raise ValueError(
            f"scale must be one number per sample, of shape {t.shape}, above 0, where 1 is no "
            f"guidance, got {shown(scale)}"
        )
    if interval is not None and jnp.shape(interval) != (len(t), 2):
        raise ValueError(
            f"interval must have shape {(len(t), 2)}, lowest and highest time of each sample, "
            f"got {jnp.shape(interval)}"
        )
    if scale is None or interval is None:
        return scale, interval
    acts = (t >= interval[:, 0]) & (t <= interval[:, 1])
    return jnp.where(acts, scale, 1.0), _always(len(t))


def with_guidance(
    cond: dict[str, Any], scale: jax.Array | None, interval: jax.Array | None
) -> dict[str, Any]:
    """Returns conditioning with a guidance scale f32[B] and interval f32[B, 2], if given."""
    guided_cond = dict(cond)
    if scale is not None:
        guided_cond["guidance_scale"] = scale
    if interval is not None:
        guided_cond["guidance_interval"] = interval
    return guided_cond


def _always(count):
    """Returns the interval of all times for each sample, f32[count, 2]."""
    return jnp.broadcast_to(jnp.array([[0.0, 1.0]], jnp.float32), (count, 2))

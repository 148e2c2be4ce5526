"""Inductive moment matching, IMM (Zhou et al. 2025, arXiv 2503.07565)."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from cmjax import random
from cmjax.arrays import ApplyFn, weighted_sum
from cmjax.meshes import with_automatic_axes
from cmjax.training.losses.base import Loss
from cmjax.training.losses.batches import split_batch
from cmjax.training.losses.flow_paths import (
    check_flow_scheduler,
    check_times,
    draw_noise,
    mean_velocity,
    on_path,
)
from cmjax.training.losses.frozen_networks import target_of

# The least squared distance of two samples: at 0 the kernel has a kink.
_LEAST_SQUARE = 1e-8


@dataclasses.dataclass(frozen=True)
class InductiveMomentMatching(Loss):
    """Trains steps f(x, t, s) = x - (t - s) u(x, t, s) whose samples have the right distribution.

    Samples that go from t to s, and samples that go from a slightly lower time r to the same s, are
    compared as sets: by the maximum mean discrepancy of groups of `group_size` samples with a
    Laplace kernel (equation 12, Algorithm 1). Groups of one are a kind of consistency training. The
    samples at t and r have the same data and noise. `FlowMapEulerDiscreteScheduler` samples these
    networks, from the highest time they know: `sigmas=[0.994, ...]`.

    This is the form "Euler-FM" of the paper for data of standard deviation near 1. Defaults are
    those for CIFAR-10 (table 5). The authors have not published their training code.

    Metrics are `loss`, and `distance`, the root mean square between a sample's two ends.

    Attributes:
        scheduler: a `FlowMapEulerDiscreteScheduler`, which gives the network's times.
        group_size: M, samples that are compared with each other; it divides the batch.
        highest_time: the highest time t; times are uniform below it, s is uniform below t.
        decrement: k; r is 2^-k of the range of t / (1 - t) below t.
        weight_power: a, of the weight `alpha^a / (alpha^2 + sigma^2)`: 1 for one step, 2 for more.
        weight_shift: b, of the weight `sigmoid(b - log SNR)`, which is small where noise is little.

    Raises:
        ValueError: for values outside their domain, or another kind of scheduler; when called, for
            a batch that `group_size` does not divide.
    """

    scheduler: Any
    group_size: int = 4
    highest_time: float = 0.994
    decrement: int = 15
    weight_power: int = 1
    weight_shift: float = 5.0

    _domains = {
        "group_size": (1, 2**16),
        "highest_time": (0.01, 0.9999),
        "decrement": (1, 30),
        "weight_power": (0, 10),
        "weight_shift": (-100.0, 100.0),
    }

    def __post_init__(self):
        super().__post_init__()
        check_flow_scheduler(self.scheduler, num_times=2)

    def __call__(self, key, apply_fn, params, frozen, batch, step):
        """Returns the loss; `frozen.teacher` and `step` are not used."""
        del step
        data, cond = split_batch(batch)
        count = data.shape[0]
        if count % self.group_size:
            raise ValueError(
                f"batch['data'] has {count} samples, which group_size={self.group_size} does not "
                "divide; choose a multiple"
            )

        # Each group has times of its own: t, and s below it.
        t_key, s_key, noise_key = random.split(key, 3)
        groups = (count // self.group_size,)
        t = self.highest_time * random.uniform(t_key, groups)
        s = t * random.uniform(s_key, groups)
        t = jnp.repeat(t, self.group_size)
        s = jnp.repeat(s, self.group_size)
        noise = draw_noise(noise_key, data, self.scheduler)
        return self.at(apply_fn, params, target_of(params, frozen), data, noise, t, s, cond)

    def at(
        self,
        apply_fn: ApplyFn,
        params: Any,
        target_params: Any,
        data: jax.Array,
        noise: jax.Array,
        t: jax.Array,
        s: jax.Array,
        cond: dict[str, Any],
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns (loss, metrics) at given noise and times.

        Args:
            apply_fn: `(params, x, t, s, **cond) -> u`.
            params: of the network, which the gradient is taken with respect to.
            target_params: of the network that goes from r to s.
            data: `[B, ...]`, a group after the other.
            noise: normal, with the scheduler's `noise_scale`, `[B, ...]`.
            t: where steps begin, f32[B], the same for all samples of a group.
            s: where they end, f32[B], likewise.
            cond: per-sample conditioning.

        Raises:
            ValueError: for times of another shape.
        """
        check_times(data, t=t, s=s)
        network = mean_velocity(apply_fn, self.scheduler)
        r = self._lower_time(t, s)

        # Where steps from t end at s, `[B, ...]`: x + (s - t) u(x, t, s), with a gradient.
        x = on_path(data, noise, t)
        u = network(params, x, t, s, cond)
        from_t = weighted_sum((1, x), (s - t, u))

        # Where those from r end, without a gradient.
        lower = on_path(data, noise, r)
        u = jax.lax.stop_gradient(network(target_params, lower, r, s, cond))
        from_r = weighted_sum((1, lower), (s - r, u))

        # The kernel's width is |c_out| = t - s, the furthest that the output moves a sample.
        width = jnp.maximum(t - s, 1e-6)
        ends = (from_t, jax.lax.stop_gradient(from_r), width)
        discrepancy = with_automatic_axes(self._discrepancies, ends)
        loss = jnp.mean(self._weight(t) * discrepancy)
        apart = jnp.square((from_t - from_r).astype(jnp.float32))
        return loss, {"loss": loss, "distance": jnp.sqrt(jnp.mean(apart))}

    def _lower_time(self, t, s):
        """Returns r, f32[B]: a fixed amount of noise to signal below t, but not below s."""
        # The ratio t / (1 - t) falls by 2^-k of its range (section 4.2, constant decrement).
        highest = self.highest_time / (1 - self.highest_time)
        noise_to_signal = t / (1 - t) - highest * 2.0**-self.decrement
        noise_to_signal = jnp.maximum(noise_to_signal, 0)

        # The time of that ratio.
        return jnp.maximum(noise_to_signal / (1 + noise_to_signal), s)

    def _weight(self, t):
        """Returns the weight of each sample, f32[B] (equation 13)."""
        # 1/2 sigmoid(b - lambda) (-dlambda/dt) alpha^a / (alpha^2 + sigma^2), with the logarithm of
        # the signal to noise ratio lambda = 2 log(alpha / sigma), whose slope is that of
        # 2 log((1 - t) / t).
        alpha = 1 - t
        t = jnp.maximum(t, 1e-6)
        sigma = self.scheduler.parametrization.noise_scale * t
        log_snr = 2 * (jnp.log(alpha) - jnp.log(sigma))
        slope = 2 / (t * alpha)
        level = alpha**self.weight_power / (jnp.square(alpha) + jnp.square(sigma))
        return 0.5 * jax.nn.sigmoid(self.weight_shift - log_snr) * slope * level

    def _discrepancies(self, samples, _):
        """Returns the squared discrepancy of each sample's group, f32[B]."""
        from_t, from_r, width = samples
        count = width.shape[0]
        groups = (count // self.group_size, self.group_size)
        from_t = from_t.astype(jnp.float32).reshape(*groups, -1)
        from_r = from_r.astype(jnp.float32).reshape(*groups, -1)
        width = width.reshape(groups)[:, :1, None]

        # mean k(a, a') + mean k(b, b') - 2 mean k(a, b) over all pairs of a group.
        same = self._kernel(from_t, from_t, width) + self._kernel(from_r, from_r, width)
        cross = self._kernel(from_t, from_r, width)
        of_groups = jnp.mean(same - 2 * cross, axis=(1, 2))
        return jnp.repeat(of_groups, self.group_size, total_repeat_length=count)

    def _kernel(self, a, b, width):
        """Returns exp(-|a_i - b_j| / (width D)) of groups f32[G, M, D], f32[G, M, M]."""
        # max(|a - b|, 1e-4), whose gradient is 0 where two samples are the same.
        gap = a[:, :, None] - b[:, None]
        square = jnp.maximum(jnp.sum(jnp.square(gap), axis=-1), _LEAST_SQUARE)
        num_values = math.prod(a.shape[2:])
        return jnp.exp(-jnp.sqrt(square) / (width * num_values))

"""Shortcut models (Frans et al. 2024, arXiv 2410.12557): one long step equals two short ones."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cmjax import random
from cmjax.arrays import ApplyFn, along_batch, weighted_sum
from cmjax.meshes import with_automatic_axes
from cmjax.training.losses.base import Loss
from cmjax.training.losses.batches import split_batch
from cmjax.training.losses.draws import rounded_count
from cmjax.training.losses.dropout import network_as_pytree
from cmjax.training.losses.flow_paths import (
    check_flow_scheduler,
    check_times,
    draw_noise,
    mean_velocity,
    on_path,
    velocity_of,
)
from cmjax.training.losses.frozen_networks import target_of
from cmjax.training.losses.metrics import mean_square


@dataclasses.dataclass(frozen=True)
class Shortcut(Loss):
    """Trains u(x, t, r), the mean velocity of a step from t to r, for steps of 1, 1/2, 1/4, ...

    Most of the batch learns the velocity `z - x0`, as that of the shortest step, of length
    1 / num_steps. The rest learns that one step equals two steps of half its length, which a moving
    average of the network takes (equation 4, Algorithm 1). `FlowMapEulerDiscreteScheduler` samples
    these networks in 1, 2, 4, ..., num_steps calls.

    The network gets both ends of a step. With `second_time="log_steps"` it takes the logarithm of
    the step's length, as the authors' network does.

    Defaults are those of the authors' code, from which this loss differs in three points. Their
    path keeps noise of 1e-5 at the data. Here each sample serves only one of the two purposes. And
    lengths are drawn in equal shares, which the authors round in favour of length 1.

    Metrics are `loss`, and its parts `flow_loss` and `consistency_loss`, sums of errors divided by
    the number of samples that a part has on average.

    Attributes:
        scheduler: a `FlowMapEulerDiscreteScheduler`, which gives the network's times.
        num_steps: number of the shortest steps from noise to data, a power of 2.
        consistency_fraction: fraction of the batch that compares steps.
        target_decay: decay of the moving average that takes the two steps; None for the trained
            parameters themselves.
        largest: bound on the elements of samples between two steps, and of the velocities that are
            learned of them, in units of the scheduler's `noise_scale` if that is above 1; 4 is far
            out for samples of standard deviation 1.

    Raises:
        ValueError: for values outside their domain, or another kind of scheduler.
    """

    scheduler: Any
    num_steps: int = 128
    consistency_fraction: float = 0.125
    target_decay: float | None = 0.999
    largest: float = 4.0

    _domains = {
        "num_steps": (2, 2**20),
        "consistency_fraction": (0.0, 1.0),
        "target_decay": (0.0, 1.0),
        "largest": (1e-6, 1e30),
    }

    def __post_init__(self):
        super().__post_init__()
        check_flow_scheduler(self.scheduler, num_times=2)
        if self.num_steps & (self.num_steps - 1):
            raise ValueError(f"num_steps must be a power of 2, got {self.num_steps}")

    def target_decay_at(self, step):
        """Returns the decay of the target's moving average, f32[], or None."""
        del step
        return None if self.target_decay is None else jnp.float32(self.target_decay)

    def __call__(self, key, apply_fn, params, frozen, batch, step):
        """Returns the loss; `frozen.teacher` and `step` are not used."""
        del step
        data, cond = split_batch(batch)
        time_key, noise_key = random.split(key)
        t, length = self._draw_steps(time_key, data.shape[0])
        noise = draw_noise(noise_key, data, self.scheduler)
        return self.at(
            apply_fn, params, target_of(params, frozen), data, noise, t, length, cond
        )

    def at(
        self,
        apply_fn: ApplyFn,
        params: Any,
        target_params: Any,
        data: jax.Array,
        noise: jax.Array,
        t: jax.Array,
        length: jax.Array,
        cond: dict[str, Any],
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns (loss, metrics) at given noise and steps.

        Args:
            apply_fn: `(params, x, t, r, **cond) -> u`.
            params: of the network, which the gradient is taken with respect to.
            target_params: of the network that takes the two steps.
            data: `[B, ...]`.
            noise: normal, with the scheduler's `noise_scale`, `[B, ...]`.
            t: where steps begin, f32[B], from 1 (noise) down.
            length: of the steps, f32[B]: 1 / num_steps, or for those of the first samples that
                compare steps 2 / num_steps, 4 / num_steps, ..., 1. The first samples are
                `consistency_fraction` of the batch, rounded up.
            cond: per-sample conditioning.

        Raises:
            ValueError: for times of another shape.
        """
        check_times(data, t=t, length=length)

        # The samples (1 - t) x0 + t z, and their velocity z - x0.
        x = on_path(data, noise, t)
        velocity = velocity_of(data, noise)
        samples = _Samples(x, velocity, t, length, cond)
        target = self._target(apply_fn, target_params, samples)

        # The squared error of u(x, t, t - length), f32[B].
        network = mean_velocity(apply_fn, self.scheduler)
        u = network(params, x, t, t - length, cond)
        error = mean_square(weighted_sum((1, u), (-1, jax.lax.stop_gradient(target))))
        loss = jnp.mean(error)

        # The two parts, each a mean over its own samples.
        is_compared = self._compares(length)
        fraction = self.consistency_fraction
        metrics = {
            "loss": loss,
            "consistency_loss": _mean_of_fraction(is_compared, error, fraction),
            "flow_loss": _mean_of_fraction(~is_compared, error, 1 - fraction),
        }
        return loss, metrics

    def _target(self, apply_fn, target_params, samples):
        """Returns what the network learns, `[B, ...]`.

        For the samples that compare steps, which are among the first, it is the mean velocity over
        two steps, and for the others the velocity.
        """
        num_first = self._num_first(samples.t.shape[0])
        if not num_first:
            return samples.velocity

        # Arrays are passed and not closed over, as `with_automatic_axes` needs it: the parameters,
        # and what the network holds, such as the key of dropout.
        arrays = (network_as_pytree(apply_fn), target_params)

        def learned(samples, arrays):
            target_fn, target_params = arrays
            network = mean_velocity(target_fn, self.scheduler)
            first, others = samples.parted(num_first)
            two_steps = self._two_steps(network, target_params, first)
            two_steps = two_steps.astype(others.velocity.dtype)
            chosen = along_batch(self._compares(first.length), two_steps.ndim)
            of_first = jnp.where(chosen, two_steps, first.velocity)
            return jnp.concatenate([of_first, others.velocity])

        return with_automatic_axes(learned, samples, arrays)

    def _compares(self, length):
        """Returns which samples compare steps, bool[B]: those of longer steps than the least."""
        # The shortest step is 1 / num_steps, and the next one 2 / num_steps.
        return length > 1.5 / self.num_steps

    def _num_first(self, count):
        """Returns the most samples of a batch of `count` that may compare steps: the first ones."""
        return math.ceil(round(count * self.consistency_fraction, 6))

    def _draw_steps(self, key, count):
        """Returns where the steps begin, and their lengths, f32[count] each."""
        offset_key, place_key, count_key = random.split(key, 3)

        # How often the shortest step is doubled to reach length 1.
        doublings = int(math.log2(self.num_steps))
        num_compared = rounded_count(count_key, count, self.consistency_fraction)

        # The first samples have 1, 2, 4, ..., num_steps / 2 steps to the data in equal shares, from
        # a random start, which is fair to batches of few samples as well.
        index = jnp.arange(count)
        ramp = index.astype(jnp.float32) / jnp.maximum(num_compared, 1).astype(jnp.float32)
        place_in_ramp = (ramp + random.uniform(offset_key, ())) % 1
        power = jnp.minimum(jnp.floor(place_in_ramp * doublings), doublings - 1)
        power = jnp.where(index < num_compared, power, doublings)
        steps = jnp.exp2(power)

        # A step begins at one of 1, 1 - length, ..., length.
        place = jnp.floor(random.uniform(place_key, (count,)) * steps)
        place = jnp.minimum(place, steps - 1)
        return 1 - place / steps, 1 / steps

    def _two_steps(self, network, params, samples):
        """Returns the mean velocity, `[B, ...]`, over two steps of half the length."""
        # u(x, t, t - half), then u at the sample that this leads to.
        t = samples.t
        half = samples.length / 2
        first = network(params, samples.x, t, t - half, samples.cond)
        middle = weighted_sum((1, samples.x), (-half, first))
        bound = self.largest * max(1.0, self.scheduler.parametrization.noise_scale)
        middle = jnp.clip(middle, -bound, bound)
        second = network(params, middle, t - half, t - samples.length, samples.cond)

        # The two steps are of equal length, so that of both has the mean velocity.
        mean = weighted_sum((0.5, first), (0.5, second))
        return jnp.clip(mean, -bound, bound)


class _Samples(NamedTuple):
    """Samples with the steps that they take.

    Attributes:
        x: `[B, ...]`, at the time t.
        velocity: of x at that time, `[B, ...]`.
        t: where the steps begin, f32[B].
        length: of the steps, f32[B].
        cond: per-sample conditioning.
    """

    x: jax.Array
    velocity: jax.Array
    t: jax.Array
    length: jax.Array
    cond: dict[str, Any]

    def parted(self, count: int) -> tuple["_Samples", "_Samples"]:
        """Returns the first `count` samples, and the others."""
        first = jax.tree.map(lambda array: array[:count], self)
        others = jax.tree.map(lambda array: array[count:], self)
        return first, others


def _mean_of_fraction(chosen, error, fraction):
    """Returns an estimate of the mean error of a fraction of the samples, f32[]; 0 for none.

    Of few samples none may be chosen. Divided by the expected number, the mean over many batches
    is right all the same.
    """
    expected = error.shape[0] * fraction
    if not expected:
        return jnp.float32(0)
    return jnp.sum(jnp.where(chosen, error, 0)) / expected

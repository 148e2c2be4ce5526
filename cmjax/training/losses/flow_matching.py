"""Flow matching, which trains velocities along straight paths from data to noise."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from cmjax import random
from cmjax.arrays import as_floats, check_shapes, weighted_sum
from cmjax.meshes import sharded_like
from cmjax.networks import call_network
from cmjax.training.losses.base import Loss, Preview
from cmjax.training.losses.batches import split_batch
from cmjax.training.losses.draws import DRAW_DOMAINS
from cmjax.training.losses.flow_paths import (
    check_flow_scheduler,
    draw_noise,
    draw_times,
    on_path,
    velocity_of,
)
from cmjax.training.losses.metrics import mean_square


@dataclasses.dataclass(frozen=True)
class FlowMatching(Loss):
    """Flow matching on straight paths, `|F((1 - t) x0 + t z, t) - (z - x0)|^2`.

    It is rectified flow's first stage (Liu et al. 2022, arXiv 2209.03003, equation 1; Lipman et al.
    2022, arXiv 2210.02747), with times whose logit is normal (Esser et al. 2024, arXiv 2403.03206,
    section 3.1). The network may be sampled by every scheduler of flow matching, and is what flow
    maps start from.

    If a batch has "noise" `[B, ...]`, from which its data were made by a trained network
    (`cmjax.training.pairs.reflow_pairs`), this noise is used, and the loss is rectified flow's
    second stage: paths that no longer cross, which few steps can follow.

    Attributes:
        scheduler: gives the network's time, such as `FlowMatchEulerDiscreteScheduler`.
        p_mean: mean of the logit of t, which is log(t / (1 - t)).
        p_std: standard deviation of the logit.
        uniform_fraction: fraction of the times that are drawn uniformly instead; 0 in the paper.

    Raises:
        ValueError: for values outside their domain, or another kind of scheduler.
    """

    scheduler: Any
    p_mean: float = 0.0
    p_std: float = 1.0
    uniform_fraction: float = 0.0

    takes_noise = True
    _domains = DRAW_DOMAINS

    def __post_init__(self):
        super().__post_init__()
        check_flow_scheduler(self.scheduler, num_times=1)

    @property
    def preview(self) -> Preview:
        """The scheduler itself in 18 steps."""
        return Preview((18,))

    def __call__(self, key, apply_fn, params, frozen, batch, step):
        """Returns the loss; `frozen` and `step` are not used."""
        del frozen, step
        data, cond = split_batch(batch)
        parametrization = self.scheduler.parametrization

        # Samples (1 - t) x0 + t z, `[B, ...]`, each at its own time.
        time_key, noise_key = random.split(key)
        t = draw_times(
            time_key, data.shape[0], self.p_mean, self.p_std, self.uniform_fraction
        )
        noise = cond.pop("noise", None)
        if noise is None:
            noise = draw_noise(noise_key, data, self.scheduler)
        else:
            # Standard normal, as `reflow_pairs` returns it.
            noise = parametrization.noise_scale * as_floats("batch['noise']", noise)
        check_shapes(data=data, noise=noise)
        x = on_path(data, noise, t)

        # The error of the velocity z - x0. If the network's time is inverted, and so grows with the
        # signal, its velocity is x0 - z.
        sign = -1 if parametrization.inverted else 1
        time = sharded_like(parametrization.time_of(t), x)
        velocity = call_network(apply_fn, params, x, (time,), cond)
        error = weighted_sum((sign, velocity), (-1, velocity_of(data, noise)))
        loss = jnp.mean(mean_square(error))
        return loss, {"loss": loss}

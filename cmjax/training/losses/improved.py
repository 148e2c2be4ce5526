"""Consistency training without a moving average: improved (iCT) and easy (ECT)."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from cmjax import random
from cmjax.parametrization import consistency_function, edm_denoiser
from cmjax.training.discretization import (
    adjacent_levels,
    doubling_num_levels,
    easy_consistency_level,
    lognormal_index,
)
from cmjax.training.losses.batches import split_batch
from cmjax.training.losses.checks import check_total_steps, karras_range
from cmjax.training.losses.discrete import LEVELS, TwoLevelLoss, check_growth
from cmjax.training.losses.draws import DRAW_DOMAINS, draw_sigmas
from cmjax.training.losses.frozen_networks import target_of
from cmjax.training.losses.metrics import Metric, PseudoHuber


@dataclasses.dataclass(frozen=True)
class ImprovedConsistencyTraining(TwoLevelLoss):
    """Improved consistency training, iCT (Song and Dhariwal 2023, table 1).

    The number of intervals doubles in stages, levels are lognormal over the grid, and distances are
    weighted by 1 / (higher - lower). The target is the trained parameters themselves. Defaults are
    the paper's for CIFAR-10.

    Attributes:
        scheduler: gives the network's parametrization and the range of noise levels.
        total_steps: K, length of the run, over which the grid grows.
        initial_intervals: s0, the number of intervals between noise levels at the start.
        final_intervals: s1, the number of intervals at the end.
        p_mean: mean of log sigma, P_mean of section 3.5.
        p_std: standard deviation of log sigma, P_std of section 3.5.
        metric: how two estimates of x0 are compared, `(a, b) -> f32[B]`.

    Raises:
        ValueError: for values outside their domain.
    """

    scheduler: Any
    total_steps: int
    initial_intervals: int = 10
    final_intervals: int = 1280
    p_mean: float = -1.1
    p_std: float = 2.0
    metric: Metric = PseudoHuber()

    _domains = {
        "initial_intervals": LEVELS,
        "final_intervals": LEVELS,
        **DRAW_DOMAINS,
    }

    def __post_init__(self):
        super().__post_init__()
        check_total_steps(self.total_steps)
        check_growth(self, "initial_intervals", "final_intervals")

    def __call__(self, key, apply_fn, params, frozen, batch, step):
        """Returns the loss; `frozen.teacher` is not used."""
        level_key, noise_key = random.split(key)

        # N(k), which doubles in stages (section 3.4).
        num_levels = doubling_num_levels(
            step, self.total_steps, self.initial_intervals, self.final_intervals
        )

        # Neighbouring levels, f32[B] each, lognormal over the grid (section 3.5): fewer of the
        # highest levels than with uniform indices, since errors at low levels add up in the high
        # ones.
        sigma_range = karras_range(self.scheduler)
        data, _ = split_batch(batch)
        index = lognormal_index(
            level_key,
            data.shape[0],
            self.p_mean,
            self.p_std,
            num_levels,
            *sigma_range,
        )
        higher, lower = adjacent_levels(index, num_levels, *sigma_range)

        # Weighted by lambda(sigma) = 1 / (higher - lower) (section 3.1): the lower the noise, the
        # closer the levels, and the more their distance counts. `frozen.target` holds the trained
        # parameters, since the decay of the target is None.
        distances = self.distances(
            noise_key, apply_fn, params, target_of(params, frozen), batch, higher, lower
        )
        loss = jnp.mean(distances / (higher - lower))
        return loss, {"loss": loss, "num_levels": num_levels}


@dataclasses.dataclass(frozen=True)
class EasyConsistencyTuning(TwoLevelLoss):
    """Easy consistency tuning, ECT: from a denoiser to a consistency model (Geng et al. 2024).

    x0 at a lognormal level t is compared with x0 at a lower level r, whose ratio r/t goes to 1 over
    the run. Distances are Euclidean norms, weighted by 1 / (t - r) (section 3.3). The target is the
    trained parameters themselves.

    Attributes:
        scheduler: gives the network's parametrization and the range of noise levels.
        total_steps: length of the run, over which the gap 1 - r/t shrinks.
        num_stages: number of stages in the run; the gap is divided by `shrink_factor` in each.
        shrink_factor: q of equation 14.
        p_mean: mean of log sigma of the lognormal levels.
        p_std: standard deviation of log sigma.
        uniform_fraction: fraction of the levels that are drawn uniformly along the Karras grid
            instead; see `draw_sigmas`. 0 in the paper.
        whole_stages: whether the gap shrinks at the end of each stage only, as in the authors' code
            (locuslab/ect), instead of a little at every step.
        least_sigma: the lowest r; None is the scheduler's `sigma_min`. With 0, as in the authors'
            code, x0 is compared with the data itself wherever the gap reaches down to it.
        edm_scalings: whether x0 has EDM's scalings, as in the authors' code, instead of those that
            make it x itself at `sigma_min`; samplers use the latter, and differ little.
        metric: how two estimates of x0 are compared, `(a, b) -> f32[B]`.

    Raises:
        ValueError: for values outside their domain.
    """

    scheduler: Any
    total_steps: int
    num_stages: float = 8.0
    shrink_factor: float = 2.0
    p_mean: float = -1.1
    p_std: float = 2.0
    uniform_fraction: float = 0.0
    whole_stages: bool = False
    least_sigma: float | None = None
    edm_scalings: bool = False
    metric: Metric = PseudoHuber(c=0.0)

    _domains = {
        "num_stages": (1e-6, 1e6),
        "shrink_factor": (1.000001, 1e6),
        **DRAW_DOMAINS,
        "least_sigma": (0.0, 1e6),
    }

    def __post_init__(self):
        super().__post_init__()
        check_total_steps(self.total_steps)
        sigma_min = karras_range(self.scheduler).sigma_min
        if self.least_sigma is not None and self.least_sigma > sigma_min:
            raise ValueError(
                f"least_sigma must be at most the scheduler's sigma_min {sigma_min}, "
                f"got {self.least_sigma}"
            )

    def __call__(self, key, apply_fn, params, frozen, batch, step):
        """Returns the loss; `frozen.teacher` is not used."""
        level_key, noise_key = random.split(key)

        # The higher levels, f32[B]. ECT has no grid: levels are any numbers in the range.
        data, _ = split_batch(batch)
        t = draw_sigmas(
            level_key,
            data.shape[0],
            self.scheduler,
            self.p_mean,
            self.p_std,
            self.uniform_fraction,
        )

        # The lower levels r(t, step), f32[B] (equation 14).
        steps_per_stage = self.total_steps / self.num_stages
        r = easy_consistency_level(
            t, step, steps_per_stage, self.shrink_factor, whole_stages=self.whole_stages
        )

        # Closer together than this, float32 sees no difference, and 1 / (t - r) is not finite.
        least = self.least_sigma
        if least is None:
            least = karras_range(self.scheduler).sigma_min
        r = jnp.clip(r, least, (1 - 1e-5) * t)

        # Weighted by 1 / (t - r): the gradient keeps its size while the gap shrinks.
        denoiser = edm_denoiser if self.edm_scalings else consistency_function
        distances = self.distances(
            noise_key, apply_fn, params, target_of(params, frozen), batch, t, r, denoiser
        )
        loss = jnp.mean(distances / (t - r))
        return loss, {"loss": loss, "ratio": jnp.mean(r / t)}

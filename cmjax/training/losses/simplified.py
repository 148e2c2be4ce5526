"""Simplified continuous-time consistency models, sCM (Lu and Song 2024, arXiv 2410.11081)."""

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from cmjax import random
from cmjax.arrays import ApplyFn, check_shapes, scaled, weighted_sum
from cmjax.parametrization import consistency_function, edm_denoiser, trigflow_network
from cmjax.schedulers.field_docs import inherit_field_docs
from cmjax.training.discretization import tangent_warmup
from cmjax.training.losses.base import Loss
from cmjax.training.losses.batches import split_batch
from cmjax.training.losses.checks import check_sigma_data
from cmjax.training.losses.draws import DRAW_DOMAINS, draw_sigmas
from cmjax.training.losses.frozen_networks import target_of, teacher_network
from cmjax.training.losses.metrics import mean_square
from cmjax.training.losses.weighting import WeightedParams, weigh_levels, with_level_weight


@dataclasses.dataclass(frozen=True)
class _SimplifiedLoss(Loss):
    """Base of training and distillation, which differ only in the path that x moves along.

    Attributes:
        scheduler: gives the networks' parametrization, and the range of noise levels if it has one.
        p_mean: mean of log sigma, P_mean.
        p_std: standard deviation of log sigma, P_std.
        uniform_fraction: fraction of the levels that are drawn uniformly along the Karras grid
            instead; see `draw_sigmas`. 0 in the paper.
        tangent_warmup_steps: H, training steps over which the derivative of the network is
            phased in.
        tangent_c: c of the normalized tangent `g / (|g| + c)`.
        tangent_size: what |g| is, "norm" (the Euclidean norm, of the paper) or "rms" (the root mean
            square, which leaves the target's distance independent of the number of pixels).
        adaptive_weight: train a weighting of the noise levels with the network, see
            `weigh_levels`: `params` are then `prepare_params(params)`.
    """

    scheduler: Any
    p_mean: float = -1.0
    p_std: float = 1.8
    uniform_fraction: float = 0.0
    tangent_warmup_steps: int = 10_000
    tangent_c: float = 0.1
    tangent_size: str = "norm"
    adaptive_weight: bool = False

    _domains = {
        **DRAW_DOMAINS,
        "tangent_warmup_steps": (1, 1_000_000_000),
        "tangent_c": (0.0, 1e6),
        "tangent_size": ("norm", "rms"),
    }

    def __post_init__(self):
        super().__post_init__()
        # A range of noise levels is not needed: TrigFlow's angles are from 0 to pi/2.
        check_sigma_data(self.scheduler)

    def prepare_params(self, params):
        """Returns the parameters, with those of the weighting if it is adaptive."""
        return with_level_weight(params) if self.adaptive_weight else params

    def network_params(self, params):
        """Returns the network's parameters, without those of the weighting."""
        if not self.adaptive_weight:
            return params
        if not isinstance(params, WeightedParams):
            raise ValueError(
                "adaptive_weight=True trains a weighting with the network: pass what "
                "loss.prepare_params(params) returns, as params and as Frozen(target), or set "
                "adaptive_weight=False"
            )
        return params.network

    def _loss(self, key, apply_fn, params, target_params, batch, step, slope):
        """Returns (loss, metrics) where x moves along dx/dt = `slope(x, t, **cond)`.

        With None for the slope, x moves along its path at fixed noise, which needs no teacher.
        """
        network_params = self.network_params(params)
        target_params = self.network_params(target_params)
        data, cond = split_batch(batch)
        x, sigma, t, along_path = self._noisy_samples(key, data)

        # dx/dt, `[B, ...]`: at fixed noise, or the teacher's.
        dx_dt = along_path if slope is None else slope(x, t, **cond)

        # The target is F, moved along the normalized tangent g / (|g| + c), which bounds the effect
        # of samples with huge tangents.
        network = trigflow_network(apply_fn, self.scheduler, consistency_function)
        value, g = self._tangent(network, target_params, x, t, dx_dt, cond, step)
        root_mean_square = jnp.sqrt(mean_square(g))
        norm = root_mean_square * math.prod(g.shape[1:]) ** 0.5
        size = norm if self.tangent_size == "norm" else root_mean_square
        moved = weighted_sum((1, value), (1 / (size + self.tangent_c), g))
        target = jax.lax.stop_gradient(moved)

        # The weighted error |F - target|^2, f32[B] (equation 8). Only here is there a gradient.
        output = network(network_params, x, t, **cond)
        error = mean_square(output - target)
        if self.adaptive_weight:
            error = weigh_levels(params.level_weight, error, sigma)
        loss = jnp.mean(error)
        return loss, {"loss": loss, "tangent_norm": jnp.mean(norm)}

    def _noisy_samples(self, key, data):
        """Draws noisy samples x on TrigFlow's path, with sigma, t, and dx/dt at fixed noise."""
        sigma_data = self.scheduler.sigma_data

        # Levels are drawn in sigma = sigma_data tan(t), as for every other loss.
        level_key, noise_key = random.split(key)
        sigma = draw_sigmas(
            level_key,
            data.shape[0],
            self.scheduler,
            self.p_mean,
            self.p_std,
            self.uniform_fraction,
        )

        # x = cos(t) x0 + sin(t) z with z of the data's scale (section 3), and its derivative.
        t = jnp.arctan(sigma / sigma_data)
        cos = jnp.cos(t)
        sin = jnp.sin(t)
        noise = sigma_data * random.normal(noise_key, data.shape)
        x = weighted_sum((cos, data), (sin, noise))
        dx_dt = weighted_sum((cos, noise), (-sin, data))
        return x, sigma, t, dx_dt

    def _tangent(self, network, target_params, x, t, dx_dt, cond, step):
        """Returns F of the target network, and the tangent g = cos(t) df/dt, `[B, ...]` each."""
        sigma_data = self.scheduler.sigma_data
        cos = jnp.cos(t)
        sin = jnp.sin(t)

        # F and cos(t) sin(t) dF/dt along the path, in one forward-mode pass. The factors scale the
        # tangents that go in, so that those of inner layers stay bounded near t = 0 and pi/2 (the
        # paper's "JVP rearrangement"). They must have the dtype of the samples.
        def target_network(x, t):
            return network(target_params, x, t, **cond)

        factor = cos * sin
        scaled_dx_dt = scaled(factor, dx_dt).astype(x.dtype)
        value, tangent = jax.jvp(target_network, (x, t), (scaled_dx_dt, factor))

        # Any other shape would be broadcast below.
        check_shapes(sample=x, model_output=value, slope=dx_dt)

        # Of f = cos(t) x - sin(t) sigma_data F (Algorithm 1):
        #     g = -cos^2(t) (sigma_data F - dx/dt) - r cos(t) sin(t) (x + sigma_data dF/dt).
        # The second part is unstable early in training, so r warms it up from 0 to 1.
        warmup = tangent_warmup(step, self.tangent_warmup_steps)
        g = weighted_sum(
            (-jnp.square(cos) * sigma_data, value),
            (jnp.square(cos), dx_dt),
            (-warmup * cos * sin, x),
            (-warmup * sigma_data, tangent),
        )
        return value, g


@inherit_field_docs
@dataclasses.dataclass(frozen=True)
class SimplifiedConsistencyTraining(_SimplifiedLoss):
    """Simplified continuous-time consistency training, sCT (Lu and Song 2024, Algorithm 1).

    The network may be one of TrigFlow (`SCMScheduler`) or one of EDM
    (`CMStochasticIterativeScheduler`): they differ only in their scalings. The target is the
    trained parameters themselves. Defaults are the paper's, except `p_std` (1.4) and
    `adaptive_weight` (True), which fail on small budgets (docs/benchmarks.md).

    Raises:
        ValueError: for values outside their domain.
    """

    def __call__(self, key, apply_fn, params, frozen, batch, step):
        """Returns the loss; `frozen.teacher` is not used."""
        return self._loss(
            key, apply_fn, params, target_of(params, frozen), batch, step, None
        )


@inherit_field_docs
@dataclasses.dataclass(frozen=True)
class SimplifiedConsistencyDistillation(_SimplifiedLoss):
    """Simplified continuous-time consistency distillation, sCD (Lu and Song 2024, Algorithm 1).

    Like `SimplifiedConsistencyTraining`, but x moves along the probability-flow ODE of a teacher,
    which is a denoiser. Defaults are as there.

    Attributes:
        teacher_fn: the teacher's network, `(teacher, x, t, **cond) -> model_output`; None if it is
            the student's.

    Raises:
        ValueError: for values outside their domain.
    """

    teacher_fn: ApplyFn | None = None

    needs_teacher: ClassVar[bool] = True

    def __call__(self, key, apply_fn, params, frozen, batch, step):
        """Returns the loss."""
        # The teacher's F in TrigFlow's terms, whatever its parametrization.
        teacher_fn = teacher_network(self, apply_fn, params, frozen)
        teacher = trigflow_network(teacher_fn, self.scheduler, edm_denoiser)

        def slope(x, t, **cond):
            # dx/dt = sigma_data F(x / sigma_data, t) (equation 4).
            output = teacher(frozen.teacher, x, t, **cond)
            return self.scheduler.sigma_data * output

        return self._loss(
            key, apply_fn, params, target_of(params, frozen), batch, step, slope
        )

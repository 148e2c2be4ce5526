"""What the losses share: their settings, the metrics, and how noise levels are drawn."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from cmjax.arrays import ApplyFn, combine
from cmjax.configs import check_options
from cmjax.parametrization import edm_denoiser
from cmjax.schedulers.consistency import CMStochasticIterativeScheduler
from cmjax.schedulers.levels import karras_sigmas
from cmjax.schedulers.scm import SCMScheduler

Batch = Mapping[str, Any]  # arrays [B, ...]
Metrics = dict[str, jax.Array]
Loss = Callable[..., tuple[jax.Array, Metrics]]
Metric = Callable[[jax.Array, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """What the losses are told beside the data.

    Attributes:
        scheduler: the preconditioning, and the range of noise levels. `SCMScheduler`, for networks in TrigFlow's terms,
            serves `denoising_loss` and the sCM losses; all others need the range of the consistency scheduler.
        total_steps: length of the run, for losses with a curriculum.
        p_mean: mean of log sigma where levels are drawn lognormal.
        p_std: standard deviation of log sigma.
        uniform_fraction: share of the levels drawn uniformly along the Karras grid instead.
        metric: how two estimates of x0 are compared: "l1" (mean of |a - b|), "l2" (mean of its square), "pseudo_huber",
            or a function `(a [B, ...], b [B, ...]) -> f32[B]`, such as LPIPS.
        huber_c: constant c of the pseudo-Huber metric, per square root of dimension; 0 is the plain norm.
        s0: consistency training's number of levels at the start.
        s1: and at the end; distillation's number of levels throughout; progressive distillation's of student steps.
        mu0: decay of consistency training's target at the start; of consistency distillation's throughout.
        solver: "heun" or "euler", the teacher's step in consistency distillation.
        stages: easy consistency tuning's number of stages, after each of which the gap 1 - r/t is q times smaller.
        q: easy consistency tuning's shrinking factor per stage.
        tangent_warmup: steps over which sCM brings in the derivative of the network, H.
        tangent_c: constant c of sCM's normalisation of the tangent, `g / (|g| + c)`.
        adaptive_weight: whether the trainer has sCM weigh levels adaptively, see `with_level_weight`.
        teacher_fn: distillation's teacher, `apply_fn(teacher, x, t, **cond)`; None: the student's network.

    Raises:
        ValueError: for values outside their domain.
    """

    scheduler: CMStochasticIterativeScheduler | SCMScheduler
    total_steps: int
    p_mean: float = -1.2
    p_std: float = 1.2
    uniform_fraction: float = 0.0
    metric: Literal["l1", "l2", "pseudo_huber"] | Metric = "pseudo_huber"
    huber_c: float = 0.00054
    s0: int = 2
    s1: int = 150
    mu0: float = 0.9
    solver: str = "heun"
    stages: float = 8.0
    q: float = 2.0
    tangent_warmup: int = 10_000
    tangent_c: float = 0.1
    adaptive_weight: bool = False
    teacher_fn: ApplyFn | None = None

    _domains = {
        "p_mean": (-50.0, 50.0),
        "p_std": (1e-6, 50.0),
        "uniform_fraction": (0.0, 1.0),
        "metric": ("l1", "l2", "pseudo_huber"),
        "huber_c": (0.0, 1e6),
        "s0": (1, 1_000_000),
        "s1": (1, 1_000_000),
        "mu0": (0.0, 1.0),
        "solver": ("heun", "euler"),
        "stages": (1e-6, 1e6),
        "q": (1.000001, 1e6),
        "tangent_warmup": (1, 1_000_000_000),
        "tangent_c": (0.0, 1e6),
    }

    def __post_init__(self):
        if not isinstance(self.scheduler, CMStochasticIterativeScheduler | SCMScheduler):
            name = type(self.scheduler).__name__
            raise ValueError(
                f"scheduler must be a CMStochasticIterativeScheduler or an SCMScheduler, got {name}"
            )
        check_options(dataclasses.replace(self, metric="l2") if callable(self.metric) else self)

    @property
    def grid(self) -> tuple[float, float, float]:
        """(sigma_min, sigma_max, rho) of the scheduler.

        Raises:
            ValueError: if it has none.
        """
        s = self.scheduler
        if isinstance(s, SCMScheduler):
            raise ValueError(
                "scheduler must be a CMStochasticIterativeScheduler for this loss, got SCMScheduler"
            )
        return s.sigma_min, s.sigma_max, s.rho

    def check_scales(self, least: int) -> None:
        """Checks the numbers of levels of a grid that needs at least `least` of them, and grows from s0 to s1.

        Raises:
            ValueError: if s1 is below it.
        """
        if self.s1 < least:
            raise ValueError(f"s1 must be at least {least} for this loss, got {self.s1}")


def pseudo_huber(error: jax.Array, c: float) -> jax.Array:
    """Returns `sqrt(|error|^2 + c^2 D) - c sqrt(D)`, f32[B], D being the dimension (Song & Dhariwal 2023, eq. 8).

    Where c and the error are zero, so is the gradient.
    """
    dimension = error[0].size
    offset = c * dimension**0.5
    square = mean_square(error) * dimension + offset**2
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0) - offset


def mean_square(error: jax.Array) -> jax.Array:
    """Returns the mean of the squares over all but the first axis, f32[B]."""
    return jnp.mean(jnp.square(error.astype(jnp.float32)), axis=tuple(range(1, error.ndim)))


METRICS = {
    "l1": lambda error, c: jnp.mean(
        jnp.abs(error.astype(jnp.float32)), axis=tuple(range(1, error.ndim))
    ),
    "l2": lambda error, c: mean_square(error),
    "pseudo_huber": pseudo_huber,
}


def distance(config: LossConfig, estimate: jax.Array, target: jax.Array) -> jax.Array:
    """Returns the config's metric between `[B, ...]` and `[B, ...]`, f32[B]; the target gets no gradient."""
    target = jax.lax.stop_gradient(target)
    if callable(config.metric):
        return config.metric(estimate, target)
    return METRICS[config.metric](estimate - target, config.huber_c)


def draw_levels(key: jax.Array, count: int, config: LossConfig) -> jax.Array:
    """Returns noise levels f32[count]: lognormal, and a share uniform along the Karras grid.

    The lognormal is EDM's (Karras et al. 2022, table 1); it leaves the highest levels, on which
    one-step generation lives, almost unseen, which the uniform share mends.
    """
    normal_key, ramp_key, choice_key = jax.random.split(key, 3)
    lognormal = jnp.exp(config.p_mean + config.p_std * jax.random.normal(normal_key, (count,)))
    if isinstance(config.scheduler, SCMScheduler):  # all levels are angles below pi/2
        return lognormal
    uniform = karras_sigmas(jax.random.uniform(ramp_key, (count,)), *config.grid)
    choose = jax.random.uniform(choice_key, (count,)) < config.uniform_fraction
    # A hair above sigma_min: at sigma_min itself the consistency function is the identity.
    return jnp.clip(jnp.where(choose, uniform, lognormal), 1.1 * config.grid[0], config.grid[1])


def teacher_slope(
    config: LossConfig, apply_fn: ApplyFn, params: Any, cond: Mapping[str, jax.Array]
):
    """Returns `(x, sigma) -> dx/dsigma` of the teacher's probability-flow ODE (Karras et al. 2022, equation 3)."""

    def slope(x, sigma):
        denoised = edm_denoiser(
            config.teacher_fn or apply_fn, params, config.scheduler, x, sigma, **cond
        )
        return combine((1 / sigma, x), (-1 / sigma, denoised))

    return slope


def split(batch: Batch) -> tuple[jax.Array, dict[str, Any]]:
    """Returns the samples of a batch and its conditioning."""
    return batch["data"], {name: value for name, value in batch.items() if name != "data"}


class Weighted(NamedTuple):
    """Parameters of a network, and of how much the loss at a noise level counts (`with_level_weight`)."""

    network: Any
    level_weight: jax.Array  # f32[2 FREQUENCIES + 1]


FREQUENCIES = 8


def with_level_weight(params: Any) -> Weighted:
    """Adds sCM's adaptive weighting to parameters: train these instead, and sample with their `network`.

    `w(t)` is linear in cosines and sines of log sigma, and begins at 0. Minimising `exp(w) e - w` over it makes
    every level count the same (Karras et al. 2024, arXiv 2312.02696, equation 21; Lu & Song 2024, section 4.2).
    """
    return Weighted(params, jnp.zeros(2 * FREQUENCIES + 1))


def unweighted(params: Any) -> Any:
    """Returns the network's parameters, of `Weighted` or plain ones."""
    return params.network if isinstance(params, Weighted) else params


def weigh_levels(params: Any, error: jax.Array, sigma: jax.Array) -> jax.Array:
    """Returns `exp(w) error - w` at the levels f32[B], or the errors f32[B] as they are if nothing weighs them."""
    if not isinstance(params, Weighted):
        return error
    angles = (
        jnp.log(sigma)[:, None] * jnp.arange(1, FREQUENCIES + 1, dtype=jnp.float32)[None, :] / 4
    )
    features = jnp.concatenate(
        [jnp.ones_like(angles[:, :1]), jnp.cos(angles), jnp.sin(angles)], axis=-1
    )
    w = features @ params.level_weight
    return jnp.exp(w) * error - w

"""What a loss is, and the few functions that losses share."""

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from cmjax.arrays import ApplyFn, combine
from cmjax.configs import check_options, is_int
from cmjax.parametrization import edm_denoiser
from cmjax.schedulers.levels import karras_sigmas

Batch = Mapping[str, Any]  # arrays [B, ...]
Metrics = dict[str, jax.Array]


class Frozen(NamedTuple):
    """Parameters that a loss reads and that get no gradient.

    Attributes:
        target: of the network that a consistency loss compares with: a moving average of the
            trained parameters, or these parameters themselves. None for a loss without a target.
        teacher: of the network that is distilled; None without a teacher.
    """

    target: Any = None
    teacher: Any = None


class Preview(NamedTuple):
    """How pictures of a network in training are sampled.

    Attributes:
        num_inference_steps: a row of pictures is sampled with each of these.
        solver: class of the ODE solver that samples a denoiser; None to sample with the scheduler
            that the network is trained for.
    """

    num_inference_steps: tuple[int, ...] = (1, 2, 4)
    solver: type | None = None


class Loss(abc.ABC):
    """A training loss: its fields are its settings, and calling it computes it.

    A subclass is a frozen dataclass with `__call__`. What else the trainer asks has defaults here:
    no teacher, no moving average, parameters as they are.

    Attributes:
        needs_teacher: whether it distils a teacher, whose parameters are then `frozen.teacher`.
    """

    needs_teacher: ClassVar[bool] = False

    def __post_init__(self):
        check_options(self)

    @abc.abstractmethod
    def __call__(
        self,
        key: jax.Array,
        apply_fn: ApplyFn,
        params: Any,
        frozen: Frozen,
        batch: Batch,
        step: jax.Array,
    ) -> tuple[jax.Array, Metrics]:
        """Returns the loss of a batch, f32[], and metrics to log, f32[] each.

        Args:
            key: PRNG key of the noise and the noise levels.
            apply_fn: `(params, x, t, **cond) -> model_output`.
            params: to differentiate by.
            frozen: parameters that get no gradient.
            batch: "data" `[B, ...]`; its other arrays `[B, ...]` are conditioning, handed to
                `apply_fn` by name.
            step: training step, i32[].
        """

    def target_decay_at(self, step: jax.Array) -> jax.Array | None:
        """Returns the decay, f32[], of the moving average that is the target.

        None if the target is the trained parameters themselves, or there is none.
        """
        return None

    def prepare_params(self, params: Any) -> Any:
        """Returns what is trained: the network's parameters, and what a loss trains with them."""
        return params

    def network_params(self, params: Any) -> Any:
        """Returns the network's parameters among the trained ones, undoing `prepare_params`."""
        return params

    @property
    def preview(self) -> Preview:
        """How pictures of progress are sampled: in 1, 2 and 4 steps by default."""
        return Preview()


@dataclasses.dataclass(frozen=True)
class FunctionLoss(Loss):
    """A plain function as a loss, which the trainer makes of one.

    Attributes:
        function: `(key, apply_fn, params, frozen, batch, step) -> (loss, metrics)`.
    """

    function: Callable[..., tuple[jax.Array, Metrics]]

    def __call__(self, key, apply_fn, params, frozen, batch, step) -> tuple[jax.Array, Metrics]:
        """Calls the function."""
        return self.function(key, apply_fn, params, frozen, batch, step)


class KarrasRange(NamedTuple):
    """The range of noise levels of a scheduler, in the order of `karras_sigmas`' arguments.

    Attributes:
        sigma_min: the lowest level.
        sigma_max: the highest level.
        rho: curvature of the grid between them (Karras et al. 2022, equation 5).
    """

    sigma_min: float
    sigma_max: float
    rho: float


def karras_range(scheduler: Any) -> KarrasRange:
    """Returns the range of noise levels of a scheduler.

    Raises:
        ValueError: if the scheduler has none, such as SCMScheduler, whose levels are angles.
    """
    if not all(hasattr(scheduler, name) for name in KarrasRange._fields):
        raise ValueError(
            "scheduler must have sigma_min, sigma_max and rho for this loss, as "
            f"CMStochasticIterativeScheduler does; {type(scheduler).__name__} has not"
        )
    return KarrasRange(scheduler.sigma_min, scheduler.sigma_max, scheduler.rho)


def check_sigma_data(scheduler: Any) -> None:
    """Checks that a scheduler knows the standard deviation of the data.

    Raises:
        ValueError: if it does not.
    """
    if not hasattr(scheduler, "sigma_data"):
        raise ValueError(
            "scheduler must have sigma_data, as CMStochasticIterativeScheduler and "
            f"SCMScheduler do; {type(scheduler).__name__} has not"
        )


def check_total_steps(total_steps: Any) -> None:
    """Raises ValueError unless `total_steps` is an integer of at least 1."""
    if not is_int(total_steps, 1):
        raise ValueError(f"total_steps must be an integer of at least 1, got {total_steps!r}")


def check_metric(metric: Any) -> None:
    """Raises ValueError unless `metric` is a function."""
    if not callable(metric):
        raise ValueError(
            f"metric must be a function (a, b) -> f32[B], such as losses.L2(), got {metric!r}"
        )


def split_batch(batch: Batch) -> tuple[jax.Array, dict[str, Any]]:
    """Returns the samples of a batch and its conditioning."""
    cond = {name: value for name, value in batch.items() if name != "data"}
    return batch["data"], cond


def draw_sigmas(
    key: jax.Array,
    count: int,
    scheduler: Any,
    p_mean: float,
    p_std: float,
    uniform_fraction: float = 0.0,
) -> jax.Array:
    """Returns noise levels f32[count]: lognormal, a share of them uniform on the Karras grid.

    EDM's lognormal (Karras et al. 2022, table 1) hardly ever draws the highest levels, where
    one-step generation starts; the uniform share does. Levels stay within the scheduler's range;
    for a scheduler whose levels are angles, which has none, all are lognormal.

    Args:
        key: PRNG key.
        count: how many.
        scheduler: whose range to keep to.
        p_mean: mean of log sigma.
        p_std: standard deviation of log sigma.
        uniform_fraction: share of the levels that are drawn uniformly.
    """
    normal_key, ramp_key, choice_key = jax.random.split(key, 3)
    lognormal = jnp.exp(p_mean + p_std * jax.random.normal(normal_key, (count,)))
    if not hasattr(scheduler, "sigma_max"):
        return lognormal
    sigma_min, sigma_max, rho = karras_range(scheduler)

    uniform = karras_sigmas(jax.random.uniform(ramp_key, (count,)), sigma_min, sigma_max, rho)
    is_uniform = jax.random.uniform(choice_key, (count,)) < uniform_fraction
    sigma = jnp.where(is_uniform, uniform, lognormal)
    # A little above sigma_min: at sigma_min itself the consistency function is the identity.
    return jnp.clip(sigma, 1.1 * sigma_min, sigma_max)


def add_noise(data: jax.Array, sigma: jax.Array, noise: jax.Array) -> jax.Array:
    """Returns `data + sigma noise`, for data and noise `[B, ...]` and sigma f32[B]."""
    return combine((1, data), (sigma, noise))


def teacher_slope(
    apply_fn: ApplyFn, params: Any, scheduler: Any, cond: Mapping[str, jax.Array]
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Returns `(x, sigma) -> dx/dsigma`, the slope of the teacher's probability-flow ODE.

    `dx/dsigma = (x - D(x, sigma)) / sigma` (Karras et al. 2022, equation 3), D being the denoiser.

    Args:
        apply_fn: the teacher's network.
        params: the teacher's parameters.
        scheduler: the scheduler that the teacher is for.
        cond: per-sample conditioning, handed to `apply_fn`.
    """

    def slope(x, sigma):
        denoised = edm_denoiser(apply_fn, params, scheduler, x, sigma, **cond)
        return combine((1 / sigma, x), (-1 / sigma, denoised))

    return slope

"""The contract of a loss, and what most losses begin with: data, noise levels, noise, a teacher."""

import abc
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cmjax import random
from cmjax.arrays import ApplyFn, weighted_sum
from cmjax.configs import check_options, shown
from cmjax.meshes import batch_sharded_alike
from cmjax.parametrization import Parametrization, denoise
from cmjax.parametrization.conversion import one_time_parametrization
from cmjax.schedulers.levels import karras_sigmas
from cmjax.training.losses.checks import check_function, karras_range

# Valid values of the fields that say how noise levels or times are drawn, for the losses that have
# them.
DRAW_DOMAINS = {
    "p_mean": (-50.0, 50.0),
    "p_std": (1e-6, 50.0),
    "uniform_fraction": (0.0, 1.0),
}

# "data" [B, ...], and by name the arrays [B, ...] that the network is conditioned on.
Batch = Mapping[str, Any]
Metrics = dict[str, jax.Array]  # what is logged, f32[] each


class Frozen(NamedTuple):
    """Parameters that a loss evaluates networks with, and that get no gradient.

    Attributes:
        target: parameters of the target network of a consistency loss: a moving average of the
            trained parameters, or the trained parameters themselves. Losses without a target do
            not use it.
        teacher: parameters of the network that is distilled; None without a teacher.
    """

    target: Any = None
    teacher: Any = None


class Preview(NamedTuple):
    """How sample pictures are drawn while a network is trained.

    Attributes:
        num_inference_steps: numbers of sampling steps, one row of pictures for each.
        solver: class of the ODE solver that samples a denoiser; None to sample with the scheduler
            that the network is trained for.
        sigmas: noise levels of the calls of the only row, for a network that is trained for these;
            None for the scheduler's own.
    """

    num_inference_steps: tuple[int, ...] = (1, 2, 4)
    solver: type | None = None
    sigmas: tuple[float, ...] | None = None


class Loss(abc.ABC):
    """A training loss: its fields are its options; calling it computes the loss of a batch.

    A subclass is a frozen dataclass that defines `__call__`. The other members, which the trainer
    reads, have defaults: no teacher, no moving average, and no parameters besides the network's.

    Attributes:
        needs_teacher: whether the loss distils a teacher; `frozen.teacher` then holds the
            teacher's parameters.
        takes_noise: whether the loss uses the noise that samples were made from, "noise" of the
            batch, where the data have it.
    """

    needs_teacher: ClassVar[bool] = False
    takes_noise: ClassVar[bool] = False

    def __post_init__(self):
        # A subclass declares in `_domains` which values its fields may have.
        check_options(self)

        # The teacher's network, of the losses that have one; None if it is the student's.
        if getattr(self, "teacher_fn", None) is not None:
            check_function("teacher_fn", getattr(self, "teacher_fn"))  # noqa: B009

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
            params: trained parameters, which the gradient is taken with respect to.
            frozen: parameters that get no gradient.
            batch: "data" `[B, ...]`; the other arrays `[B, ...]` are conditioning, passed to
                `apply_fn` by name.
            step: training step, i32[].
        """

    @property
    def guided_by(self) -> str:
        """The option that makes the loss guide by samples without a class; "" for no guidance."""
        return ""

    def target_decay_at(self, step: jax.Array) -> jax.Array | None:
        """Returns the decay of the target's moving average at a training step, f32[].

        None if the target is the trained parameters themselves, or if the loss has no target.
        """
        return None

    def prepare_params(self, params: Any) -> Any:
        """Returns what is trained: the network's parameters, with any that the loss adds."""
        return params

    def make_optimizer(
        self, make: Callable[[int], optax.GradientTransformation], num_steps: int
    ) -> optax.GradientTransformation:
        """Returns the optimizer of what is trained, of those that `make` makes for one network.

        Args:
            make: from a number of updates to an optimizer, whose learning rate may depend on it.
            num_steps: number of training steps.
        """
        return make(num_steps)

    # Whatever is saved or sampled passes through this one: samplers know the network alone.
    def network_params(self, params: Any) -> Any:
        """Returns the network's parameters out of the trained ones; undoes `prepare_params`."""
        return params

    @property
    def preview(self) -> Preview:
        """How sample pictures are drawn: in 1, 2 and 4 steps by default."""
        return Preview()


@dataclasses.dataclass(frozen=True)
class FunctionLoss(Loss):
    """A loss given as a plain function; `make_train_step` wraps functions in it.

    Attributes:
        function: `(key, apply_fn, params, frozen, batch, step) -> (loss, metrics)`.
    """

    function: Callable[..., tuple[jax.Array, Metrics]]

    def __call__(
        self, key, apply_fn, params, frozen, batch, step
    ) -> tuple[jax.Array, Metrics]:
        """Calls the function."""
        return self.function(key, apply_fn, params, frozen, batch, step)


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["key"], meta_fields=["apply_fn"]
)
@dataclasses.dataclass(frozen=True, eq=False)
class WithDropout:
    """A network whose calls all drop out the same units, as those of student and target must.

    Attributes:
        apply_fn: `(params, x, t, *, dropout_key, **cond) -> model_output`, as `from_nnx` makes it.
        key: PRNG key, from which the units follow.
    """

    apply_fn: ApplyFn
    key: jax.Array

    def __call__(self, params: Any, *args: Any, **cond: Any) -> jax.Array:
        """Returns the model output, `[B, ...]`."""
        try:
            return self.apply_fn(params, *args, dropout_key=self.key, **cond)
        except TypeError as error:
            if "keyword argument 'dropout_key'" not in str(error):
                raise
            raise ValueError(
                "dropout calls the network with dropout_key=, a key, which this one does not take; "
                "from_nnx and from_linen make networks that do, or leave dropout out"
            ) from error


def network_as_pytree(apply_fn: ApplyFn) -> ApplyFn:
    """Returns the network as a pytree of the arrays that it holds, which is the key of dropout."""
    if isinstance(apply_fn, WithDropout):
        return apply_fn
    return jax.tree_util.Partial(apply_fn)


def without_dropout(apply_fn: ApplyFn) -> ApplyFn:
    """Returns the network without dropout, for a teacher, which is evaluated only."""
    if isinstance(apply_fn, WithDropout):
        return apply_fn.apply_fn
    return apply_fn


def split_batch(batch: Batch) -> tuple[jax.Array, dict[str, Any]]:
    """Returns (data `[B, ...]`, conditioning by name) of a batch.

    Raises:
        ValueError: if there are no data, if they are not floats, or if other values are not arrays
            of numbers, one for each sample.
    """
    if not isinstance(batch, Mapping) or "data" not in batch:
        has = sorted(batch) if isinstance(batch, Mapping) else type(batch).__name__
        raise ValueError(f'batch must be a mapping with "data", got {shown(has)}')

    # Noisy integers would be rounded to integers: a loss without a gradient.
    data = batch["data"]
    if not _is_array(data) or not jnp.issubdtype(data.dtype, jnp.floating) or data.ndim < 1:
        raise ValueError(
            f"batch['data'] must be floats [B, ...], got {_described(data)}; "
            "pixels become samples by x / 127.5 - 1"
        )
    if not all(data.shape):
        raise ValueError(
            "batch['data'] must be (B, ...) with sizes of at least 1, got shape "
            f"{data.shape}; leave out empty batches"
        )

    # All other arrays are conditioning: which names are valid is up to the network. A single value
    # would be broadcast to all samples without notice, so each sample must have its own.
    cond = {name: value for name, value in batch.items() if name != "data"}
    for name, value in cond.items():
        if not isinstance(name, str):
            raise ValueError(f"batch must map names to arrays, got the name {shown(name)}")
        for leaf in jax.tree.leaves(value):
            if not _is_array(leaf) and not isinstance(leaf, int | float):
                raise ValueError(
                    f"batch[{name!r}] must be an array of numbers, of NumPy or JAX, got "
                    f"{_described(leaf)}"
                )
            if jnp.shape(leaf)[:1] != data.shape[:1]:
                raise ValueError(
                    f"batch[{name!r}] must have one value for each of {len(data)} samples, "
                    f"got shape {jnp.shape(leaf)}"
                )
    arrays = batch_sharded_alike({"data": data, **cond})
    return arrays.pop("data"), arrays


def _is_array(value):
    """Whether a value of a batch is an array, or the shape of one, that JAX takes."""
    dtype = getattr(value, "dtype", None)
    if isinstance(value, np.ma.MaskedArray) or not hasattr(value, "shape"):
        return False
    if not isinstance(dtype, np.dtype):
        return isinstance(value, jax.Array)  # of keys

    # NumPy's may be text, dates, objects, bytes in the order of another machine or long doubles.
    is_number = dtype.kind == "b" or jnp.issubdtype(dtype, np.number)
    is_long = dtype.kind == "f" and dtype.itemsize > 8
    return is_number and dtype.isnative and not is_long


def _described(value):
    """What an error says of a value of a batch, with the way out for tensors of PyTorch."""
    dtype = getattr(value, "dtype", None)
    if dtype is None:
        return type(value).__name__
    if isinstance(value, np.ma.MaskedArray):
        return "a masked array, which becomes an array by .filled(0)"
    described = f"{dtype}{list(value.shape)}"
    if type(value).__module__.partition(".")[0] == "torch":
        return f"{described}, which becomes an array by .numpy()"
    return described


def draw_sigmas(
    key: jax.Array,
    count: int,
    scheduler: Any,
    p_mean: float,
    p_std: float,
    uniform_fraction: float = 0.0,
) -> jax.Array:
    """Returns noise levels f32[count]: lognormal, except for a share uniform on the Karras grid.

    EDM's lognormal distribution (Karras et al. 2022, table 1) has hardly any of the highest levels,
    where one-step generation starts; the uniform share has. Levels are clipped to the scheduler's
    range. A scheduler without a range, such as `SCMScheduler`, gets lognormal levels only.

    Args:
        key: PRNG key.
        count: how many.
        scheduler: its sigma_min, sigma_max and rho bound the levels.
        p_mean: mean of log sigma.
        p_std: standard deviation of log sigma.
        uniform_fraction: share of the levels that are drawn uniformly.
    """
    normal_key, ramp_key, choice_key = random.split(key, 3)

    # log sigma ~ N(p_mean, p_std^2).
    lognormal = jnp.exp(p_mean + p_std * random.normal(normal_key, (count,)))
    if not hasattr(scheduler, "sigma_max"):
        return lognormal  # the angles arctan(sigma / sigma_data) reach every level
    sigma_min, sigma_max, rho = karras_range(scheduler)

    # sigma(u) of the Karras grid for uniform u, in place of some of the lognormal levels.
    uniform = karras_sigmas(random.uniform(ramp_key, (count,)), sigma_min, sigma_max, rho)
    is_uniform = random.uniform(choice_key, (count,)) < uniform_fraction
    sigma = jnp.where(is_uniform, uniform, lognormal)

    # At least a little above sigma_min, where the consistency function is the identity.
    return jnp.clip(sigma, 1.1 * sigma_min, sigma_max)


def rounded_share(key: jax.Array, count: int, share: float) -> int | jax.Array:
    """Returns `count * share`, rounded up or down at random so that its mean is exact.

    A batch, or a part of one (`accumulate`), may have too few samples for its share.

    Args:
        key: PRNG key; not used where the product is a whole number.
        count: number of samples.
        share: of them, from 0 to 1.

    Returns:
        The number of samples, i32[], or a Python integer where nothing is rounded.
    """
    # Products such as 0.29 * 100 = 28.999999999999996 are whole numbers.
    exact = round(count * share, 6)
    whole = math.floor(exact)
    rest = exact - whole
    if not rest:
        return whole
    return whole + (random.uniform(key, ()) < rest).astype(jnp.int32)


def add_noise(data: jax.Array, sigma: jax.Array, noise: jax.Array) -> jax.Array:
    """Returns `data + sigma noise`, for data and noise `[B, ...]` and sigma f32[B]."""
    # By `weighted_sum`, which aligns sigma with the batch and computes bfloat16 samples in float32.
    return weighted_sum((1, data), (sigma, noise))


def _check_frozen(frozen):
    """Raises ValueError unless an argument is a `Frozen`."""
    if not isinstance(frozen, Frozen):
        raise ValueError(
            "frozen must be a Frozen, such as Frozen(target=params), got "
            f"{type(frozen).__name__}"
        )


def target_of(params: Any, frozen: Frozen) -> Any:
    """Returns the parameters of the target network, a tree like that of the trained ones.

    Raises:
        ValueError: if there are none.
    """
    _check_frozen(frozen)
    if frozen.target is None and params is not None:
        raise ValueError(
            "frozen.target is None, but this loss has a target network; pass "
            "Frozen(target=params), or a moving average of them"
        )
    return frozen.target


def teacher_network(
    teacher_fn: ApplyFn | None, apply_fn: ApplyFn, params: Any, frozen: Frozen
) -> ApplyFn:
    """Returns the teacher's network, without dropout: `teacher_fn`, or the student's for None.

    Raises:
        ValueError: if it is the student's, which has parameters, and there are none for it.
    """
    _check_frozen(frozen)
    if teacher_fn is not None:
        return without_dropout(teacher_fn)
    if frozen.teacher is None and params is not None:
        raise ValueError(
            "frozen.teacher is None, but this loss distils a teacher; pass "
            "Frozen(teacher=...) with the teacher's parameters"
        )
    return without_dropout(apply_fn)


def denoiser_slope(
    loss: Any, apply_fn: ApplyFn, params: Any, frozen: Frozen, cond: Mapping[str, jax.Array]
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Returns `teacher_slope` of a loss whose teacher is a denoiser of the loss's scheduler.

    Args:
        loss: with the fields `scheduler` and `teacher_fn`.
        apply_fn: the student's network.
        params: the student's parameters.
        frozen: with the teacher's parameters.
        cond: per-sample conditioning.

    Raises:
        ValueError: if there is no teacher, or the scheduler's networks take two times.
    """
    teacher_fn = teacher_network(loss.teacher_fn, apply_fn, params, frozen)
    parametrization = one_time_parametrization("scheduler", loss.scheduler)
    denoiser = parametrization.without_boundary()
    return teacher_slope(teacher_fn, frozen.teacher, denoiser, cond)


def teacher_slope(
    teacher_fn: ApplyFn,
    params: Any,
    parametrization: Parametrization,
    cond: Mapping[str, jax.Array],
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Returns `(x, sigma) -> dx/dsigma`, the slope of the teacher's probability-flow ODE.

    `dx/dsigma = (x - D(x, sigma)) / sigma` (Karras et al. 2022, equation 3), where D is the
    denoiser.

    Args:
        teacher_fn: the teacher's network, of one time or of two.
        params: the teacher's parameters.
        parametrization: of the teacher, without a boundary condition: it is a denoiser.
        cond: per-sample conditioning, passed to `teacher_fn`.
    """

    def slope(x, sigma):
        denoised = denoise(teacher_fn, params, parametrization, x, sigma, **cond)
        return weighted_sum((1 / sigma, x), (-1 / sigma, denoised))

    return slope

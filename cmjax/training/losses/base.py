"""The contract of a loss: what it gets, returns, and says of itself to the trainer."""

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import optax

from cmjax.arrays import ApplyFn
from cmjax.configs import check_options
from cmjax.training.losses.checks import check_function

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

"""The sections of a training configuration: typed, and checked one by one."""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar, get_type_hints

import optax

from cmjax.configs import did_you_mean, is_finite, is_int

OPTIMIZERS = {
    "adam": optax.adam,
    "adamw": optax.adamw,
    "radam": optax.radam,
    "lion": optax.lion,
    "sgd": optax.sgd,
}
SCHEDULES = ("constant", "cosine")
DTYPES = ("float32", "bfloat16")
_INT_LOWEST = -(2**31)
_TYPES = {
    int: "an integer",
    float: "a number",
    str: "a string",
    bool: "true or false",
    tuple[float, ...]: "a list of numbers",
    dict[str, float]: "a table of numbers",
}
Section = TypeVar("Section")


@dataclasses.dataclass(frozen=True)
class DataSection:
    """Where the training images come from.

    Attributes:
        source: an `.npz`, an IDX file, or a folder of pictures; see
            `cmjax.training.sources.open_source`.
        flip: mirror images left to right at random.
    """

    source: str = ""
    flip: bool = False


@dataclasses.dataclass(frozen=True)
class TeacherSection:
    """The teacher of a distillation.

    Attributes:
        model: a denoiser, as `cmjax.load` takes it; "" for the model that the run starts from.
        weak_model: a worse denoiser, to guide the teacher away from (autoguidance); "" for none.
        guidance: scale of that guidance; 1 is none.
    """

    model: str = ""
    weak_model: str = ""
    guidance: float = 2.0


@dataclasses.dataclass(frozen=True)
class OptimizerSection:
    """Optimizer settings.

    Attributes:
        name: one of `OPTIMIZERS`, optax's.
        learning_rate: after the warm-up.
        schedule: "constant", or "cosine" down to 0 at the last step.
        warmup_steps: steps of linear growth from 0.
        clip_norm: largest norm of the gradient; 0 for no clipping.
        options: other arguments of the optimizer, such as {b2 = 0.99}.

    Raises:
        ValueError: for values outside their domain.
    """

    name: str = "adam"
    learning_rate: float = 1e-4
    schedule: str = "constant"
    warmup_steps: int = 0
    clip_norm: float = 1.0
    options: dict[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        _check_choice("optimizer.name", self.name, OPTIMIZERS)
        _check_choice("optimizer.schedule", self.schedule, SCHEDULES)
        for name in ("learning_rate", "clip_norm"):
            value = getattr(self, name)
            if not is_finite(value) or value < 0:
                raise ValueError(f"optimizer.{name} must be at least 0 and finite, got {value}")

    def make(self, total_steps: int) -> optax.GradientTransformation:
        """Returns the optimizer, with its schedule and clipping, for a run of that length.

        Raises:
            ValueError: for options that the optimizer does not take.
        """
        try:
            optimizer = OPTIMIZERS[self.name](self._rate(total_steps), **self.options)
        except TypeError as error:
            raise ValueError(f"optimizer.options: {error}") from None
        if not self.clip_norm:
            return optimizer
        return optax.chain(optax.clip_by_global_norm(self.clip_norm), optimizer)

    def _rate(self, total_steps):
        """The learning rate, or its schedule."""
        if self.schedule == "cosine":
            first = 0.0 if self.warmup_steps else self.learning_rate
            return optax.warmup_cosine_decay_schedule(
                first, self.learning_rate, self.warmup_steps, total_steps
            )
        if self.warmup_steps:
            return optax.linear_schedule(0.0, self.learning_rate, self.warmup_steps)
        return self.learning_rate


@dataclasses.dataclass(frozen=True)
class RunSection:
    """How long a run is, and when it writes what.

    Attributes:
        steps: training steps, K of the curricula.
        batch_size: images a step, over all devices and processes.
        seed: of the first weights, the order of the data and all noise.
        init: a model to start from, as `cmjax.load` takes it; "" for a new one.
        ema_decays: of the moving averages; the first is saved as `model`, others as `model_DECAY`.
        accumulate: number of parts that a batch is divided into, to save memory.
        dtype: what the network computes in; all else is float32.
        log_every: steps between rows of metrics.
        sample_every: steps between pictures of samples; 0 for none.
        save_every: steps between checkpoints.
        keep: checkpoints to keep.
        tensorboard: write TensorBoard's event files as well (needs tensorboardX).

    Raises:
        ValueError: for values outside their domain.
    """

    steps: int = 1000
    batch_size: int = 64
    seed: int = 0
    init: str = ""
    ema_decays: tuple[float, ...] = (0.999,)
    accumulate: int = 1
    dtype: str = "float32"
    log_every: int = 50
    sample_every: int = 500
    save_every: int = 500
    keep: int = 2
    tensorboard: bool = False

    def __post_init__(self):
        for name in ("steps", "batch_size", "accumulate", "log_every", "save_every", "keep"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"run.{name} must be at least 1, got {value}")
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"run.accumulate={self.accumulate} does not divide run.batch_size={self.batch_size}"
            )
        _check_choice("run.dtype", self.dtype, DTYPES)


def read_section(cls: type[Section], name: str, values: Mapping[str, Any]) -> Section:
    """Returns a section with the values of a file.

    Raises:
        ValueError: naming the key that is unknown or of another type.
    """
    hints = get_type_hints(cls)
    for key, value in values.items():
        if key not in hints:
            raise ValueError(f"{name} has no key {key!r}{did_you_mean(key, list(hints))}")
        if not _has_type(value, hints[key]):
            raise ValueError(f"{name}.{key} must be {_TYPES[hints[key]]}, got {value!r}")
    return cls(
        **{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    )


def _has_type(value, hint):
    """Whether a value of a file is of a field's type; integers are numbers, true is neither."""
    if hint is int:
        return is_int(value, _INT_LOWEST)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint == tuple[float, ...]:
        return isinstance(value, (list, tuple)) and all(_has_type(v, float) for v in value)
    if hint == dict[str, float]:
        return isinstance(value, dict) and all(_has_type(v, float) for v in value.values())
    return isinstance(value, hint)


def _check_choice(name, value, known):
    if value not in known:
        raise ValueError(f"{name} is {value!r}{did_you_mean(value, list(known))}")

"""The sections of a training configuration with fixed keys, which have types and are checked."""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar, get_type_hints

import numpy as np
import optax

from cmjax.configs import LARGEST, did_you_mean, is_finite, is_int, shown
from cmjax.guidance.strength import interval_ends

# The optimizers, by their names in configuration files.
OPTIMIZERS = {
    "adam": optax.adam,
    "adamw": optax.adamw,
    "radam": optax.radam,
    "lion": optax.lion,
    "sgd": optax.sgd,
    "muon": optax.contrib.muon,  # Adam for what is no matrix, with the `adam_` options
}
SCHEDULES = ("constant", "cosine")  # of the learning rate, after the warm-up
DTYPES = ("float32", "bfloat16")  # float16 would need its loss scaled

LARGEST_SEED = 2**32 - 1

# The lowest value of each option of an optimizer, and what it must be below. optax checks neither.
_OPTIONS: dict[str, tuple[float, float | None]] = {
    "adam_b1": (0, 1),
    "adam_b2": (0, 1),
    "b1": (0, 1),
    "b2": (0, 1),
    "beta": (0, 1),
    "eps": (0, None),
    "eps_root": (0, None),
    "momentum": (0, 1),
    "threshold": (0, None),
    "weight_decay": (0, None),
}

# Types of fields, in the words of an error message.
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
        source: path of an `.npz`, an IDX file, a folder of pictures, or one of `cmjax encode`; see
            `cmjax.training.sources.open_source`.
        flip: mirror images left to right at random.
        autoencoder: of data that are latents, the autoencoder that makes pictures of them, as
            `cmjax.load_autoencoder` takes it; "" for the one in the folder of `cmjax encode`, or
            that of the model that the run starts from.
    """

    source: str = ""
    flip: bool = False
    autoencoder: str = ""

    def __post_init__(self):
        _check_types("data", self)


@dataclasses.dataclass(frozen=True)
class TeacherSection:
    """The teacher of a distillation.

    Attributes:
        model: a denoiser, as `cmjax.load` takes it; "" for the model that the run starts from.
        weak_model: a worse denoiser, which the teacher is guided away from (autoguidance, Karras et
            al. 2024); "" for no such guidance.
        guidance: scale of the guidance; 1 is the teacher alone.
        null_class: guide the teacher away from its own null class instead (classifier-free).
        guidance_interval: the noise levels (low, high) to guide at; empty for all.

    Raises:
        ValueError: for values outside their domain, or guidance of both kinds.
    """

    model: str = ""
    weak_model: str = ""
    guidance: float = 2.0
    null_class: bool = False
    guidance_interval: tuple[float, ...] = ()

    def __post_init__(self):
        _check_types("teacher", self)
        _check_number("teacher.guidance", self.guidance)
        if self.guidance_interval:
            interval_ends("teacher.guidance_interval", self.guidance_interval)

        # A teacher is guided in one way, if at all.
        if self.null_class and self.weak_model:
            raise ValueError(
                "teacher.null_class and teacher.weak_model exclude each other; give one"
            )
        if self.guidance_interval and not (self.null_class or self.weak_model):
            raise ValueError(
                "teacher.guidance_interval needs teacher.null_class or teacher.weak_model"
            )


@dataclasses.dataclass(frozen=True)
class OptimizerSection:
    """Optimizer settings.

    Attributes:
        name: one of `OPTIMIZERS`, optax's.
        learning_rate: learning rate after the warm-up.
        schedule: "constant", or "cosine", which decays to 0 at the last step.
        warmup_steps: steps in which the learning rate grows linearly from 0.
        clip_norm: gradients with a larger norm are scaled down to it; 0 for no clipping.
        options: further arguments of the optimizer, such as {b2 = 0.99}.

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
        _check_types("optimizer", self)
        _check_choice("optimizer.name", self.name, OPTIMIZERS)
        _check_choice("optimizer.schedule", self.schedule, SCHEDULES)
        _check_number("optimizer.learning_rate", self.learning_rate, 0)
        _check_count("optimizer.warmup_steps", self.warmup_steps, 0)
        _check_number("optimizer.clip_norm", self.clip_norm, 0)
        for key, value in self.options.items():
            if key not in _OPTIONS:
                hint = did_you_mean(key, list(_OPTIONS))
                raise ValueError(f"optimizer.options has no key {shown(key)}{hint}")
            low, high = _OPTIONS[key]
            _check_number(f"optimizer.options.{key}", value, low, high)

    def make(self, total_steps: int) -> optax.GradientTransformation:
        """Returns the optimizer for a run of `total_steps` steps, with schedule and clipping.

        Raises:
            ValueError: for options that the optimizer does not take, or if the run ends before its
                warm-up.
        """
        # optax says which argument is unknown, but not where it came from.
        try:
            optimizer = OPTIMIZERS[self.name](self._rate(total_steps), **self.options)
        except TypeError as error:
            raise ValueError(f"optimizer.options: {error}") from None
        if not self.clip_norm:
            return optimizer

        # Clipping comes first: the moments of Adam then see clipped gradients only.
        return optax.chain(optax.clip_by_global_norm(self.clip_norm), optimizer)

    def _rate(self, total_steps):
        """Returns the learning rate, or its schedule."""
        if self.warmup_steps >= total_steps:
            raise ValueError(
                f"optimizer.warmup_steps must be below {total_steps}, the number of the network's "
                f"updates, got {self.warmup_steps}; lower it, or raise run.steps"
            )

        # Without a warm-up the cosine starts at the peak: its first step would be lost at 0.
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
    """The length of a run, its batches, and when it writes what.

    Attributes:
        steps: number of training steps, K of the curricula.
        batch_size: samples per step, over all devices and processes.
        seed: seed of the initial weights, the order of the data and all noise.
        init: a model to start from, as `cmjax.load` takes it; "" for a new one.
        ema_decays: decays of the moving averages of the parameters; the first average is saved as
            `model`, others as `model_DECAY`.
        accumulate: number of parts that a batch is divided into, to save memory.
        dtype: what the network computes in, one of `DTYPES`; all else is float32.
        label_dropout: fraction of the samples, drawn at each step, that have the network's null
            class in place of their own, so that it can be guided.
        log_every: steps between rows of metrics.
        sample_every: steps between sample pictures, of which the first is drawn after `log_every`
            steps already; 0 for none.
        save_every: steps between checkpoints.
        keep: number of checkpoints to keep, the newest.
        tensorboard: write TensorBoard's event files as well, with the sample pictures (needs
            tensorboardX).

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
    label_dropout: float = 0.0
    log_every: int = 50
    sample_every: int = 500
    save_every: int = 500
    keep: int = 2
    tensorboard: bool = False

    def __post_init__(self):
        _check_types("run", self)

        # Counts and periods; periods are divisors.
        for name in (
            "steps",
            "batch_size",
            "accumulate",
            "log_every",
            "save_every",
            "keep",
        ):
            _check_count(f"run.{name}", getattr(self, name), 1)
        _check_count("run.sample_every", self.sample_every, 0)
        _check_count("run.seed", self.seed, 0, LARGEST_SEED)

        # Each average is saved under its decay; the first is what is sampled.
        for decay in self.ema_decays:
            _check_number("run.ema_decays", decay, 0, 1)
        if not self.ema_decays or len(set(self.ema_decays)) < len(self.ema_decays):
            raise ValueError(
                f"run.ema_decays must be different numbers, at least one, got {self.ema_decays}"
            )

        # Parts of a batch have the same size, so that the mean of their means is the batch's mean.
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"run.accumulate={self.accumulate} does not divide run.batch_size={self.batch_size}"
            )
        _check_choice("run.dtype", self.dtype, DTYPES)
        _check_number("run.label_dropout", self.label_dropout, 0, 1)


def read_section(cls: type[Section], name: str, values: Mapping[str, Any]) -> Section:
    """Returns a section with the values of a file; keys that the file leaves out keep defaults.

    Args:
        cls: class of the section.
        name: name of the section, for error messages.
        values: keys and values, as TOML or JSON gives them.

    Raises:
        ValueError: for an unknown key, or a wrong value; the message names the key.
    """
    names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for key in values:
        if key not in names:
            raise ValueError(f"{name} has no key {shown(key)}{did_you_mean(key, names)}")
    return cls(**values)


def _check_types(name: str, section: Any) -> None:
    """Checks the types of a section's fields.

    Lists become tuples, and numbers of NumPy those of Python, so that the section is what it would
    be if it were read from a file.

    Raises:
        ValueError: for a value of another type; the message names its key.
    """
    hints = get_type_hints(type(section))
    for key, hint in hints.items():
        value = _plain(getattr(section, key))
        if not _has_type(value, hint):
            raise ValueError(f"{name}.{key} must be {_TYPES[hint]}, got {shown(value)}")
        object.__setattr__(section, key, value)


def _plain(value: Any) -> Any:
    """Returns a value of a file or a program in the types of the sections."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (list, tuple)):
        return tuple(_plain(item) for item in value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _has_type(value, hint):
    """Whether a value of a file has a field's type; integers count as numbers, booleans do not."""
    # In Python `True` is an integer.
    if hint is int:
        return is_int(value)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint == tuple[float, ...]:
        return isinstance(value, (list, tuple)) and all(_has_type(v, float) for v in value)
    if hint == dict[str, float]:
        return isinstance(value, dict) and all(_has_type(v, float) for v in value.values())
    return isinstance(value, hint)


def _check_count(name: str, value: int, low: int, high: int = LARGEST) -> None:
    """Raises ValueError unless an integer is from `low` to `high`."""
    if value < low:
        raise ValueError(f"{name} must be at least {low}, got {value:.6g}")
    if value > high:
        raise ValueError(f"{name} must be at most {high}, got {value.bit_length()} bits")


def _check_number(
    name: str, value: float, low: float | None = None, below: float | None = None
) -> None:
    """Raises ValueError unless a number is finite, at least `low` and below `below`, if given."""
    wanted = "finite"
    if low is not None:
        wanted = f"at least {low:g} and finite"
    if below is not None:
        wanted = f"at least {low:g} and below {below:g}"
    if not is_finite(value, low) or (below is not None and value >= below):
        raise ValueError(f"{name} must be {wanted}, got {value}")


def _check_choice(name, value, known):
    """Raises ValueError, with the closest known value, unless `value` is one of them."""
    if value not in known:
        raise ValueError(f"{name} is {shown(value)}{did_you_mean(value, list(known))}")

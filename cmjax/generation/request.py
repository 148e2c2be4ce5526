"""What is asked of a sampler in bulk: levels, classes, seed and dtype, as one value."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from cmjax.model import Model
from cmjax.schedulers.base import Scheduler, SchedulerState

LEVELS = ("num_inference_steps", "timesteps", "sigmas")  # the arguments of `set_timesteps`
MAX_NUM = 2**32  # samples of a request: keys are made of their numbers, which have 32 bits
MAX_SEED = 2**32 - 1  # of 32 bits, too: a larger one would silently repeat


@dataclasses.dataclass(frozen=True)
class Request:
    """Which samples to make; sample number i of a request is the same however it is made.

    A request is checked when it is made, and holds nothing but numbers and strings of Python: it
    can be hashed, compared and written as JSON.

    Attributes:
        num_inference_steps: number of steps. At most one of this and the next two may be given;
            none means one step.
        timesteps: the levels as training times or indices.
        sigmas: the levels as noise levels.
        labels: the classes to make, repeated in turn; None for a model without classes.
        seed: of all randomness, 0 to 2**32 - 1.
        dtype: of the samples, a floating dtype or its name; kept as the name.

    Raises:
        ValueError: naming the field that is out of range.
    """

    num_inference_steps: int | None = None
    timesteps: Sequence[float] | None = None
    sigmas: Sequence[float] | None = None
    labels: Sequence[int] | None = None
    seed: int = 0
    dtype: DTypeLike = "float32"

    def __post_init__(self):
        given = [name for name in LEVELS if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"give at most one of {', '.join(LEVELS)}, got {' and '.join(given)}")
        steps = self.num_inference_steps if given else 1
        if steps is not None:
            steps = as_integer("num_inference_steps", steps, 1, 2**31 - 1)

        # The class is frozen: fields are set past its own guard, this once.
        set_field = object.__setattr__
        set_field(self, "num_inference_steps", steps)
        set_field(self, "timesteps", _levels("timesteps", self.timesteps))
        set_field(self, "sigmas", _levels("sigmas", self.sigmas))
        set_field(self, "labels", _labels(self.labels))
        set_field(self, "seed", as_integer("seed", self.seed, 0, MAX_SEED))
        set_field(self, "dtype", _dtype_name(self.dtype))

    @property
    def schedule(self) -> dict[str, Any]:
        """The one argument of `set_timesteps`, by its name; levels as a list."""
        if self.timesteps is not None:
            return {"timesteps": list(self.timesteps)}
        if self.sigmas is not None:
            return {"sigmas": list(self.sigmas)}
        return {"num_inference_steps": self.num_inference_steps}

    def set_timesteps(self, scheduler: Scheduler) -> SchedulerState:
        """Returns the scheduler's state at the start of a run."""
        return scheduler.set_timesteps(**self.schedule)

    def labels_of(self, indices: np.ndarray | range) -> np.ndarray | None:
        """Returns the classes of samples by their numbers, i32[n]; None without classes."""
        if self.labels is None:
            return None
        return np.asarray(self.labels, np.int32)[np.asarray(indices) % len(self.labels)]

    def check_model(self, model: Model) -> None:
        """Raises ValueError unless the labels are classes of the model."""
        classes = model.num_classes
        if (self.labels is None) != (classes is None):
            raise ValueError(
                "labels must be None for a model without classes, and only then; "
                f"this one has {classes or 'none'}, and labels is {_listed(self.labels)}"
            )
        if classes is not None and max(self.labels or ()) >= classes:
            raise ValueError(
                f"labels must be of the classes 0..{classes - 1}, got {_listed(self.labels)}"
            )

    def to_json(self) -> dict[str, Any]:
        """Returns the request as a JSON object; `from_json` reads it."""
        return {
            "schedule": self.schedule,
            "labels": _listed(self.labels),
            "seed": self.seed,
            "dtype": self.dtype,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Reads what `to_json` returns.

        Raises:
            ValueError: if a field is missing or out of range.
        """
        missing = [name for name in ("schedule", "labels", "seed", "dtype") if name not in values]
        if missing:
            raise ValueError(f"a request has no {missing[0]}")
        return cls(
            **values["schedule"],
            labels=values["labels"],
            seed=values["seed"],
            dtype=values["dtype"],
        )


def as_integer(name: str, value: Any, least: int, most: int) -> int:
    """Returns an integer of Python; raises ValueError for other types and what is out of range."""
    value = _plain(value)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"{name} must be an integer from {least} to {most}, got {value!r}")
    return value


def _listed(values: Sequence | None) -> list | None:
    return None if values is None else list(values)


def _levels(name: str, values: Any) -> tuple[float, ...] | None:
    """Returns levels as numbers of Python; the scheduler, which knows their range, checks that."""
    if values is None:
        return None
    levels = _plain_tuple(name, values)
    for level in levels:
        if not isinstance(level, int | float) or isinstance(level, bool):
            raise ValueError(f"{name} must be a list of numbers, got {list(levels)}")
    return levels


def _labels(values: Any) -> tuple[int, ...] | None:
    """Returns classes as integers of Python."""
    if values is None:
        return None
    labels = _plain_tuple("labels", values)
    for label in labels:
        if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < 2**31:
            raise ValueError(f"labels must be a list of classes, 0 or more, got {list(labels)}")
    return labels


def _plain_tuple(name: str, values: Any) -> tuple[Any, ...]:
    """Returns a sequence or an array of one dimension as numbers of Python."""
    if isinstance(values, str) or np.ndim(values) != 1:
        raise ValueError(f"{name} must be a list of numbers, got {values!r}")
    plain = tuple(_plain(value) for value in values)
    if not plain:
        raise ValueError(f"{name} must not be empty")
    return plain


def _plain(value: Any) -> Any:
    """Returns a scalar of NumPy or JAX as a number of Python, others as they are."""
    return value.item() if hasattr(value, "item") and np.ndim(value) == 0 else value


def _dtype_name(value: Any) -> str:
    try:
        dtype = jnp.dtype(value)
    except TypeError:
        dtype = None
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"dtype must be a floating dtype such as 'float32', got {value!r}")
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ValueError(f"dtype {dtype.name} needs jax.config.update('jax_enable_x64', True)")
    return dtype.name

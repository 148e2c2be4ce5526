"""Which samples to generate: noise levels, classes, seed and dtype, as one value."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import DTypeLike

from cmjax.arrays import floating_dtype
from cmjax.configs import is_finite, shown
from cmjax.guidance.strength import interval_ends
from cmjax.model import Model
from cmjax.sampling_inputs import check_guided
from cmjax.schedulers.base import Scheduler, SchedulerState

LEVELS = ("num_inference_steps", "timesteps", "sigmas")  # the arguments of `set_timesteps`
MAX_SEED = 2**32 - 1  # without x64 JAX drops higher bits: other seeds would repeat samples


@dataclasses.dataclass(frozen=True)
class Request:
    """Which samples to make. Sample i of a request is the same however it is made.

    A request is checked on construction. It holds only Python numbers and strings, so that it can
    be hashed, compared and written as JSON.

    Attributes:
        num_inference_steps: number of steps. At most one of this and the next two may be given;
            with none of them one step is made.
        timesteps: the levels to sample at, as the scheduler's timesteps, descending.
        sigmas: the levels to sample at, as noise levels, descending.
        labels: the classes to make; sample i has class `labels[i % len(labels)]`. None for a model
            without classes.
        seed: the seed of all randomness, 0 to 2**32 - 1.
        dtype: the floating dtype of the samples, or its name; stored as the name.
        guidance: scale of guidance, for a model with a null class or one that takes a scale; 1
            is none, None what the model recommends, or none.
        guidance_interval: the noise levels (low, high) to guide at, or for a model that takes a
            scale the times; None for all, or for those that the model recommends.

    Raises:
        ValueError: if a field is out of range; the message names it.
    """

    num_inference_steps: int | None = None
    timesteps: Sequence[float] | None = None
    sigmas: Sequence[float] | None = None
    labels: Sequence[int] | None = None
    seed: int = 0
    dtype: DTypeLike = "float32"
    guidance: float | None = None
    guidance_interval: Sequence[float] | None = None

    def __post_init__(self):
        # The levels may be given in one way only.
        given = [name for name in LEVELS if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(
                f"give at most one of {', '.join(LEVELS)}, got {' and '.join(given)}"
            )
        steps = self.num_inference_steps if given else 1
        if steps is not None:
            steps = as_integer("num_inference_steps", steps, 1, 2**31 - 1)

        # Fields are replaced by plain Python values. The dataclass is frozen, so that assigning
        # them here needs `object.__setattr__`.
        set_field = object.__setattr__
        set_field(self, "num_inference_steps", steps)
        set_field(self, "timesteps", _levels("timesteps", self.timesteps))
        set_field(self, "sigmas", _levels("sigmas", self.sigmas))
        set_field(self, "labels", _labels(self.labels))
        set_field(self, "seed", as_integer("seed", self.seed, 0, MAX_SEED))
        set_field(self, "dtype", floating_dtype("dtype", self.dtype).name)

        # Checked as the guided network will check them.
        if self.guidance is not None:
            guidance = _plain(self.guidance)
            if not is_finite(guidance):
                raise ValueError(f"guidance must be a finite number, got {shown(guidance)}")
            set_field(self, "guidance", float(guidance))
        if self.guidance_interval is not None:
            ends = interval_ends("guidance_interval", self.guidance_interval)
            if not is_finite(ends[1]):
                raise ValueError(f"guidance_interval must be finite, got {shown(ends)}")
            set_field(self, "guidance_interval", ends)

    @property
    def schedule(self) -> dict[str, Any]:
        """The argument of `scheduler.set_timesteps` as a dict of one item, levels as a list."""
        if self.timesteps is not None:
            return {"timesteps": list(self.timesteps)}
        if self.sigmas is not None:
            return {"sigmas": list(self.sigmas)}
        return {"num_inference_steps": self.num_inference_steps}

    def set_timesteps(self, scheduler: Scheduler) -> SchedulerState:
        """Returns the state with which the scheduler samples at the levels of this request."""
        return scheduler.set_timesteps(**self.schedule)

    def labels_of(self, indices: np.ndarray | range) -> np.ndarray | None:
        """Returns the classes of the samples numbered `indices`, i32[n]; None without classes."""
        if self.labels is None:
            return None

        # By the sample's number, so that it does not matter how many are made at a time.
        return np.asarray(self.labels, np.int32)[np.asarray(indices) % len(self.labels)]

    def check_model(self, model: Model) -> None:
        """Raises ValueError unless the model has the classes, and can be guided if it is to be."""
        classes = model.num_classes

        # A class-conditional model needs labels; an unconditional one takes none.
        if (self.labels is None) != (classes is None):
            raise ValueError(
                "labels must be None for a model without classes, and only then; "
                f"this one has {classes or 'none'}, and labels is {_listed(self.labels)}"
            )
        if classes is not None and max(self.labels or ()) >= classes:
            raise ValueError(
                f"labels must be classes from 0 to {classes - 1}, got {_listed(self.labels)}"
            )

        # An error names what is missing: a null class, or a solver.
        guided = model.guided(self.guidance, self.guidance_interval)
        state = self.set_timesteps(model.scheduler)
        check_guided(guided, model.scheduler, state.num_steps)

    def to_json(self) -> dict[str, Any]:
        """Returns the request as a JSON object; `from_json` reads it."""
        values = {
            "schedule": self.schedule,
            "labels": _listed(self.labels),
            "seed": self.seed,
            "dtype": self.dtype,  # a name: JSON has no dtypes
        }

        # Left out where none is asked for, as in folders from before there was guidance.
        if self.guidance is not None:
            values["guidance"] = self.guidance
            values["guidance_interval"] = _listed(self.guidance_interval)
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Builds the request that `to_json` wrote.

        Args:
            values: a JSON object; keys that are not of a request are ignored.

        Raises:
            ValueError: if a field is missing or out of range.
        """
        missing = [
            name for name in ("schedule", "labels", "seed", "dtype") if name not in values
        ]
        if missing:
            raise ValueError(f"the request has no {missing[0]!r}")
        schedule = values["schedule"]
        if not isinstance(schedule, Mapping) or not schedule.keys() <= set(LEVELS):
            raise ValueError(f"the request has the schedule {shown(schedule)}")
        return cls(
            **schedule,
            labels=values["labels"],
            seed=values["seed"],
            dtype=values["dtype"],
            guidance=values.get("guidance"),
            guidance_interval=values.get("guidance_interval"),
        )


def as_integer(name: str, value: Any, least: int, most: int) -> int:
    """Returns `value` as a Python integer, raising ValueError unless it is one in range.

    Args:
        name: the argument's name, for the error.
        value: an integer of Python, NumPy or JAX.
        least: lowest value allowed.
        most: highest value allowed.
    """
    value = _plain(value)

    # A boolean is an `int` in Python, but num=True is a mistake.
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(
            f"{name} must be an integer from {least} to {most}, got {shown(value)}"
        )
    return value


def _listed(values: Sequence | None) -> list | None:
    return None if values is None else list(values)


def _levels(name: str, values: Any) -> tuple[float, ...] | None:
    """Returns levels as Python numbers. Their range is checked by the scheduler, which knows it."""
    if values is None:
        return None
    levels = _plain_tuple(name, values)
    for level in levels:
        if not is_finite(level):
            raise ValueError(
                f"{name} must be a list of finite numbers, got {shown(levels)}"
            )
    return levels


def _labels(values: Any) -> tuple[int, ...] | None:
    """Returns classes as Python integers. `check_model` compares them with those of a model."""
    if values is None:
        return None
    labels = _plain_tuple("labels", values)
    for label in labels:
        if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < 2**31:
            raise ValueError(
                f"labels must be a list of classes, 0 or more, got {shown(labels)}"
            )
    return labels


def _plain_tuple(name: str, values: Any) -> tuple[Any, ...]:
    """Returns a sequence or an array of one dimension as a tuple of Python numbers."""
    # A string is a sequence, too: "123" must not become three classes.
    if isinstance(values, str) or np.ndim(values) != 1:
        raise ValueError(f"{name} must be a list of numbers, got {shown(values)}")
    plain = tuple(_plain(value) for value in values)
    if not plain:
        raise ValueError(f"{name} must not be empty")
    return plain


def _plain(value: Any) -> Any:
    """Returns a scalar of NumPy or JAX as a Python number, and anything else unchanged."""
    # A traced value is not known, and a key is no number.
    if isinstance(value, Tracer):
        return value
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return value
    return value.item() if hasattr(value, "item") and np.ndim(value) == 0 else value

"""The contract between a sampling loop and a sampler: `Scheduler`, its state, and its step."""

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Generic, NamedTuple, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from cmjax.arrays import ApplyFn, check_shapes, combine, concrete
from cmjax.configs import did_you_mean, from_json, is_finite, is_int
from cmjax.random import level_noise, sample_keys


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SchedulerState:
    """The noise levels of one sampling run, and how far it has come.

    N is the number of network calls.

    Attributes:
        sigmas: f32[N+1], noise level of each call, then the level that sampling ends at.
        timesteps: f32[N], what the network is told at each call.
        step_index: i32[], the next call.
        memory: what the sampler remembers of earlier calls; () for samplers that forget.
    """

    sigmas: jax.Array
    timesteps: jax.Array
    step_index: jax.Array
    memory: Any = ()

    @property
    def num_steps(self) -> int:
        """N, the number of network calls; static."""
        return self.timesteps.shape[-1]

    @property
    def sigma(self) -> jax.Array:
        """f32[]: the noise level of the next call."""
        return self.sigmas[self.step_index]

    @property
    def next_sigma(self) -> jax.Array:
        """f32[]: the noise level that the next call arrives at."""
        return self.sigmas[self.step_index + 1]

    def replace(self, **changes: Any) -> Self:
        """Returns a copy with the named fields changed."""
        return dataclasses.replace(self, **changes)


class StepOutput(NamedTuple):
    """What one step gives.

    Attributes:
        prev_sample: `[B, ...]`, the sample at the next noise level.
        denoised: `[B, ...]`, the estimate of x0 that it was made from.
    """

    prev_sample: jax.Array
    denoised: jax.Array


class FileOption(NamedTuple):
    """An option of diffusers' `scheduler_config.json` files that changes nothing here.

    Attributes:
        default: what `to_config` writes.
        values: other values that `from_config` reads as well.
        numbers: or (low, high) of the numbers that it reads.
        hint: ends the error for what it does not read: what to do instead.
    """

    default: Any
    values: tuple[Any, ...] = ()
    numbers: tuple[float, float] | None = None
    hint: str = ""

    def check(self, name: str, value: Any) -> None:
        """Raises ValueError, naming the option, for a value that cannot be read."""
        if self.numbers is not None:
            low, high = self.numbers
            if not is_finite(value) or not low <= value <= high:
                raise ValueError(f"{name} must be a number from {low:g} to {high:g}, got {value!r}")
            return
        known = [(type(known), known) for known in (self.default, *self.values)]
        if (type(value), value) not in known:  # with the type, since 0 equals False
            if self.hint:
                raise ValueError(f"{name}={value!r} is not supported; {self.hint}")
            allowed = " or ".join(repr(known) for _, known in known)
            raise ValueError(f"{name} must be {allowed}, got {value!r}")


State = TypeVar("State", bound=SchedulerState)
Constraint = Callable[[jax.Array], jax.Array]


class Scheduler(abc.ABC, Generic[State]):
    """A sampler: frozen, hashable configuration with pure methods over a `SchedulerState`.

    A sampler of a new kind is a frozen dataclass that inherits from this class, registered with
    `jax.tree_util.register_static`. It writes the abstract methods; the rest is shared. Most
    samplers inherit from `TableScheduler`, which has written them all, and fill in a table.

    The network is called once per step, so a solver that needs two evaluations lists both levels in
    `state.sigmas`, and keeps what it must remember between them in `state.memory`, which `prepare`
    allocates.
    """

    num_times: ClassVar[int] = 1  # how many times the network is told; see `time_inputs`
    solves_ode: ClassVar[bool] = False  # whether it takes a denoiser, not a consistency function

    _diffusers_defaults: ClassVar[Mapping[str, Any]] = {}  # of fields whose default differs there
    _file_options: ClassVar[Mapping[str, FileOption]] = {}

    @property
    @abc.abstractmethod
    def init_noise_sigma(self) -> float:
        """Standard deviation of the noise at the highest level."""

    @abc.abstractmethod
    def set_timesteps(
        self, num_inference_steps: int | None = None, *, timesteps: Any = None, sigmas: Any = None
    ) -> State:
        """Returns the state at the start of a run, from exactly one of its arguments."""

    @abc.abstractmethod
    def scale_input(self, state: State, sample: jax.Array) -> jax.Array:
        """Returns what the network sees of `sample` at the state's level."""

    @abc.abstractmethod
    def denoise(self, state: State, model_output: jax.Array, sample: jax.Array) -> jax.Array:
        """Returns the x0 estimate that `model_output` stands for."""

    @abc.abstractmethod
    def advance(
        self, state: State, sample: jax.Array, denoised: jax.Array, noise: jax.Array
    ) -> tuple[State, jax.Array]:
        """Moves from `sample` to the next level, given the x0 estimate and normal noise."""

    @abc.abstractmethod
    def add_noise(self, state: State, original: jax.Array, noise: jax.Array) -> jax.Array:
        """Returns `original` noised to the state's level."""

    def init_sample(self, state: State, noise: jax.Array) -> jax.Array:
        """Returns the sample at the state's first level, from standard normal noise `[B, ...]`."""
        del state
        return combine((self.init_noise_sigma, noise))

    def prepare(self, state: State, sample: jax.Array) -> State:
        """Allocates `state.memory` for samples of this shape, before the first step."""
        del sample
        return state

    def time_inputs(self, state: State) -> tuple[jax.Array, ...]:
        """Returns the times, f32[] each, that the network is told: one, or two for flow maps."""
        return (state.timesteps[state.step_index],)

    def init(
        self, key: jax.Array, state: State, shape: Sequence[int], dtype: DTypeLike = jnp.float32
    ) -> tuple[State, jax.Array]:
        """Draws the first sample, and allocates what the sampler remembers.

        Args:
            key: one key, or one per sample `[B]`.
            state: from `set_timesteps`.
            shape: of the samples, `(B, ...)`.
            dtype: of the samples.

        Returns:
            The state, and the sample `dtype[shape]` at its first level.

        Raises:
            ValueError: for a wrong key or shape.
        """
        check_sample_shape(shape)
        keys = sample_keys(key, shape[0])
        sample = self.init_sample(state, level_noise(keys, 0, shape, dtype))
        return self.prepare(state, sample), sample

    def predict(
        self, apply_fn: ApplyFn, params: Any, state: State, sample: jax.Array, **cond: Any
    ) -> jax.Array:
        """Calls the network on the scaled sample, with the time or times that it is told.

        Args:
            apply_fn: `(params, x, t, **cond) -> model_output`.
            params: of the network.
            state: the run.
            sample: the sample at the state's level, `[B, ...]`.
            **cond: per-sample conditioning, handed to `apply_fn`.

        Returns:
            The model output, `[B, ...]`.

        Raises:
            ValueError: if the network returns something else than an array.
        """
        times = [jnp.broadcast_to(time, sample.shape[:1]) for time in self.time_inputs(state)]
        model_output = apply_fn(params, self.scale_input(state, sample), *times, **cond)
        if not hasattr(model_output, "shape"):
            kind = type(model_output).__name__
            raise ValueError(f"apply_fn must return one array, the model output, got a {kind}")
        return model_output

    def step(
        self,
        key: jax.Array,
        state: State,
        model_output: jax.Array,
        sample: jax.Array,
        *,
        constrain: Constraint | None = None,
    ) -> tuple[State, StepOutput]:
        """Takes one step: `denoise`, then `advance` with noise drawn from the key and the level.

        Args:
            key: one key, or one per sample `[B]`; the same key at every step, as in `cmjax.sample`.
            state: from `init` or the step before.
            model_output: what the network returned, `[B, ...]`.
            sample: the sample at the state's level, `[B, ...]`; its dtype is kept.
            constrain: x0 -> x0, applied to the x0 estimate (editing).

        Returns:
            The state of the next step, and `StepOutput(prev_sample, denoised)`.

        Raises:
            ValueError: for a wrong key, differing shapes, or a run that has already ended.
        """
        check_not_finished(state)
        denoised = self.denoise(state, model_output, sample)
        if constrain is not None:
            estimate = denoised
            denoised = constrain(estimate)
            check_shapes(constrained=denoised, denoised=estimate)

        keys = sample_keys(key, sample.shape[0])
        noise = level_noise(keys, state.step_index + 1, sample.shape, sample.dtype)
        state, prev_sample = self.advance(state, sample, denoised, noise)
        return state, StepOutput(prev_sample, denoised)

    def to_config(self) -> dict[str, Any]:
        """Returns the configuration as a JSON-able dict, in the layout of diffusers."""
        fields = dataclasses.asdict(self)  # type: ignore[call-overload]
        unused = {name: option.default for name, option in self._file_options.items()}
        return {"_class_name": type(self).__name__, **fields, **unused}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Builds the scheduler from `to_config()` or from diffusers' `scheduler_config.json`.

        Args:
            config: options by name; those whose names begin with `_` are diffusers' own notes.

        Raises:
            ValueError: for an option that is not known, or a value out of its domain.
        """
        fields = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
        known = [*fields, *cls._file_options]
        values = dict(cls._diffusers_defaults)
        for name, value in config.items():
            if name.startswith("_"):
                continue
            if name not in known:
                raise ValueError(
                    f"{cls.__name__} has no option {name!r}{did_you_mean(name, known)}"
                )
            if name in cls._file_options:
                cls._file_options[name].check(name, value)
            else:
                values[name] = value
        return from_json(cls, values)


def check_sample_shape(shape: Sequence[int]) -> None:
    """Raises ValueError unless `shape` is `(B, ...)` with sizes of at least 1."""
    if not shape or not all(is_int(size, 1) for size in shape):
        raise ValueError(
            f"shape must be (B, ...) with sizes of at least 1, got {tuple(shape)}; "
            "a single sample is (1, ...)"
        )


def check_not_finished(state: SchedulerState) -> None:
    """Raises ValueError if the run is known to have taken all its steps."""
    index = concrete(state.step_index)
    if index is not None and np.any(index >= state.num_steps):
        raise ValueError(
            f"state.step_index is {index} but the run has {state.num_steps} steps; "
            "call set_timesteps again"
        )

"""The contract between a sampling loop and a sampler: `Scheduler`, `SchedulerState`, `StepOutput`."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Protocol, Self, TypeVar

import jax
import numpy as np

from cmjax.arrays import combine, concrete
from cmjax.configs import from_json
from cmjax.random import level_noise, sample_keys


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SchedulerState:
    """The noise levels of one sampling run and how far it has come. N is the number of network calls."""

    sigmas: jax.Array  # f32[N+1]: noise level of each step, then the level that sampling ends at
    timesteps: jax.Array  # f32[N]: what the network is conditioned on
    step_index: jax.Array  # i32[]: next step to take
    history: Any = ()  # what a solver remembers of earlier steps; () for samplers that forget

    @property
    def num_steps(self) -> int:
        """N, the number of network calls; static."""
        return self.timesteps.shape[-1]

    @property
    def sigma(self) -> jax.Array:
        """f32[]: the noise level of the next step."""
        return self.sigmas[self.step_index]

    @property
    def next_sigma(self) -> jax.Array:
        """f32[]: the noise level that the next step arrives at."""
        return self.sigmas[self.step_index + 1]

    def replace(self, **changes: Any) -> Self:
        """Returns a copy with the named fields changed."""
        return dataclasses.replace(self, **changes)


class StepOutput(NamedTuple):
    """What one step gives: the sample at the next level, and the x0 estimate it was made from."""

    prev_sample: jax.Array  # [B, ...]
    denoised: jax.Array  # [B, ...]


State = TypeVar("State", bound=SchedulerState)


class Scheduler(Protocol[State]):
    """A sampler: frozen, hashable configuration with pure methods over a `SchedulerState`.

    A sampler of a new kind is a frozen dataclass that inherits from this class, registered with
    `jax.tree_util.register_static`. It writes `init_noise_sigma`, `set_timesteps`, `scale_input`,
    `denoise`, `advance` and `add_noise`; the rest is shared. The network is called once per step,
    so a solver that needs two evaluations lists both levels in `state.sigmas` and keeps what it
    must remember between them in `state.history`, which `prepare` allocates.
    """

    _diffusers_defaults: ClassVar[
        Mapping[str, Any]
    ] = {}  # for fields that a diffusers config lacks

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the noise at the highest level."""
        ...

    def set_timesteps(
        self, num_inference_steps: int | None = None, *, timesteps: Any = None, sigmas: Any = None
    ) -> State:
        """Returns the state at the start of a run, from exactly one of its arguments."""
        ...

    def scale_input(self, state: State, sample: jax.Array) -> jax.Array:
        """Returns what the network sees of `sample` at the state's level."""
        ...

    def denoise(self, state: State, model_output: jax.Array, sample: jax.Array) -> jax.Array:
        """Returns the x0 estimate that `model_output` stands for."""
        ...

    def advance(
        self, state: State, sample: jax.Array, denoised: jax.Array, noise: jax.Array
    ) -> tuple[State, jax.Array]:
        """Moves from `sample` to the next level, given the x0 estimate and standard normal noise."""
        ...

    def add_noise(self, state: State, original: jax.Array, noise: jax.Array) -> jax.Array:
        """Returns `original` noised to the state's level."""
        ...

    def init_sample(self, state: State, noise: jax.Array) -> jax.Array:
        """Returns the sample at the state's first level, from standard normal noise `[B, ...]`."""
        del state
        return combine((self.init_noise_sigma, noise))

    def prepare(self, state: State, sample: jax.Array) -> State:
        """Allocates `state.history` for samples of this shape; called once, before the first step."""
        del sample
        return state

    def time_inputs(self, state: State) -> tuple[jax.Array, ...]:
        """Returns the times, f32[] each, that the network is told: one, or two for flow maps."""
        return (state.timesteps[state.step_index],)

    def step(
        self, key: jax.Array, state: State, model_output: jax.Array, sample: jax.Array
    ) -> tuple[State, StepOutput]:
        """Takes one step: `denoise`, then `advance` with noise drawn from the key and the level.

        Args:
            key: one key, or one per sample `[B]`; the same key at every step, as in `cmjax.sample`.
            state: from `set_timesteps` or the step before.
            model_output: what the network returned, `[B, ...]`.
            sample: the sample at the state's level, `[B, ...]`; its dtype is kept.

        Returns:
            The state of the next step, and `StepOutput(prev_sample, denoised)`.

        Raises:
            ValueError: for a wrong key, differing shapes, or a run that has already ended.
        """
        check_not_finished(state)
        denoised = self.denoise(state, model_output, sample)
        keys = sample_keys(key, sample.shape[0])
        noise = level_noise(keys, state.step_index + 1, sample.shape, sample.dtype)
        state, prev_sample = self.advance(state, sample, denoised, noise)
        return state, StepOutput(prev_sample, denoised)

    def to_config(self) -> dict[str, Any]:
        """Returns the configuration as a JSON-able dict, in the layout of diffusers."""
        return {"_class_name": type(self).__name__, **dataclasses.asdict(self)}  # type: ignore[call-overload]

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Builds the scheduler from `to_config()` or from diffusers' `scheduler_config.json`.

        Raises:
            ValueError: for a key that the scheduler does not have; keys in `_` are diffusers' own notes.
        """
        values = {name: value for name, value in config.items() if not name.startswith("_")}
        return from_json(cls, {**cls._diffusers_defaults, **values})


def check_not_finished(state: SchedulerState) -> None:
    """Raises ValueError if the run is known to have taken all its steps."""
    index = concrete(state.step_index)
    if index is not None and np.any(index >= state.num_steps):
        raise ValueError(
            f"state.step_index is {index} but the run has {state.num_steps} steps; call set_timesteps again"
        )

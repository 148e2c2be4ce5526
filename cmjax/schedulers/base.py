"""The contract between the sampling loop and a sampler: `Scheduler`, its state and its step."""

import abc
import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, Self, TypeVar

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from cmjax.arrays import ApplyFn, as_floats, as_samples, floating_dtype, scaled
from cmjax.configs import shown
from cmjax.former_names import OF_OUTPUTS, OF_STATES, with_way_out
from cmjax.meshes import sharded_like
from cmjax.networks import call_network, check_network, check_output
from cmjax.random import level_noise, sample_keys
from cmjax.schedulers.checks import (
    apply_constraint,
    check_constraint,
    check_levels,
    check_not_finished,
    check_sample_shape,
)
from cmjax.schedulers.config_files import Configured
from cmjax.schedulers.facts import Facts


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SchedulerState:
    """The noise levels of one sampling run, and the step that it has reached.

    N is the number of network calls.

    Attributes:
        sigmas: f32[N+1], noise level of each call, then the level where sampling ends.
        timesteps: f32[N], the network's time at each call.
        step_index: i32[], index of the next call.
        memory: arrays that a multistep sampler keeps of earlier calls; () if it keeps none.
    """

    # All fields are leaves of the pytree, so one compiled step serves every step of every run.
    sigmas: jax.Array
    timesteps: jax.Array
    step_index: jax.Array
    memory: Any = ()

    if not TYPE_CHECKING:
        __getattr__ = with_way_out(OF_STATES)

    @property
    def num_steps(self) -> int:
        """N, the number of network calls; static."""
        # The last axis, since a vmapped state has others in front.
        return self.timesteps.shape[-1]

    @property
    def sigma(self) -> jax.Array:
        """f32[]: the noise level of the next call."""
        return self.sigmas[self.step_index]

    @property
    def next_sigma(self) -> jax.Array:
        """f32[]: the noise level at which the next call arrives."""
        return self.sigmas[self.step_index + 1]

    def replace(self, **changes: Any) -> Self:
        """Returns a copy with the named fields changed."""
        return dataclasses.replace(self, **changes)


class StepOutput(NamedTuple):
    """The result of one step.

    Attributes:
        prev_sample: `[B, ...]`, the sample at the next noise level, under diffusers' name.
        denoised: `[B, ...]`, the x0 estimate that the step used.
    """

    prev_sample: jax.Array
    denoised: jax.Array

    if not TYPE_CHECKING:
        __getattr__ = with_way_out(OF_OUTPUTS)


State = TypeVar("State", bound=SchedulerState)
Constraint = Callable[[jax.Array], jax.Array]  # x0 -> x0, both [B, ...]


class Scheduler(Configured, abc.ABC, Generic[State]):
    """A sampler: frozen, hashable configuration with pure methods over a `SchedulerState`.

    A new kind of sampler is a frozen dataclass that inherits from this class, is registered with
    `jax.tree_util.register_static`, and implements the abstract methods. Most samplers inherit from
    `TableScheduler`, which implements them all, and fill in a table.

    The network is called once per step. A solver that needs two evaluations lists both levels in
    `state.sigmas`, and keeps what it must remember between them in `state.memory`, which `prepare`
    allocates.
    """

    # The kind of network that it samples: the number of its times (see `time_inputs`), and whether
    # it is a denoiser, for a solver of an ODE or SDE, instead of a consistency function.
    num_times: ClassVar[int] = 1
    solves_ode: ClassVar[bool] = False

    # What the table in docs/samplers.md says of it.
    facts: ClassVar[Facts] = Facts()

    @property
    @abc.abstractmethod
    def init_noise_sigma(self) -> float:
        """Standard deviation of the noise at the highest level."""

    @abc.abstractmethod
    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        *,
        timesteps: Any = None,
        sigmas: Any = None,
    ) -> State:
        """Returns the state at the start of a run, from exactly one of its arguments."""

    @abc.abstractmethod
    def scale_input(self, state: State, sample: jax.Array) -> jax.Array:
        """Returns what the network sees of `sample` at the state's level."""

    @abc.abstractmethod
    def denoise(
        self, state: State, model_output: jax.Array, sample: jax.Array
    ) -> jax.Array:
        """Returns the x0 estimate that `model_output` implies."""

    @abc.abstractmethod
    def advance(
        self, state: State, sample: jax.Array, denoised: jax.Array, noise: jax.Array
    ) -> tuple[State, jax.Array]:
        """Moves from `sample` to the next level, given the x0 estimate and normal noise."""

    @abc.abstractmethod
    def add_noise(self, state: State, original: jax.Array, noise: jax.Array) -> jax.Array:
        """Returns `original` with noise added, at the state's level."""

    def advance_constrained(
        self,
        constrain: Constraint,
        state: State,
        sample: jax.Array,
        denoised: jax.Array,
        noise: jax.Array,
    ) -> tuple[State, StepOutput]:
        """Advances under a constraint: by default with the x0 estimate that it allows.

        `denoised` may have more digits than the sample. The constraint gets it in the sample's
        dtype; where it leaves x0 as it is, the step takes all digits.
        """
        rounded = denoised.astype(sample.dtype)
        allowed = apply_constraint(constrain, rounded)
        taken = allowed
        if denoised.dtype != rounded.dtype:
            taken = jnp.where(allowed == rounded, denoised, allowed.astype(denoised.dtype))
        state, prev_sample = self.advance(state, sample, taken, noise)
        return state, StepOutput(prev_sample, allowed)

    def step_estimate(
        self, state: State, model_output: jax.Array, sample: jax.Array
    ) -> jax.Array:
        """Returns the x0 estimate that `step` advances by: that of `denoise`, by default.

        A sampler may return it in a wider dtype than the samples', if its `advance` takes that.
        """
        return self.denoise(state, model_output, sample)

    def step_noise(
        self, state: State, model_output: jax.Array, noise: jax.Array
    ) -> jax.Array:
        """Returns the noise that `advance` takes, `[B, ...]`, from standard normal `noise`.

        By default this is `noise` itself. Samplers whose network says how much noise a step adds
        scale it.
        """
        del state, model_output
        return noise

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape of the model output for samples of a shape: the same by default."""
        return shape

    def first_scale(self, state: State) -> Any:
        """Returns the standard deviation of the first sample, f32[] or a number."""
        del state
        return self.init_noise_sigma

    def init_sample(self, state: State, noise: jax.Array) -> jax.Array:
        """Returns the sample at the state's first level, from standard normal noise `[B, ...]`.

        Raises:
            ValueError: if the state is not this scheduler's, or the noise no floats.
        """
        self.check_state(state)
        return scaled(self.first_scale(state), as_floats("noise", noise))

    def check_state(self, state: Any) -> None:
        """Raises ValueError for what is not a state of this scheduler."""
        if not isinstance(state, SchedulerState):
            raise ValueError(
                "state must be what set_timesteps returns, "
                f"got {shown(state)}; begin with scheduler.set_timesteps(...)"
            )
        check_levels(state, "sigmas", state.sigmas)

    def prepare(self, state: State, sample: jax.Array) -> State:
        """Allocates `state.memory` for samples of this shape, before the first step."""
        del sample
        return state

    def time_inputs(self, state: State) -> tuple[jax.Array, ...]:
        """Returns the network's time inputs, f32[] each: one, or two for flow maps."""
        return (state.timesteps[state.step_index],)

    def init(
        self,
        key: jax.Array,
        state: State,
        shape: Sequence[int],
        dtype: DTypeLike = jnp.float32,
    ) -> tuple[State, jax.Array]:
        """Draws the first sample, and allocates the sampler's memory.

        Args:
            key: one key, or one per sample `[B]`.
            state: from `set_timesteps`.
            shape: of the samples, `(B, ...)`.
            dtype: of the samples.

        Returns:
            The state, and the sample `dtype[shape]` at its first level.

        Raises:
            ValueError: for a wrong key, state, shape or dtype.
        """
        self.check_state(state)
        shape = check_sample_shape(shape)
        dtype = floating_dtype("dtype", dtype)
        keys = sample_keys(key, shape[0])

        # The noise of level 0. The noise of level i + 1 is that of step i, which arrives there.
        sample = self.init_sample(state, level_noise(keys, 0, shape, dtype))
        return self.prepare(state, sample), sample

    def predict(
        self,
        apply_fn: ApplyFn,
        params: Any,
        state: State,
        sample: jax.Array,
        /,
        **cond: Any,
    ) -> jax.Array:
        """Calls the network on the scaled sample, with its time or times.

        Args:
            apply_fn: `(params, x, t, **cond) -> model_output`.
            params: of the network.
            state: the run.
            sample: the sample at the state's level, `[B, ...]`.
            **cond: per-sample conditioning, passed to `apply_fn`.

        Returns:
            The model output, `[B, ...]`.

        Raises:
            ValueError: for arguments of the wrong kind or shape, or a network that cannot be called
                with them or returns anything but floats in the shape of the sample.
        """
        check_network(apply_fn)
        self.check_state(state)
        sample = as_samples("sample", sample)
        network_input = self.scale_input(state, sample)

        # Networks take one time per sample, f32[B], divided over devices like the samples.
        times = []
        for time in self.time_inputs(state):
            per_sample = jnp.broadcast_to(time, sample.shape[:1]).astype(jnp.float32)
            times.append(sharded_like(per_sample, sample))
        expected = self.output_shape(sample.shape)
        return call_network(
            apply_fn,
            params,
            network_input,
            tuple(times),
            cond,
            output_shape=expected,
        )

    def step(
        self,
        key: jax.Array,
        state: State,
        model_output: jax.Array,
        sample: jax.Array,
        *,
        constrain: Constraint | None = None,
    ) -> tuple[State, StepOutput]:
        """Takes one step: `denoise`, then `advance` with noise that the key and level determine.

        The x0 estimate of samples in half precision is rounded only where it is returned.

        Args:
            key: one key, or one per sample `[B]`; the same key at every step, as in `cmjax.sample`.
            state: from `init` or the step before.
            model_output: what the network returned, `[B, ...]`.
            sample: the sample at the state's level, `[B, ...]`; its dtype is kept.
            constrain: x0 -> x0, applied to the x0 estimate (see `cmjax.constraints`).

        Returns:
            The state of the next step, and `StepOutput(prev_sample, denoised)`.

        Raises:
            ValueError: for a wrong key or state, samples that are no floats, differing shapes, or a
                run that has already ended.
        """
        self.check_state(state)
        check_not_finished(state)
        sample = as_samples("sample", sample)
        model_output = as_floats("model_output", model_output)
        check_output(model_output, sample, self.output_shape(sample.shape))
        check_constraint(constrain)

        # The x0 estimate, `[B, ...]`.
        denoised = self.step_estimate(state, model_output, sample)

        # The step arrives at level step_index + 1, with that level's noise.
        keys = sample_keys(key, sample.shape[0])
        noise = level_noise(keys, state.step_index + 1, sample.shape, sample.dtype)
        noise = self.step_noise(state, model_output, noise)
        if constrain is not None:
            return self.advance_constrained(constrain, state, sample, denoised, noise)
        state, prev_sample = self.advance(state, sample, denoised, noise)
        return state, StepOutput(prev_sample, denoised.astype(sample.dtype))

"""Samplers as tables: every step is a weighted sum of a few known arrays.

Every model adds noise to data along a path `x = alpha x0 + sigma z`. Every network gives an x0
estimate, `x0 = c_skip x + c_out F(c_in x, t)`, and with it the noise, `eps = (x - alpha x0) /
sigma`. Every step is a weighted sum of these, of fresh noise, and of arrays kept from earlier
calls. So a sampler is a table with named columns (`Weights`) and a row per network call, as an ODE
solver is a Butcher tableau. One `denoise` and one `advance` read it.
"""

import abc
import contextlib
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from cmjax.arrays import (
    as_floats,
    at_least_float32,
    check_shapes,
    scaled,
    weighted_sum,
)
from cmjax.configs import check_options
from cmjax.networks import check_output
from cmjax.parametrization import Parametrization, Scalings
from cmjax.schedulers.base import Scheduler, SchedulerState
from cmjax.schedulers.checks import check_maker, check_not_finished
from cmjax.schedulers.compiled_run import compiled_run
from cmjax.schedulers.field_docs import inherit_field_docs
from cmjax.schedulers.levels import Levels, exactly_one
from cmjax.schedulers.weights import Memory, Weights, check_columns, remember
from cmjax.tracing import hashable, is_tracing


@inherit_field_docs
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TableState(SchedulerState):
    """The table of a run, a row per network call, and the row that it has reached.

    Attributes:
        memory: arrays kept from earlier calls, a `Memory`; empty before `prepare`.
        alphas: f32[N+1], signal level of each call, then the level where sampling ends.
        scalings: the columns c_in, c_skip and c_out, f32[N] each.
        weights: the columns of the step, f32[N] each.
        scheduler: the scheduler that made it; static.
    """

    alphas: jax.Array
    scalings: Scalings
    weights: Weights
    scheduler: "TableScheduler" = dataclasses.field(metadata={"static": True})

    @property
    def alpha(self) -> jax.Array:
        """f32[]: the signal level of the next call."""
        return self.alphas[self.step_index]


@dataclasses.dataclass(frozen=True)
class TableScheduler(Scheduler[TableState]):
    """A sampler that is a table.

    Subclasses define:

    * `parametrization`: the noise path, time and scalings of the network;
    * `sigma_range`: the noise levels that it knows;
    * `levels`: the noise levels of a run;
    * `weights`: the weights of each step;
    * `calls`, if the network is called at other levels than these: those levels;
    * `bound`, if it has options that bound the x0 estimate;
    * `call_weights`, if the size of a step depends on what it weighs.

    They are frozen dataclasses, and declare valid values of their fields in `_domains` (see
    `cmjax.configs.check_options`).
    """

    def __post_init__(self):
        check_options(self)

    @property
    @abc.abstractmethod
    def parametrization(self) -> Parametrization:
        """The noise path, time and scalings of the network."""

    @property
    @abc.abstractmethod
    def sigma_range(self) -> tuple[float, float]:
        """The lowest and highest ratio sigma / alpha that the network knows."""

    @abc.abstractmethod
    def levels(self, name: str, value: Any) -> Levels:
        """Returns the noise levels of a run.

        Args:
            name: which argument of `set_timesteps` was given.
            value: its value.

        Raises:
            ValueError: for a value that the sampler cannot use.
        """

    @abc.abstractmethod
    def weights(self, levels: Levels) -> Weights:
        """Returns the table of a run over `levels`, a row per network call."""

    def calls(self, levels: Levels) -> Levels:
        """Returns the levels at which the network is called; by default `levels` themselves."""
        return levels

    def bound(self, denoised: jax.Array) -> jax.Array:
        """Returns the x0 estimate, clipped or thresholded in schedulers with such options."""
        return denoised

    def bound_last(self, denoised: jax.Array) -> jax.Array:
        """Returns the x0 estimate as `advance` weighs it, after eps has been computed from it."""
        # DDIM bounds x0 here by default, and so computes eps from the estimate without bounds.
        return denoised

    def call_weights(self, state: TableState, row: Weights, arrays: Weights) -> Weights:
        """Returns the weights of a call, f32[] or f32[B] each: by default its row of the table.

        `arrays`, in the same structure, are what they weigh, `[B, ...]` each.
        """
        del state, arrays
        return row

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        *,
        timesteps: Any = None,
        sigmas: Any = None,
    ) -> TableState:
        """Returns the state at the start of a run; give exactly one argument.

        The docstring of each scheduler's class says which values each argument takes.

        Args:
            num_inference_steps: number of steps, on the scheduler's own grid of levels.
            timesteps: or the levels as the scheduler's own timesteps (training indices, times or
                angles; its docstring says which), in strictly descending order.
            sigmas: or the noise levels, in strictly descending order.

        Returns:
            A state with `sigmas` f32[N+1], `timesteps` f32[N] and `step_index` 0. Arrays may be
            traced; their values are then not checked.

        Raises:
            ValueError: if not exactly one argument is given, or for values that break these rules.
        """
        name, value = exactly_one(
            num_inference_steps=num_inference_steps, timesteps=timesteps, sigmas=sigmas
        )

        # One program: eagerly, each of some fifty operations would be compiled on its own.
        if not is_tracing() and hashable(self):
            # An error is raised below, where no notes of JAX come with it.
            with contextlib.suppress(TypeError, ValueError):
                return compiled_run(self, name, value)
        return self.run(name, value)

    def run(self, name: str, value: Any) -> TableState:
        """Returns the state of `set_timesteps`, an operation at a time unless it is traced."""
        # Steps go from level to level; the network is called at the levels that `calls` returns.
        # The table has a row for each call, two a step for solvers with two calls.
        levels = self.levels(name, value)
        return self._state(self.calls(levels), self.weights(levels))

    def _state(self, calls: Levels, weights: Weights) -> TableState:
        """The state at the start of a run with these network calls."""

        # A column of the table, f32[N]. Numbers that hold for all calls are repeated, so that every
        # column has an entry for each row.
        def column(values):
            values = jnp.asarray(values).astype(jnp.float32)
            if values.shape not in ((), calls.times.shape):
                raise ValueError(
                    f"a column of weights must be a number or have the shape of the network calls, "
                    f"{calls.times.shape}, got {values.shape}"
                )
            return jnp.broadcast_to(values, calls.times.shape)

        check_columns(weights)
        scalings = self.parametrization.scalings(calls.alphas[:-1], calls.sigmas[:-1])
        return TableState(
            sigmas=calls.sigmas.astype(jnp.float32),
            timesteps=calls.times.astype(jnp.float32),
            step_index=jnp.zeros((), jnp.int32),
            memory=Memory(),
            scheduler=self,
            alphas=calls.alphas.astype(jnp.float32),
            scalings=jax.tree.map(column, scalings),
            weights=jax.tree.map(column, weights),
        )

    def check_state(self, state: Any) -> None:
        """Raises ValueError for a state that this scheduler, with these options, has not made."""
        super().check_state(state)
        if not isinstance(state, TableState):
            raise ValueError(f"state must be a TableState, got a {type(state).__name__}")
        check_maker(state, self)

    def prepare(self, state: TableState, sample: jax.Array) -> TableState:
        """Allocates the memory: zeros, to which the first rows give the weight 0."""
        self.check_state(state)
        sample = as_floats("sample", sample)

        # Each column of the table that weighs an earlier call needs one array like the sample; a
        # column that is absent, None, needs none.
        columns = Memory(**{name: getattr(state.weights, name) for name in Memory._fields})
        memory = jax.tree.map(lambda column: jnp.zeros_like(sample), columns)

        # eps has at least 32 bits, as `advance` computes it.
        earlier_eps = jax.tree.map(at_least_float32, memory.earlier_eps)
        return state.replace(memory=memory._replace(earlier_eps=earlier_eps))

    def scale_input(self, state: TableState, sample: jax.Array) -> jax.Array:
        """Returns the network's input, `c_in x`, `[B, ...]` in the sample's dtype."""
        self.check_state(state)
        check_not_finished(state)
        sample = as_floats("sample", sample)
        return scaled(state.scalings.c_in[state.step_index], sample)

    def denoise(
        self, state: TableState, model_output: jax.Array, sample: jax.Array
    ) -> jax.Array:
        """Returns the x0 estimate `c_skip x + c_out model_output`, bounded if so configured.

        Args:
            state: the run.
            model_output: what the network returned, `[B, ...]`.
            sample: the sample at this level, `[B, ...]`; its dtype is kept.

        Raises:
            ValueError: if the shapes differ, arrays hold no floats, or the state is another
                scheduler's.
        """
        return self.bound(self.estimate(state, model_output, sample))

    def estimate(
        self, state: TableState, model_output: jax.Array, sample: jax.Array
    ) -> jax.Array:
        """Returns `c_skip x + c_out model_output`, the x0 estimate before it is bounded."""
        self.check_state(state)
        check_not_finished(state)
        model_output = as_floats("model_output", model_output)
        sample = as_floats("sample", sample)
        check_output(model_output, sample)
        c_skip = state.scalings.c_skip[state.step_index]
        c_out = state.scalings.c_out[state.step_index]
        return weighted_sum((c_skip, sample), (c_out, model_output))

    def step_estimate(
        self, state: TableState, model_output: jax.Array, sample: jax.Array
    ) -> jax.Array:
        """Returns the x0 estimate that `step` advances by, `[B, ...]` in at least float32.

        At low levels eps = (x - alpha x0) / sigma would consist of the rounding of x0 in bfloat16.
        """
        wide_output = at_least_float32(model_output)
        return self.denoise(state, wide_output, at_least_float32(sample))

    def advance(
        self, state: TableState, sample: jax.Array, denoised: jax.Array, noise: jax.Array
    ) -> tuple[TableState, jax.Array]:
        """Moves to the next level by the weights of this call; the last step adds no noise at all.

        Args:
            state: the run; from `init` or `prepare` for samplers with memory.
            sample: the sample at this level, `[B, ...]`; its dtype is kept.
            denoised: the x0 estimate, `[B, ...]`, which may be float32 for any samples.
            noise: standard normal, `[B, ...]`.

        Returns:
            The state of the next step, and the sample `[B, ...]` at its level.

        Raises:
            ValueError: if the shapes differ, arrays hold no floats, the run has already ended, the
                state is another scheduler's, or memory is not allocated.
        """
        self.check_state(state)
        sample = as_floats("sample", sample)
        denoised = as_floats("denoised", denoised)
        noise = as_floats("noise", noise)
        weights = state.weights
        memory = state.memory
        earlier = {f"memory[{i}]": array for i, array in enumerate(jax.tree.leaves(memory))}
        check_shapes(sample=sample, denoised=denoised, noise=noise, **earlier)
        check_not_finished(state)

        # x = alpha x0 + sigma eps, solved for eps, in at least float32. In float16 it could
        # overflow: at low levels 1 / sigma is large, and a constraint may move x0 far from x.
        wide = at_least_float32(sample)
        eps = weighted_sum((1 / state.sigma, wide), (-state.alpha / state.sigma, denoised))

        # What the columns weigh: each array under the name of its column, and None for those that
        # are absent.
        arrays = Weights(
            x0=self.bound_last(denoised),
            eps=eps,
            noise=None if weights.noise is None else noise,
            **memory._asdict(),
        )
        if jax.tree.structure(arrays) != jax.tree.structure(weights):
            raise ValueError(
                f"{type(self).__name__} remembers earlier calls, and its memory is not allocated; "
                "begin with state, sample = scheduler.init(key, state, shape)"
            )

        # The next sample is the sum of weight times array over the columns of this row.
        row = jax.tree.map(lambda column: column[state.step_index], weights)
        row = self.call_weights(state, row, arrays)
        terms = zip(jax.tree.leaves(row), jax.tree.leaves(arrays), strict=True)
        next_sample = weighted_sum(*terms).astype(sample.dtype)

        memory = remember(memory, sample, denoised.astype(sample.dtype), eps, noise)
        return state.replace(step_index=state.step_index + 1, memory=memory), next_sample

    def add_noise(
        self, state: TableState, original: jax.Array, noise: jax.Array
    ) -> jax.Array:
        """Returns `alpha original + sigma noise` at the state's current level, `[B, ...]`.

        At training times use `scheduler.parametrization.add_noise(times, original, noise)`; its
        `velocity` is diffusers' `get_velocity`.

        Raises:
            ValueError: if the shapes differ, arrays hold no floats, or the state is another
                scheduler's.
        """
        self.check_state(state)
        original = as_floats("original", original)
        noise = as_floats("noise", noise)
        check_shapes(original=original, noise=noise)
        return weighted_sum((state.alpha, original), (state.sigma, noise))

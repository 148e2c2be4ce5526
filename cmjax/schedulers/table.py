"""What samplers have in common: a step is a weighted sum of what is at hand.

Every model noises data along a path `x = alpha x0 + sigma z`. Every network says what x0 is by
`x0 = c_skip x + c_out F(c_in x, t)`, and so what the noise is, `eps = (x - alpha x0) / sigma`.
Every step is a sum of these, of fresh noise, and of what is remembered of earlier calls. So a
sampler is a table with named columns (`Weights`), a row per network call, as an ODE solver is a
Butcher tableau; one `denoise` and one `advance` read it.
"""

import abc
import dataclasses
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cmjax.arrays import check_shapes, combine
from cmjax.configs import check_options
from cmjax.parametrization import Parametrization, Scalings
from cmjax.schedulers.base import Scheduler, SchedulerState, check_not_finished
from cmjax.schedulers.levels import Levels, exactly_one


class Weights(NamedTuple):
    """The columns of a sampler's table: what each thing at hand counts in the next sample.

    Columns are f32[N], N being the number of network calls, or a number for all calls. A column
    that is None is absent: it costs nothing, and what it would weigh is neither kept nor drawn.

    Attributes:
        x0: of this call's x0 estimate.
        eps: of the noise that this estimate implies, `(x - alpha x0) / sigma`.
        noise: of fresh standard normal noise.
        earlier_x0: of the x0 estimates of the call before, the one before that, and so on.
        last_sample: of the sample that the call before began at.
        last_noise: of the fresh noise of the call before.
    """

    x0: Any
    eps: Any
    noise: Any = None
    earlier_x0: tuple[Any, ...] = ()
    last_sample: Any = None
    last_noise: Any = None


class Memory(NamedTuple):
    """What is remembered of earlier calls; None where the table has no such column.

    Attributes:
        earlier_x0: x0 estimates `[B, ...]`, the latest first.
        last_sample: the sample `[B, ...]` that the call before began at.
        last_noise: the fresh noise `[B, ...]` of the call before.
    """

    earlier_x0: tuple[jax.Array, ...] = ()
    last_sample: jax.Array | None = None
    last_noise: jax.Array | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TableState(SchedulerState):
    """A run's table, a row per network call.

    Attributes:
        sigmas: f32[N+1], noise level of each call, then the level that sampling ends at.
        timesteps: f32[N], what the network is told at each call.
        step_index: i32[], the next call.
        memory: what is remembered of earlier calls, a `Memory`.
        alphas: f32[N+1], signal level of each call, then the level that sampling ends at.
        scalings: f32[N] each: c_in, c_skip and c_out.
        weights: f32[N] each: the columns.
    """

    alphas: jax.Array
    scalings: Scalings
    weights: Weights

    @property
    def alpha(self) -> jax.Array:
        """f32[]: the signal level of the next call."""
        return self.alphas[self.step_index]


@dataclasses.dataclass(frozen=True)
class TableScheduler(Scheduler[TableState]):
    """A sampler that is a table: it chooses a parametrization, levels and weights.

    Subclasses answer these questions:

    * `parametrization`: what does the network mean?
    * `levels`: which noise levels does a run go through?
    * `weights`: what does each call's step weigh?
    * `calls`, if it is not at these levels: where is the network called?

    They are frozen dataclasses, and declare valid values of their fields in `_domains` (see
    `cmjax.configs.check_options`).
    """

    def __post_init__(self):
        check_options(self)

    @property
    @abc.abstractmethod
    def parametrization(self) -> Parametrization:
        """What the network means: its noise path, time and scalings."""

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
        """Returns where the network is called in a run over `levels`; the levels themselves."""
        return levels

    def bound(self, denoised: jax.Array) -> jax.Array:
        """Returns the x0 estimate clipped or thresholded, where a scheduler has such an option."""
        return denoised

    def bound_last(self, denoised: jax.Array) -> jax.Array:
        """Returns the x0 estimate as `advance` weighs it; its eps has been taken before."""
        return denoised

    def set_timesteps(
        self, num_inference_steps: int | None = None, *, timesteps: Any = None, sigmas: Any = None
    ) -> TableState:
        """Returns the state at the start of a run; give exactly one argument.

        Which values each takes, the scheduler's own description says.

        Args:
            num_inference_steps: number of steps, on the scheduler's own grid of levels.
            timesteps: or what the network is told at each, in strictly descending order.
            sigmas: or the noise levels, in strictly descending order.

        Returns:
            A state with `sigmas` f32[N+1], `timesteps` f32[N] and `step_index` 0. Arrays may be
            traced; their values are then taken on trust.

        Raises:
            ValueError: if not exactly one argument is given, or for values that break these rules.
        """
        name, value = exactly_one(
            num_inference_steps=num_inference_steps, timesteps=timesteps, sigmas=sigmas
        )
        levels = self.levels(name, value)
        return self._state(self.calls(levels), self.weights(levels))

    def _state(self, calls: Levels, weights: Weights) -> TableState:
        """The state of a run whose network calls are at these levels."""

        def column(values):
            return jnp.broadcast_to(jnp.asarray(values).astype(jnp.float32), calls.times.shape)

        scalings = self.parametrization.scalings(calls.alphas[:-1], calls.sigmas[:-1])
        return TableState(
            sigmas=calls.sigmas.astype(jnp.float32),
            timesteps=calls.times.astype(jnp.float32),
            step_index=jnp.zeros((), jnp.int32),
            alphas=calls.alphas.astype(jnp.float32),
            scalings=jax.tree.map(column, scalings),
            weights=jax.tree.map(column, weights),
        )

    def prepare(self, state: TableState, sample: jax.Array) -> TableState:
        """Allocates what the table remembers; zeros, which the first rows weigh with 0."""

        def allocate(column):
            del column
            return jnp.zeros_like(sample)

        weights = state.weights
        remembered = Memory(weights.earlier_x0, weights.last_sample, weights.last_noise)
        return state.replace(memory=jax.tree.map(allocate, remembered))

    def scale_input(self, state: TableState, sample: jax.Array) -> jax.Array:
        """Returns what the network sees, `c_in x`, `[B, ...]` in the sample's dtype."""
        return combine((state.scalings.c_in[state.step_index], sample))

    def denoise(self, state: TableState, model_output: jax.Array, sample: jax.Array) -> jax.Array:
        """Returns the x0 estimate `c_skip x + c_out model_output`, bounded if so configured.

        Args:
            state: the run.
            model_output: what the network returned, `[B, ...]`.
            sample: the sample at this level, `[B, ...]`; its dtype is kept.

        Raises:
            ValueError: if the shapes differ.
        """
        return self.bound(self.estimate(state, model_output, sample))

    def estimate(self, state: TableState, model_output: jax.Array, sample: jax.Array) -> jax.Array:
        """Returns `c_skip x + c_out model_output`: what `denoise` returns before it is bounded."""
        check_shapes(model_output=model_output, sample=sample)
        c_skip = state.scalings.c_skip[state.step_index]
        c_out = state.scalings.c_out[state.step_index]
        return combine((c_skip, sample), (c_out, model_output))

    def advance(
        self, state: TableState, sample: jax.Array, denoised: jax.Array, noise: jax.Array
    ) -> tuple[TableState, jax.Array]:
        """Moves to the next level by the weights of this call; the last one adds exactly no noise.

        Args:
            state: the run; after `init` or `prepare` for samplers that remember.
            sample: the sample at this level, `[B, ...]`.
            denoised: the x0 estimate, `[B, ...]`.
            noise: standard normal, `[B, ...]`.

        Returns:
            The state of the next step, and the sample `[B, ...]` at its level.

        Raises:
            ValueError: if the shapes differ, the run has already ended, or memory is not allocated.
        """
        weights = state.weights
        memory = state.memory or Memory()
        remembered = {f"memory[{i}]": array for i, array in enumerate(jax.tree.leaves(memory))}
        check_shapes(sample=sample, denoised=denoised, noise=noise, **remembered)
        check_not_finished(state)

        # x = alpha x0 + sigma eps, solved for eps. In float16 it would overflow at low levels,
        # where x0 is not what the network said, as in editing.
        wide = sample if sample.dtype == jnp.float64 else sample.astype(jnp.float32)
        eps = combine((1 / state.sigma, wide), (-state.alpha / state.sigma, denoised))

        # The next sample is the sum over the columns that the table has.
        fresh = None if weights.noise is None else noise
        at_hand = Weights(
            self.bound_last(denoised),
            eps,
            fresh,
            memory.earlier_x0,
            memory.last_sample,
            memory.last_noise,
        )
        if jax.tree.structure(at_hand) != jax.tree.structure(weights):
            raise ValueError(
                f"{type(self).__name__} remembers earlier calls, and its memory is not allocated; "
                "begin with state, sample = scheduler.init(key, state, shape)"
            )
        row = jax.tree.map(lambda column: column[state.step_index], weights)
        terms = zip(jax.tree.leaves(row), jax.tree.leaves(at_hand), strict=True)
        next_sample = combine(*terms)

        memory = _remember(memory, sample, denoised, noise)
        return state.replace(step_index=state.step_index + 1, memory=memory), next_sample

    def add_noise(self, state: TableState, original: jax.Array, noise: jax.Array) -> jax.Array:
        """Returns `alpha original + sigma noise` at the state's current level, `[B, ...]`.

        Raises:
            ValueError: if the shapes differ.
        """
        check_shapes(original=original, noise=noise)
        return combine((state.alpha, original), (state.sigma, noise))


def _remember(memory: Memory, sample: jax.Array, denoised: jax.Array, noise: jax.Array) -> Memory:
    """The memory after a call: its own x0 first, the oldest forgotten."""
    latest = (denoised, *memory.earlier_x0)
    return Memory(
        earlier_x0=latest[: len(memory.earlier_x0)],
        last_sample=None if memory.last_sample is None else sample,
        last_noise=None if memory.last_noise is None else noise,
    )


def interleave(first: jax.Array, second: jax.Array) -> jax.Array:
    """Returns first[0], second[0], first[1], ... without the last, f32[2n-1], from f32[n] each.

    These are the calls of a solver of two calls a step, whose last step has one: it ends without
    noise, where there is no slope to correct with.
    """
    return jnp.stack([first, second], axis=1).reshape(-1)[:-1]


def alternate(first: Weights, second: Weights, num_steps: int) -> Weights:
    """Returns the table of a solver of two calls a step, with 2n - 1 rows (see `interleave`).

    Args:
        first: weights of each step's first call, f32[n] or numbers.
        second: weights of its second call. A column that only one of the two has is 0 in the other.
        num_steps: number n of steps.
    """

    def column(one, other):
        if one is None and other is None:
            return None
        rows = [jnp.asarray(0.0 if row is None else row, jnp.float32) for row in (one, other)]
        return interleave(*[jnp.broadcast_to(row, (num_steps,)) for row in rows])

    earlier_x0 = itertools.zip_longest(first.earlier_x0, second.earlier_x0)
    return Weights(
        x0=column(first.x0, second.x0),
        eps=column(first.eps, second.eps),
        noise=column(first.noise, second.noise),
        earlier_x0=tuple(column(one, other) for one, other in earlier_x0),
        last_sample=column(first.last_sample, second.last_sample),
        last_noise=column(first.last_noise, second.last_noise),
    )


def root_of_difference(high: Any, low: Any) -> Any:
    """Returns sqrt(high^2 - low^2), exactly 0 (and with a finite gradient) where they are equal."""
    # Factored: under jit a fused multiply-add of the squares would leave a rest.
    square = (high - low) * (high + low)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)

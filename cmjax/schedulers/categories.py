"""The contract between the loop over categories and a sampler of them: its state and its step."""

import abc
import dataclasses
from typing import TYPE_CHECKING, Any, Self

import jax
import jax.numpy as jnp

from cmjax.arrays import ApplyFn, as_categories, as_floats
from cmjax.configs import shown
from cmjax.former_names import OF_STATES, with_way_out
from cmjax.meshes import sharded_like
from cmjax.networks import call_classifier, check_output
from cmjax.random import gumbel, level_noise, sample_keys
from cmjax.schedulers.base import StepOutput
from cmjax.schedulers.checks import (
    check_levels,
    check_maker,
    check_not_finished,
    check_sample_shape,
)
from cmjax.schedulers.config_files import Configured
from cmjax.schedulers.transitions import Transitions


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CategoryState:
    """The times of a run, and the step that it has reached. N is the number of network calls.

    Attributes:
        timesteps: f32[N], the training time of each call.
        step_index: i32[], index of the next call.
        from_data: transitions from x0 to the time of each call, then to x0 itself, where the run
            ends; f32[N+1] each.
        from_next: transitions from the next, lower time of the run up to that of each call, f32[N]
            each.
        scheduler: the scheduler that made it; static.
    """

    timesteps: jax.Array
    step_index: jax.Array
    from_data: Transitions
    from_next: Transitions
    scheduler: Any = dataclasses.field(metadata={"static": True})

    if not TYPE_CHECKING:
        __getattr__ = with_way_out(OF_STATES)

    @property
    def num_steps(self) -> int:
        """N, the number of network calls; static."""
        return self.timesteps.shape[-1]

    def replace(self, **changes: Any) -> Self:
        """Returns a copy with the named fields changed."""
        return dataclasses.replace(self, **changes)


class CategoricalScheduler(Configured, abc.ABC):
    """A sampler of integers `[B, ...]`, each the number of a class; the last class is the mask.

    Where a `Scheduler` adds to a mean, it draws from a distribution: the noise is Gumbel's, with an
    axis for the classes. Subclasses are frozen dataclasses with the field `num_vec_classes`, the
    number of classes, the mask included.
    """

    num_vec_classes: int

    @property
    def mask_class(self) -> int:
        """The class of masked entries, the last one."""
        return self.num_vec_classes - 1

    @abc.abstractmethod
    def set_timesteps(
        self, num_inference_steps: int | None = None, *, timesteps: Any = None
    ) -> CategoryState:
        """Returns the state at the start of a run, from exactly one of its arguments."""

    @abc.abstractmethod
    def log_posterior(
        self, state: CategoryState, sample: jax.Array, denoised: jax.Array
    ) -> jax.Array:
        """Returns log-probabilities of the next sample, f32`[B, ..., num_vec_classes]`."""

    def check_state(self, state: Any) -> None:
        """Raises ValueError for a state that this scheduler, with these options, has not made."""
        if not isinstance(state, CategoryState):
            raise ValueError(
                f"state must be what set_timesteps returns, a CategoryState, got {shown(state)}"
            )
        check_levels(state, "from_data", jax.tree.leaves(state.from_data)[0])
        check_maker(state, self)

    def init(self, state: CategoryState, shape: Any) -> jax.Array:
        """Returns the first sample, i32[shape]: all entries masked."""
        self.check_state(state)
        return jnp.full(check_sample_shape(shape), self.mask_class, jnp.int32)

    def predict(
        self,
        apply_fn: ApplyFn,
        params: Any,
        state: CategoryState,
        sample: jax.Array,
        /,
        **cond: Any,
    ) -> jax.Array:
        """Calls the network with its time, f32[B]; returns logits `[B, ..., classes of x0]`.

        Raises:
            ValueError: for a sample that holds no integers, or a network that cannot be called with
                it or returns anything but logits of these classes.
        """
        self.check_state(state)
        check_not_finished(state)
        sample = as_categories("sample", sample)
        time = jnp.broadcast_to(state.timesteps[state.step_index], sample.shape[:1])
        times = (sharded_like(time.astype(jnp.float32), sample),)
        return call_classifier(apply_fn, params, sample, times, cond, self.mask_class)

    def denoise(
        self, state: CategoryState, model_output: jax.Array, sample: jax.Array
    ) -> jax.Array:
        """Returns the log-probabilities of the classes of x0, `[B, ..., classes of x0]`."""
        self.check_state(state)
        model_output = as_floats("model_output", model_output)
        sample = as_categories("sample", sample)
        check_output(model_output, sample, (*sample.shape, self.mask_class))
        return jax.nn.log_softmax(model_output.astype(jnp.float32))

    def advance(
        self,
        state: CategoryState,
        sample: jax.Array,
        denoised: jax.Array,
        noise: jax.Array,
    ) -> tuple[CategoryState, jax.Array]:
        """Draws the sample of the next time, given Gumbel noise `[B, ..., num_vec_classes]`.

        Raises:
            ValueError: for arrays of other shapes or kinds, or a run that has already ended.
        """
        self.check_state(state)
        check_not_finished(state)
        sample = as_categories("sample", sample)
        noise = as_floats("noise", noise)
        log_probs = self.log_posterior(state, sample, denoised)
        check_output(noise, sample, log_probs.shape, "noise")

        # Gumbel noise makes the largest one a draw from the distribution.
        drawn = jnp.argmax(log_probs + noise, axis=-1).astype(sample.dtype)
        return state.replace(step_index=state.step_index + 1), drawn

    def step(
        self,
        key: jax.Array,
        state: CategoryState,
        model_output: jax.Array,
        sample: jax.Array,
    ) -> tuple[CategoryState, StepOutput]:
        """Takes one step: `denoise`, then `advance` with noise that the key and level determine.

        Args:
            key: one key, or one per sample `[B]`; the same key at every step.
            state: from `set_timesteps` or the step before.
            model_output: logits of the network, `[B, ..., classes of x0]`.
            sample: integers `[B, ...]`.

        Returns:
            The state of the next step, and the sample there with the log-probabilities of x0.
        """
        denoised = self.denoise(state, model_output, sample)
        keys = sample_keys(key, sample.shape[0])
        shape = (*sample.shape, self.num_vec_classes)
        noise = level_noise(keys, state.step_index + 1, shape, draw=gumbel)
        state, prev_sample = self.advance(state, sample, denoised, noise)
        return state, StepOutput(prev_sample, denoised)

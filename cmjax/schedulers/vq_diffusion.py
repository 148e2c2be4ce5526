"""VQ-Diffusion (Gu et al. 2022): categories that are masked or replaced instead of noised."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from cmjax.arrays import ApplyFn, as_categories, as_floats
from cmjax.configs import check_options, from_json, shown
from cmjax.former_names import OF_SCHEDULERS, with_way_out
from cmjax.meshes import divided_like
from cmjax.networks import call_classifier, check_output
from cmjax.random import gumbel, level_noise, sample_keys
from cmjax.schedulers.base import StepOutput
from cmjax.schedulers.checks import (
    check_config,
    check_maker,
    check_not_finished,
    check_sample_shape,
)
from cmjax.schedulers.config_files import sort_options
from cmjax.schedulers.levels import check_num_steps, exactly_one, parse_levels
from cmjax.schedulers.transitions import (
    CategoryState,
    check_schedule,
    log_posterior,
    transitions_of,
)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class VQDiffusionScheduler:
    """Ancestral sampling of categories, such as the codes of a VQ-VAE (Gu et al. 2022).

    From one time to the next an entry of the sample keeps its class, gets one of all classes at
    random, or is masked; a masked one stays so. Sampling starts with all entries masked and draws
    those of each lower time from the exact posterior (equation 5) under the network's
    probabilities, until the last step draws x0. Samples are integers: the loop is
    `cmjax.categorical.sample`; `cmjax.sample` does not take this scheduler.

    The network gets the sample, integers `[B, ...]` of which `num_vec_classes - 1` is the mask, is
    told a training time, 0..N-1, and returns logits `[B, ..., num_vec_classes - 1]` of the classes
    of x0. `set_timesteps` takes as `num_inference_steps` a number of times, from the last one
    down, or as `timesteps` whole training times. Times may be left out: a step draws from the
    posterior of the time that it goes to (section 3.3).

    Attributes:
        num_vec_classes: number of classes, the mask included.
        num_train_timesteps: number N of training times.
        alpha_cum_start: probability that x0 has been kept at time 0.
        alpha_cum_end: the same at time N-1; between them it is linear.
        gamma_cum_start: probability that x0 has been masked at time 0.
        gamma_cum_end: the same at time N-1; between them it is linear.

    Raises:
        ValueError: for values outside their domain, or of which some probability is negative.
    """

    num_vec_classes: int
    num_train_timesteps: int = 100
    alpha_cum_start: float = 0.99999
    alpha_cum_end: float = 0.000009
    gamma_cum_start: float = 0.000009
    gamma_cum_end: float = 0.99999

    if not TYPE_CHECKING:
        __getattr__ = with_way_out(OF_SCHEDULERS)

    _domains = {
        "num_vec_classes": (2, 1_000_000),
        "num_train_timesteps": (2, 1_000_000),
        "alpha_cum_start": (1e-9, 1.0),
        "alpha_cum_end": (0.0, 1.0),
        "gamma_cum_start": (0.0, 1 - 1e-9),
        "gamma_cum_end": (0.0, 1.0),
    }

    def __post_init__(self):
        check_options(self)
        check_schedule(self)

    @property
    def mask_class(self) -> int:
        """The class of masked entries, the last one."""
        return self.num_vec_classes - 1

    def set_timesteps(
        self, num_inference_steps: int | None = None, *, timesteps: Any = None
    ) -> CategoryState:
        """Returns the state at the start of a run; give exactly one argument.

        Args:
            num_inference_steps: number of times, spread evenly from N-1 down.
            timesteps: or the training times themselves, descending.

        Raises:
            ValueError: if not exactly one is given, or for what is no such number or list.
        """
        name, value = exactly_one(
            num_inference_steps=num_inference_steps, timesteps=timesteps
        )
        total = self.num_train_timesteps
        if name == "num_inference_steps":
            n = check_num_steps(value, total, "num_train_timesteps")
            value = np.round(total - np.arange(n) * total / n).astype(int) - 1
        times = parse_levels("timesteps", value, 0, total - 1, integers=True)
        from_data, from_next = transitions_of(self, times.astype(jnp.int32))
        return CategoryState(
            timesteps=times,
            step_index=jnp.zeros((), jnp.int32),
            from_data=from_data,
            from_next=from_next,
            scheduler=self,
        )

    def check_state(self, state: Any) -> None:
        """Raises ValueError for a state that this scheduler, with these options, has not made."""
        if not isinstance(state, CategoryState):
            raise ValueError(
                f"state must be what set_timesteps returns, a CategoryState, got {shown(state)}"
            )
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
        times = (divided_like(time, sample),)
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

    def log_posterior(
        self, state: CategoryState, sample: jax.Array, denoised: jax.Array
    ) -> jax.Array:
        """Returns log-probabilities of the next sample, f32`[B, ..., num_vec_classes]`.

        Args:
            state: the run.
            sample: the sample at this time, integers `[B, ...]`.
            denoised: log-probabilities of x0, from `denoise`.

        Raises:
            ValueError: for arrays of other shapes or kinds, or a state that is none.
        """
        self.check_state(state)
        sample = as_categories("sample", sample)
        denoised = as_floats("denoised", denoised)
        check_output(denoised, sample, (*sample.shape, self.mask_class), "denoised")
        index = state.step_index
        here = jax.tree.map(lambda column: column[index], state.from_data)
        below = jax.tree.map(lambda column: column[index + 1], state.from_data)
        between = jax.tree.map(lambda column: column[index], state.from_next)
        return log_posterior(here, below, between, sample, denoised)

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

    def to_config(self) -> dict[str, Any]:
        """Returns the configuration as a dict for JSON, in the layout of diffusers' files."""
        return {"_class_name": type(self).__name__, **dataclasses.asdict(self)}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Builds the scheduler from `to_config()` or from diffusers' `scheduler_config.json`.

        Raises:
            ValueError: if `config` is no mapping of names, lacks `num_vec_classes`, or has an
                unknown option or a value out of its domain.
        """
        check_config(config)
        fields = [field.name for field in dataclasses.fields(cls)]
        own, _ = sort_options(
            cls.__name__, config, fields=fields, file_options={}, not_in_diffusers=()
        )
        return from_json(cls, own)

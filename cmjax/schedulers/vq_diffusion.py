"""VQ-Diffusion (Gu et al. 2022): categories that are masked or replaced instead of noised."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cmjax.arrays import as_categories, as_floats
from cmjax.configs import check_options
from cmjax.networks import check_output
from cmjax.schedulers.categories import CategoricalScheduler, CategoryState
from cmjax.schedulers.levels import check_num_steps, exactly_one, parse_levels
from cmjax.schedulers.transitions import check_schedule, log_posterior, transitions_of


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class VQDiffusionScheduler(CategoricalScheduler):
    """Ancestral sampling of categories, such as the codes of a VQ-VAE (Gu et al. 2022).

    From one time to the next an entry of the sample keeps its class, gets one of all classes at
    random, or is masked; a masked one stays so. Sampling starts with all entries masked and draws
    those of each lower time from the exact posterior (equation 5) under the network's
    probabilities, until the last step draws x0. Samples are integers: the loop is
    `cmjax.categorical.sample`; `cmjax.sample` does not take this scheduler.

    The network takes the sample, integers `[B, ...]` of which `num_vec_classes - 1` is the mask,
    and returns logits `[B, ..., num_vec_classes - 1]` of the classes of x0. Its time input is a
    training time, 0..N-1. `set_timesteps` takes as `num_inference_steps` a number of times, from
    the last one down, or as `timesteps` whole training times. Times may be left out: a step draws
    from the posterior of the time that it goes to (section 3.3).

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
            spaced = total - np.arange(n) * total / n
            value = np.round(spaced).astype(int) - 1
        times = parse_levels("timesteps", value, 0, total - 1, integers=True)
        from_data, from_next = transitions_of(self, times.astype(jnp.int32))
        return CategoryState(
            timesteps=times,
            step_index=jnp.zeros((), jnp.int32),
            from_data=from_data,
            from_next=from_next,
            scheduler=self,
        )

    def log_posterior(
        self, state: CategoryState, sample: jax.Array, denoised: jax.Array
    ) -> jax.Array:
        """Returns log-probabilities of the next sample, f32`[B, ..., num_vec_classes]`.

        Args:
            state: the run.
            sample: the sample at this time, integers `[B, ...]`.
            denoised: log-probabilities of x0, from `denoise`.

        Raises:
            ValueError: for arrays of other shapes or kinds, or a state of another scheduler.
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

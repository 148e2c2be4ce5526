"""What samplers have in common: a step is a weighted sum of what is at hand.

Every model noises data along a path `x = alpha x0 + sigma z`. Every network says what x0 is by
`x0 = c_skip x + c_out F(c_in x, t)`, and so what the noise is, `eps = (x - alpha x0) / sigma`. Every step is

    x' = w0 x0 + w1 eps + w2 z  [+ w3 x0_before + w4 x_before]

with fresh noise z, and what the step before had. So a sampler is a table: its `set_timesteps` works out a row of
numbers per network call, and one `denoise` and one `advance` serve all.
"""

import abc
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from cmjax.arrays import check_shapes, combine
from cmjax.configs import check_options
from cmjax.schedulers.base import Scheduler, SchedulerState, check_not_finished


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearState(SchedulerState):
    """A run's table of numbers, a row per network call."""

    alphas: jax.Array  # f32[N+1]: signal level of each step, then that which sampling ends at
    scalings: jax.Array  # f32[N, 3]: c_in, c_skip, c_out
    weights: jax.Array  # f32[N, 3]: of x0, eps and fresh noise; f32[N, 5]: and of the last x0 and x

    @property
    def alpha(self) -> jax.Array:
        """f32[]: the signal level of the next step."""
        return self.alphas[self.step_index]


@dataclasses.dataclass(frozen=True)
class LinearScheduler(Scheduler[LinearState]):
    """A sampler whose `set_timesteps` returns a `LinearState`, with `new_state`.

    Beside that, a new one says what its levels are: `path` and `preconditioning`; and of its fields, in `_domains`
    and `_unsupported`, what they may be (see `check_options`).
    """

    def __post_init__(self):
        check_options(self)

    @abc.abstractmethod
    def path(self, times: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the signal and noise levels (alpha, sigma) at what the network is told, of its shape."""

    @abc.abstractmethod
    def preconditioning(self, alphas: jax.Array, sigmas: jax.Array) -> tuple[Any, Any, Any]:
        """Returns (c_in, c_skip, c_out) at these levels: `x0 = c_skip x + c_out F(c_in x, t)`."""

    @property
    def stochastic(self) -> bool:
        """Whether steps may add fresh noise; where not, the compiler drops its drawing."""
        return True

    def bound(self, denoised: jax.Array) -> jax.Array:
        """Returns the x0 estimate clipped or thresholded, where a scheduler has such an option."""
        return denoised

    def bound_last(self, denoised: jax.Array) -> jax.Array:
        """Returns the x0 estimate as `advance` adds it; its eps has been taken before."""
        return denoised

    def new_state(
        self, times: jax.Array, alphas: jax.Array, sigmas: jax.Array, weights: jax.Array
    ) -> LinearState:
        """Returns the state at the start of a run.

        Args:
            times: f32[N], what the network is told.
            alphas: f32[N+1], signal levels of the calls and of the end.
            sigmas: f32[N+1], noise levels.
            weights: [N, 3] or [N, 5], rows of the functions below.
        """
        scalings = jnp.stack(
            [
                jnp.broadcast_to(c, times.shape)
                for c in self.preconditioning(alphas[:-1], sigmas[:-1])
            ],
            axis=-1,
        )
        arrays = {
            "sigmas": sigmas,
            "timesteps": times,
            "alphas": alphas,
            "scalings": scalings,
            "weights": weights,
        }
        arrays = {name: jnp.asarray(value).astype(jnp.float32) for name, value in arrays.items()}
        return LinearState(step_index=jnp.zeros((), jnp.int32), **arrays)

    def prepare(self, state: LinearState, sample: jax.Array) -> LinearState:
        """Allocates what the step before had, if the sampler looks back."""
        zeros = jnp.zeros_like(sample)
        return state.replace(history=(zeros, zeros) if state.weights.shape[-1] == 5 else ())

    def scale_input(self, state: LinearState, sample: jax.Array) -> jax.Array:
        """Returns what the network sees, `c_in x`, `[B, ...]` in the sample's dtype."""
        return combine((state.scalings[state.step_index, 0], sample))

    def denoise(self, state: LinearState, model_output: jax.Array, sample: jax.Array) -> jax.Array:
        """Returns the x0 estimate `c_skip x + c_out model_output`, bounded if so configured.

        Args:
            state: the run.
            model_output: what the network returned, `[B, ...]`.
            sample: the sample at this level, `[B, ...]`; its dtype is kept.

        Raises:
            ValueError: if the shapes differ.
        """
        return self.bound(self.estimate(state, model_output, sample))

    def estimate(self, state: LinearState, model_output: jax.Array, sample: jax.Array) -> jax.Array:
        """Returns `c_skip x + c_out model_output`; `denoise` before it is bounded."""
        check_shapes(model_output=model_output, sample=sample)
        _, c_skip, c_out = state.scalings[state.step_index]
        return combine((c_skip, sample), (c_out, model_output))

    def advance(
        self, state: LinearState, sample: jax.Array, denoised: jax.Array, noise: jax.Array
    ) -> tuple[LinearState, jax.Array]:
        """Moves to the next level by the weights of this step; adds exactly nothing on the last one.

        Args:
            state: the run; after `prepare` for samplers that look back.
            sample: the sample at this level, `[B, ...]`.
            denoised: the x0 estimate, `[B, ...]`.
            noise: standard normal, `[B, ...]`.

        Returns:
            The state of the next step, and the sample `[B, ...]` at its level.

        Raises:
            ValueError: if the shapes differ, the run has already ended, or `prepare` was not called.
        """
        history = {f"history[{i}]": array for i, array in enumerate(state.history)}
        check_shapes(sample=sample, denoised=denoised, noise=noise, **history)
        check_not_finished(state)
        # At low levels float16 overflows where x0 is not what the network said, as in editing.
        wide = sample if sample.dtype == jnp.float64 else sample.astype(jnp.float32)
        eps = combine((1 / state.sigma, wide), (-state.alpha / state.sigma, denoised))
        terms = (self.bound_last(denoised), eps, noise, *state.history)
        if len(terms) != state.weights.shape[-1]:
            raise ValueError(
                f"{type(self).__name__} looks back: call state = scheduler.prepare(state, sample) first"
            )
        weighted = list(zip(state.weights[state.step_index], terms, strict=True))
        if not self.stochastic:
            del weighted[2]
        next_sample = combine(*weighted)
        history = (denoised, sample) if state.history else ()
        return state.replace(step_index=state.step_index + 1, history=history), next_sample

    def add_noise(self, state: LinearState, original: jax.Array, noise: jax.Array) -> jax.Array:
        """Returns `alpha original + sigma noise` at the state's current level, `[B, ...]`.

        Raises:
            ValueError: if the shapes differ.
        """
        check_shapes(original=original, noise=noise)
        return combine((state.alpha, original), (state.sigma, noise))


def rows(*columns: Any) -> jax.Array:
    """Stacks weights, numbers or [N], into rows [N, number of columns].

    `rows(alpha', sigma', 0)` follows the probability-flow ODE: Euler's method on EDM levels and on flow matching, and
    DDIM. `rows(alpha', 0, sigma')` is consistency sampling, where all noise is fresh. Between them lie DDIM's eta, TCD
    and ancestral sampling.
    """
    return jnp.stack(jnp.broadcast_arrays(*map(jnp.asarray, columns)), axis=-1)


def interleave(first: jax.Array, second: jax.Array) -> jax.Array:
    """Returns first[0], second[0], first[1], ... without the last: the calls of a solver of two calls a step.

    The last step ends without noise, where there is no slope to correct with.
    """
    return jnp.stack([first, second], axis=1).reshape(-1, *first.shape[1:])[:-1]


def root_of_difference(high: Any, low: Any) -> Any:
    """Returns sqrt(high^2 - low^2), exactly 0 (and with a finite gradient) where they are equal."""
    square = (high - low) * (high + low)  # factored: a fused multiply-add would leave a rest
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)

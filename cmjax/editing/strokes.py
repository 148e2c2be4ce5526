"""Editing from a start other than noise: sketches (SDEdit), and pictures with noise."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from cmjax.arrays import ApplyFn, as_samples, weighted_sum
from cmjax.constraints.checks import as_image
from cmjax.random import level_noise, sample_keys
from cmjax.sampling import sample
from cmjax.sampling_inputs import check_scheduler
from cmjax.schedulers.base import Scheduler
from cmjax.schedulers.levels import root_of_difference

# Appendix D's levels for LSUN Bedroom 256: indices 16 and 20 of the grid of N = 40.
STROKE_SIGMAS = (5.38, 2.24)


def stroke_to_image(
    key: jax.Array,
    apply_fn: ApplyFn,
    params: Any,
    scheduler: Scheduler,
    image: ArrayLike,
    sigmas: Any = STROKE_SIGMAS,
    *,
    first_index: int | jax.Array = 0,
    **options: Any,
) -> Any:
    """Turns a sketch into an image (SDEdit, Meng et al. 2022).

    Adds noise of level `sigmas[0]` to the sketch, and removes it in several steps, as `restore`
    does. The higher the first level, the more the model may change.

    Args:
        key: one key, or one per sample `[B]`, as for `cmjax.sample`.
        apply_fn: `(params, x, t, **cond) -> model_output`.
        params: of the network.
        scheduler: the sampler.
        image: the sketches, floats `[B, ...]`.
        sigmas: noise levels, descending.
        first_index: global index of the first sample of this batch.
        **options: of `cmjax.sample`, such as `cond` and `constrain`.

    Returns:
        What `cmjax.sample` returns.
    """
    check_scheduler(scheduler)
    image = as_samples("image", as_image("image", image))

    # Of a run with churn the noise is that of the raised level, which is the first of the state.
    state = scheduler.set_timesteps(sigmas=sigmas)
    noisy = noised(key, scheduler, state, image, first_index)
    return sample(
        key,
        apply_fn,
        params,
        scheduler,
        noisy.shape,
        state=state,
        init=noisy,
        dtype=noisy.dtype,
        first_index=first_index,
        **options,
    )


def restore(
    key: jax.Array,
    apply_fn: ApplyFn,
    params: Any,
    scheduler: Scheduler,
    noisy: ArrayLike,
    sigmas: Any,
    **options: Any,
) -> Any:
    """Removes noise in several steps.

    The network removes the noise of `sigmas[0]`; then noise of each lower level is added and
    removed in turn.

    Args:
        key: one key, or one per sample `[B]`, as for `cmjax.sample`.
        apply_fn: `(params, x, t, **cond) -> model_output`.
        params: of the network.
        scheduler: the sampler.
        noisy: clean samples plus noise of standard deviation `sigmas[0]`, floats `[B, ...]`; for
            flow matching `alpha x0 + sigma z` at the first level of
            `scheduler.set_timesteps(sigmas=sigmas)`, which is shifted.
        sigmas: noise levels, descending.
        **options: of `cmjax.sample`, such as `cond` and `constrain`.

    Returns:
        What `cmjax.sample` returns.
    """
    # The samples have noise of the first level already: they take the place of the initial noise.
    x = as_samples("noisy", as_image("noisy", noisy))
    if sigmas is None:
        raise ValueError("sigmas must be a list of noise levels, got None")
    check_scheduler(scheduler)
    state = scheduler.set_timesteps(sigmas=sigmas)
    if getattr(scheduler, "s_churn", 0) > 0:
        x = churned(key, scheduler, state, x, sigmas, options.get("first_index", 0))
    return sample(
        key,
        apply_fn,
        params,
        scheduler,
        x.shape,
        state=state,
        init=x,
        dtype=x.dtype,
        **options,
    )


def churned(
    key: jax.Array,
    scheduler: Any,
    state: Any,
    x: jax.Array,
    sigmas: Any,
    first_index: int | jax.Array,
) -> jax.Array:
    """Returns samples `[B, ...]` at `sigmas[0]` with the noise that a run's first step adds."""
    # Karras et al. 2022, Algorithm 2, line 6: sqrt(sigma_hat^2 - sigma^2) of fresh noise. A run
    # begins at sigma_hat, since usually the initial noise has it.
    sigma = jnp.asarray(sigmas, jnp.float32)[0]
    added = scheduler.s_noise * root_of_difference(state.sigma, sigma)
    keys = sample_keys(key, x.shape[0], first_index)
    return weighted_sum((1, x), (added, level_noise(keys, 0, x.shape, x.dtype)))


def noised(
    key: jax.Array,
    scheduler: Scheduler,
    state: Any,
    image: ArrayLike,
    first_index: int | jax.Array,
) -> jax.Array:
    """Returns images with noise of the first level, that of the samples of this key and index."""
    image = as_samples("samples", image)

    # The noise of level 0. The steps of `sample` draw that of level 1 and on: none is used twice.
    keys = sample_keys(key, image.shape[0], first_index)
    return scheduler.add_noise(state, image, level_noise(keys, 0, image.shape, image.dtype))

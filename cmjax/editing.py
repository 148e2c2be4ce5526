"""Zero-shot editing (Song et al. 2023, appendix D): the one loop, under a constraint or from another start.

`edit` is Algorithm 4, with the constraints of `cmjax.constraints`, which are here too. Arguments common to all
functions are explained at `edit`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from cmjax.arrays import ApplyFn, check_shapes, combine, concrete
from cmjax.configs import is_int
from cmjax.constraints import (
    REC601,
    Constraint,
    as_floats,
    at_least_float32,
    check_callable,
    colorize,
    compose,
    inpaint,
    observe,
    super_resolve,
)
from cmjax.parametrization import consistency_function
from cmjax.random import level_noise, sample_keys
from cmjax.sampling import sample
from cmjax.schedulers.base import Scheduler
from cmjax.schedulers.consistency import CMStochasticIterativeScheduler

STROKE_SIGMAS = (
    5.38,
    2.24,
)  # appendix D, for LSUN Bedroom 256: indices 16 and 20 of the grid of N = 40


def editing_timesteps(num_train_timesteps: int) -> np.ndarray:
    """Returns the paper's levels for inpainting, colourisation and super-resolution: indices `[N-2, ..., 0]`.

    Appendix D takes all N levels of the training grid, N = 40. The last is sigma_min, where f is the identity, so
    N - 1 network calls remain: as many as in OpenAI's CIFAR-10 editing notebook (N = 18). Their PyTorch code, which
    takes the levels as an argument, publishes none.
    """
    if not is_int(num_train_timesteps, 2):
        raise ValueError(
            f"num_train_timesteps must be an integer of at least 2, got {num_train_timesteps!r}"
        )
    return np.arange(num_train_timesteps - 1)[::-1]


def edit(
    key: jax.Array,
    apply_fn: ApplyFn,
    params: Any,
    scheduler: CMStochasticIterativeScheduler,
    constraint: Constraint,
    shape: Sequence[int],
    *,
    num_inference_steps: int | None = None,
    timesteps: Any = None,
    sigmas: Any = None,
    first_index: int | jax.Array = 0,
    dtype: DTypeLike = jnp.float32,
    **options: Any,
) -> Any:
    """Samples under a constraint (Song et al. 2023, Algorithm 4).

    Starts from what is known, zero elsewhere, plus noise of the first level. The constraint applies to every x0
    estimate after clipping, so results leave [-1, 1] where it takes them.

    Args:
        key: one key, from which sample *i* draws by `fold_in(key, first_index + i)`, or one per sample `[B]`.
        apply_fn: `(params, x, t, **cond) -> model_output`.
        params: of the network.
        scheduler: the sampler.
        constraint: x0 -> x0.
        shape: of the result, `(B, ...)`.
        num_inference_steps: number of steps. At most one of this and the next two; none means the paper's
            `editing_timesteps`, N - 1 network calls.
        timesteps: the levels as training indices.
        sigmas: the levels as noise levels.
        first_index: global index of the first sample of this batch.
        dtype: of the samples.
        **options: `cond`, `return_trajectory` and `callback` of `cmjax.sample`.

    Returns:
        The samples, `dtype[shape]`; with `return_trajectory` the pair (samples, trajectory).

    Raises:
        ValueError: for misuse that can be seen while tracing; it names the argument and the way out.
    """
    check_callable(constraint=constraint)
    levels = {"num_inference_steps": num_inference_steps, "timesteps": timesteps, "sigmas": sigmas}
    if all(value is None for value in levels.values()):
        levels["timesteps"] = editing_timesteps(scheduler.num_train_timesteps)
    state = scheduler.set_timesteps(**levels)
    known = constraint(jnp.zeros(tuple(shape), dtype))
    start = {
        "state": state,
        "init": _noised(key, scheduler, state, known, first_index),
        "first_index": first_index,
    }
    return sample(
        key,
        apply_fn,
        params,
        scheduler,
        shape,
        constrain=constraint,
        dtype=dtype,
        **start,
        **options,
    )


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
    """Makes a picture of a sketch: noise of level `sigmas[0]` on `image`, then `restore` (SDEdit, Meng et al. 2022).

    The higher the first level, the freer the model. `image` is `[B, ...]` floats; options such as `constrain` are
    those of `cmjax.sample`, and so is what is returned.
    """
    noisy = _noised(
        key,
        scheduler,
        scheduler.set_timesteps(sigmas=sigmas),
        as_floats("image", image),
        first_index,
    )
    return restore(
        key, apply_fn, params, scheduler, noisy, sigmas, first_index=first_index, **options
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
    """Removes noise in several steps: `denoise` at `sigmas[0]`, then noise of each lower level, removed in turn.

    `noisy` is `[B, ...]` floats, clean samples plus noise of standard deviation `sigmas[0]`; options such as
    `constrain` are those of `cmjax.sample`, and so is what is returned.
    """
    x = as_floats("noisy", noisy)
    return sample(
        key, apply_fn, params, scheduler, x.shape, sigmas=sigmas, init=x, dtype=x.dtype, **options
    )


def denoise(
    apply_fn: ApplyFn,
    params: Any,
    scheduler: CMStochasticIterativeScheduler,
    noisy: ArrayLike,
    sigma: Any,
    *,
    cond: Mapping[str, Any] | None = None,
) -> jax.Array:
    """Removes noise in one network call: `f(noisy, sigma)`, clipped if the scheduler clips.

    `noisy` is `[B, ...]` floats; `sigma` is the standard deviation of its noise, a number or one per sample `[B]`;
    `cond` is as for `cmjax.sample`.

    Raises:
        ValueError: for levels outside `[sigma_min, sigma_max]` or of another shape.
    """
    x = as_floats("noisy", noisy)
    if np.shape(sigma) not in ((), x.shape[:1]):
        raise ValueError(
            f"sigma must be a number or one per sample {x.shape[:1]}, got shape {np.shape(sigma)}"
        )
    known = concrete(sigma)
    if known is not None:
        scheduler.set_timesteps(
            sigmas=np.unique(known.astype(np.float32))[::-1]
        )  # raises for levels out of range
    levels = jnp.broadcast_to(jnp.asarray(sigma).astype(jnp.float32), x.shape[:1])
    x0 = consistency_function(apply_fn, params, scheduler, x, levels, **(cond or {}))
    return jnp.clip(x0, -1, 1) if scheduler.clip_denoised else x0


def interpolate(
    apply_fn: ApplyFn,
    params: Any,
    scheduler: CMStochasticIterativeScheduler,
    first: ArrayLike,
    second: ArrayLike,
    fractions: Any,
    *,
    cond: Mapping[str, Any] | None = None,
) -> jax.Array:
    """Makes the samples `[B, ...]` at `fractions` `[B]` of the way between two one-step samples, one call each.

    `first` and `second` are their standard normal noises `[...]`: that of sample *i* of a key is
    `cmjax.random.level_noise(cmjax.random.sample_keys(key, 1, i), 0, (1, ...))[0]`. `cond` is as for `cmjax.sample`.

    Raises:
        ValueError: for noises of different shapes, or fractions that are not a list.
    """
    if np.ndim(fractions) != 1:
        raise ValueError(f"fractions must be a list of numbers in [0, 1], got {fractions!r}")
    a, b = as_floats("first", first), as_floats("second", second)
    noise = jax.vmap(slerp, in_axes=(None, None, 0))(a, b, jnp.asarray(fractions))
    sigma = scheduler.init_noise_sigma
    return denoise(apply_fn, params, scheduler, combine((sigma, noise)), sigma, cond=cond)


def slerp(first: jax.Array, second: jax.Array, fraction: ArrayLike) -> jax.Array:
    """Returns `(sin((1 - a) psi) first + sin(a psi) second) / sin psi`, psi being the angle between the arrays.

    Keeps normal noise normal (Song et al. 2023, appendix D). Straight for parallel arrays, where it would be 0 / 0.
    """
    check_shapes(first=first, second=second)
    u, v = (jnp.ravel(at_least_float32(x)) for x in (first, second))
    cosine = jnp.sum(u * v) / jnp.sqrt(jnp.sum(jnp.square(u)) * jnp.sum(jnp.square(v)))
    parallel = jnp.abs(cosine) > 1 - 1e-6
    psi = jnp.arccos(jnp.where(parallel, 0, cosine))

    def weight(a):
        return jnp.where(parallel, a, jnp.sin(a * psi) / jnp.sin(psi))

    a = jnp.asarray(fraction).astype(u.dtype)
    return combine((weight(1 - a), first), (weight(a), second))


def _noised(key, scheduler, state, image, first_index):
    if not image.ndim:
        raise ValueError("samples must be (B, ...), got shape (); a single one is (1, ...)")
    keys = sample_keys(key, image.shape[0], first_index)
    return scheduler.add_noise(state, image, level_noise(keys, 0, image.shape, image.dtype))


__all__ = [
    "REC601",
    "STROKE_SIGMAS",
    "Constraint",
    "colorize",
    "compose",
    "denoise",
    "edit",
    "editing_timesteps",
    "inpaint",
    "interpolate",
    "observe",
    "restore",
    "slerp",
    "stroke_to_image",
    "super_resolve",
]

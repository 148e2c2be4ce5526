"""Zero-shot editing (Song et al. 2023, appendix D).

Editing is sampling under a constraint, or from another start than noise. `edit` is Algorithm 4. The
functions of `cmjax.constraints` can also be imported from here.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from cmjax.arrays import (
    ApplyFn,
    as_floats,
    as_reals,
    as_samples,
    at_least_float32,
    check_shapes,
    combine,
    floating_dtype,
    known_reals,
)
from cmjax.configs import is_int, shown
from cmjax.constraints import (
    REC601,
    Constraint,
    as_image,
    check_callable,
    colorize,
    compose,
    inpaint,
    observe,
    super_resolve,
)
from cmjax.networks import num_classes, parse_cond
from cmjax.parametrization import consistency_function
from cmjax.random import level_noise, sample_keys
from cmjax.sampling import check_guided, check_scheduler, sample
from cmjax.schedulers.base import Scheduler
from cmjax.schedulers.checks import check_sample_shape
from cmjax.schedulers.consistency import CMStochasticIterativeScheduler

# Appendix D's levels for LSUN Bedroom 256: indices 16 and 20 of the grid of N = 40.
STROKE_SIGMAS = (5.38, 2.24)


def editing_timesteps(num_train_timesteps: int) -> np.ndarray:
    """Returns the paper's levels for constrained editing: indices `[N-2, ..., 0]`.

    Appendix D uses all N levels of the training grid, N = 40. The last one is sigma_min, where f is
    the identity, so N - 1 network calls remain. OpenAI's CIFAR-10 editing notebook has the same
    number for its N = 18; their PyTorch code takes the levels as an argument without a default.

    Args:
        num_train_timesteps: number N of levels of the training grid.

    Raises:
        ValueError: for fewer than 2 levels.
    """
    if not is_int(num_train_timesteps, 2, 1_000_000):
        raise ValueError(
            "num_train_timesteps must be an integer of at least 2, and at most a million, "
            f"got {shown(num_train_timesteps)}"
        )

    # Indices count from the noisy end, so the list is that of diffusers' `timesteps`, descending.
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

    Sampling starts from the constraint's result for zeros (an image with zeros where nothing is
    known), plus noise of the first level. The constraint is applied to every x0 estimate after
    clipping, so that it may move results out of [-1, 1].

    Example:
        >>> import cmjax, jax
        >>> import jax.numpy as jnp
        >>> from cmjax.editing import edit, inpaint
        >>> scheduler = cmjax.CMStochasticIterativeScheduler()
        >>> def apply_fn(params, x, t):
        ...     return params * x
        >>> keep_first = inpaint(jnp.array([0.5, 0.0]), jnp.array([1.0, 0.0]))
        >>> x0 = edit(
        ...     jax.random.key(0), apply_fn, 0.1, scheduler, keep_first, (3, 2), sigmas=[80.0, 2.0]
        ... )
        >>> x0[:, 0].tolist()
        [0.5, 0.5, 0.5]

    Args:
        key: one key, of which sample *i* uses `fold_in(key, first_index + i)`, or one key per
            sample `[B]`.
        apply_fn: `(params, x, t, **cond) -> model_output`.
        params: of the network.
        scheduler: the sampler.
        constraint: x0 -> x0.
        shape: of the result, `(B, ...)`.
        num_inference_steps: number of steps. Give at most one of this and the next two arguments;
            without any the levels are the paper's `editing_timesteps`, N - 1 network calls.
        timesteps: the levels as training indices.
        sigmas: the levels as noise levels.
        first_index: global index of the first sample of this batch.
        dtype: of the samples.
        **options: `cond`, `return_trajectory` and `callback` of `cmjax.sample`.

    Returns:
        The samples, `dtype[shape]`; with `return_trajectory` the pair (samples, trajectory).

    Raises:
        ValueError: for an invalid argument, as far as it can be detected while tracing.
    """
    check_callable(constraint=constraint)
    check_scheduler(scheduler)
    shape = check_sample_shape(shape)
    dtype = floating_dtype("dtype", dtype)

    # The levels of the run, by default the paper's.
    levels = {
        "num_inference_steps": num_inference_steps,
        "timesteps": timesteps,
        "sigmas": sigmas,
    }
    if all(value is None for value in levels.values()):
        if not isinstance(scheduler, CMStochasticIterativeScheduler):
            raise ValueError(
                "give num_inference_steps, timesteps or sigmas: the paper's levels are those of a "
                f"CMStochasticIterativeScheduler, and scheduler is a {type(scheduler).__name__}"
            )
        levels["timesteps"] = editing_timesteps(scheduler.num_train_timesteps)
    state = scheduler.set_timesteps(**levels)

    # Algorithm 4, lines 2 and 3: the known part of the image, `[B, ...]`, plus noise.
    known = constraint(jnp.zeros(shape, dtype))
    return sample(
        key,
        apply_fn,
        params,
        scheduler,
        shape,
        state=state,
        init=_noised(key, scheduler, state, known, first_index),
        first_index=first_index,
        constrain=constraint,
        dtype=dtype,
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
    """Turns a sketch into an image (SDEdit, Meng et al. 2022).

    Adds noise of level `sigmas[0]` to the sketch, then calls `restore`. The higher the first level,
    the more the model may change.

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

    # Only for `add_noise` at the first level; `restore` makes the same state again.
    state = scheduler.set_timesteps(sigmas=sigmas)
    noisy = _noised(key, scheduler, state, image, first_index)
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
    """Removes noise in several steps.

    The network removes the noise of `sigmas[0]`; then noise of each lower level is added and
    removed in turn.

    Args:
        key: one key, or one per sample `[B]`, as for `cmjax.sample`.
        apply_fn: `(params, x, t, **cond) -> model_output`.
        params: of the network.
        scheduler: the sampler.
        noisy: clean samples plus noise of standard deviation `sigmas[0]`, floats `[B, ...]`.
        sigmas: noise levels, descending.
        **options: of `cmjax.sample`, such as `cond` and `constrain`.

    Returns:
        What `cmjax.sample` returns.
    """
    # Noise of the first level is in the samples already, so they replace the initial noise.
    x = as_samples("noisy", as_image("noisy", noisy))
    if sigmas is None:
        raise ValueError("sigmas must be a list of noise levels, got None")
    return sample(
        key,
        apply_fn,
        params,
        scheduler,
        x.shape,
        sigmas=sigmas,
        init=x,
        dtype=x.dtype,
        **options,
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

    Args:
        apply_fn: `(params, x, t, **cond) -> model_output`.
        params: of the network.
        scheduler: the sampler.
        noisy: clean samples plus noise, floats `[B, ...]`.
        sigma: the standard deviation of the noise, a number or one per sample `[B]`.
        cond: per-sample conditioning, as for `cmjax.sample`.

    Returns:
        The samples, `[B, ...]`, in the dtype of `noisy`.

    Raises:
        ValueError: for levels outside `[sigma_min, sigma_max]` or of another shape.
    """
    check_scheduler(scheduler)
    check_guided(apply_fn, scheduler, 1)
    x = as_samples("noisy", as_image("noisy", noisy))
    levels = as_reals("sigma", sigma).astype(jnp.float32)
    if levels.shape not in ((), x.shape[:1]):
        raise ValueError(
            f"sigma must be a number or one per sample {x.shape[:1]}, got shape {levels.shape}"
        )

    # The scheduler's own check raises for levels out of range: it takes them in descending order.
    known = known_reals("sigma", sigma)
    if known is not None:
        scheduler.set_timesteps(sigmas=np.unique(known.astype(np.float32))[::-1])

    # f(noisy, sigma), with one level per sample, f32[B].
    levels = jnp.broadcast_to(levels, x.shape[:1])
    conditioning = parse_cond(cond, x.shape[0], num_classes(apply_fn))
    x0 = consistency_function(apply_fn, params, scheduler, x, levels, **conditioning)
    return scheduler.bound(x0)


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
    """Interpolates between two one-step samples, with one network call per result.

    Args:
        apply_fn: `(params, x, t, **cond) -> model_output`.
        params: of the network.
        scheduler: the sampler.
        first: the standard normal noise `[...]` of one sample. That of sample *i* of a key is
            `cmjax.random.level_noise(cmjax.random.sample_keys(key, 1, i), 0, (1, ...))[0]`.
        second: the noise of the other sample.
        fractions: `[B]`, from 0 for the first sample to 1 for the second.
        cond: per-sample conditioning, as for `cmjax.sample`.

    Returns:
        The samples, `[B, ...]`.

    Raises:
        ValueError: for noise of different shapes, or fractions that are not a list of numbers in
            [0, 1].
    """
    check_scheduler(scheduler)
    weights = as_reals("fractions", fractions)
    known = known_reals("fractions", fractions)
    inside = known is None or np.all((known >= 0) & (known <= 1))
    if weights.ndim != 1 or not weights.size or not inside:
        raise ValueError(
            f"fractions must be a list of numbers in [0, 1], got {shown(fractions)}"
        )

    # The noise of the results, `[B, ...]`: a straight line between two would have less variance.
    first = as_floats("first", first)
    second = as_floats("second", second)
    noise = jax.vmap(slerp, in_axes=(None, None, 0))(first, second, weights)

    # One-step sampling: f(sigma_max z, sigma_max).
    sigma = scheduler.init_noise_sigma
    return denoise(apply_fn, params, scheduler, combine((sigma, noise)), sigma, cond=cond)


def slerp(first: jax.Array, second: jax.Array, fraction: ArrayLike) -> jax.Array:
    """Interpolates spherically, which keeps normal noise normal (Song et al. 2023, appendix D).

    `(sin((1 - a) psi) first + sin(a psi) second) / sin psi`, where psi is the angle between the
    arrays. Parallel arrays, for which this would be 0 / 0, are interpolated linearly.

    Args:
        first: any array.
        second: an array of the same shape.
        fraction: a, a number: 0 for the first and 1 for the second.

    Raises:
        ValueError: for arrays that hold no floats or differ in shape, or a fraction that is no
            number.
    """
    first = as_floats("first", first)
    second = as_floats("second", second)
    a = as_reals("fraction", fraction)
    known = known_reals("fraction", fraction)
    if a.ndim or not (known is None or np.isfinite(known)):
        raise ValueError(f"fraction must be one finite number, got {shown(fraction)}")
    check_shapes(first=first, second=second)

    # The angle is that between all values of the arrays as two long vectors.
    u = at_least_float32(first)
    v = at_least_float32(second)

    # For parallel arrays any angle will do, since `weight` does not use it; pi / 2 keeps gradients
    # finite there, too.
    # An array of zeros has no direction, and counts as parallel too.
    lengths = jnp.sqrt(_positive(jnp.sum(jnp.square(u)))) * jnp.sqrt(
        _positive(jnp.sum(jnp.square(v)))
    )
    cosine = jnp.sum(u * v) / lengths
    is_zero = ~(jnp.any(u != 0) & jnp.any(v != 0))
    parallel = (jnp.abs(cosine) > 1 - 1e-6) | is_zero
    psi = jnp.arccos(jnp.where(parallel, 0, cosine))

    # The coefficient of an array: sin(a psi) / sin(psi), or a itself for parallel arrays.
    def weight(a):
        return jnp.where(parallel, a, jnp.sin(a * psi) / jnp.sin(psi))

    a = a.astype(u.dtype)
    return combine((weight(1 - a), first), (weight(a), second))


def _positive(square: jax.Array) -> jax.Array:
    """The number, or 1 in place of 0, whose root has no gradient."""
    return jnp.where(square > 0, square, 1)


def _noised(key, scheduler, state, image, first_index):
    """The images with noise of the first level, that of the samples of this key and index."""
    image = as_samples("samples", image)

    # Level 0 is the initial noise; `sample` draws from level 1 on, so none is used twice.
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

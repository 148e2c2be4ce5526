"""Sampling under a constraint: by projection of x0 or of the noise."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from cmjax.arrays import ApplyFn, floating_dtype, known_reals
from cmjax.configs import did_you_mean, is_int, shown
from cmjax.constraints import Constraint
from cmjax.constraints.checks import check_callable
from cmjax.editing.latents import latent_shape, on_latents, pictures_of
from cmjax.editing.posterior import sample_posterior
from cmjax.editing.strokes import noised
from cmjax.sampling import sample
from cmjax.sampling_inputs import check_scheduler
from cmjax.schedulers.checks import apply_constraint, check_sample_shape
from cmjax.schedulers.consistency import CMStochasticIterativeScheduler

METHODS = ("projection", "posterior")

# Options besides the arguments that are written out: of both methods, and of "posterior" alone.
_OPTIONS = ("cond", "return_trajectory", "callback")
_POSTERIOR_OPTIONS = ("sigma_y", "iterations", "candidates")

# The default levels of "posterior": the highest, then nine in equal ratios, from 10 to 0.2 times
# the data's standard deviation. At higher levels f decides little of a sample, and at lower ones it
# changes little.
_POSTERIOR_LEVELS = 10
_HIGHEST_SHARE = 10.0
_LOWEST_SHARE = 0.2


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
    method: str = "projection",
    num_inference_steps: int | None = None,
    timesteps: Any = None,
    sigmas: Any = None,
    first_index: int | jax.Array = 0,
    dtype: DTypeLike = jnp.float32,
    autoencoder: Any = None,
    **options: Any,
) -> Any:
    """Samples under a constraint.

    * `method="projection"` is Algorithm 4 of Song et al. 2023. Sampling starts from the
      constraint's result for zeros (an image with zeros where nothing is known), plus noise of the
      first level. The constraint is applied to every x0 estimate after clipping, so it may move
      results out of [-1, 1]. The results do not have the distribution p(x0 | known).
    * `method="posterior"` samples from p(x0 | known), for a consistency model and a linear
      constraint: exactly for normal data, approximately for others. It moves the noise as little as
      is needed for the network to make what is known, by derivatives of the network.

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
        method: "projection" or "posterior".
        num_inference_steps: number of steps. Give at most one of this and the next two arguments;
            without any the levels are the paper's `editing_timesteps`, N - 1 network calls; with
            `method="posterior"` `sigma_max`, and nine from `10 sigma_data` to `0.2 sigma_data`.
        timesteps: the levels as training indices.
        sigmas: the levels as noise levels.
        first_index: global index of the first sample of this batch.
        dtype: of the samples.
        autoencoder: of a model that samples latents, its `cmjax.Autoencoder`: constraint, shape and
            result are then of pictures, and what is known of the pixels is exact. By projection
            only `inpaint` can be kept: a latent is free if any of its pixels is. None for pictures
            that are sampled themselves, and for a constraint on latents.
        **options: `cond`, `return_trajectory` and `callback` of `cmjax.sample`. With
            `method="posterior"` the steps are `cmjax.editing.PosteriorStep`, and there are also
            `sigma_y`, the standard deviation of normal noise in the known values, a number or one
            per sample `[B]` (0: they are exact), `iterations`, the number of products with the
            network's Jacobian and with its transpose in each step (1 to 100, by default 3), and
            `candidates`, the number of draws of noise in each step, of which the one nearest to
            what is known is moved (1 to 10,000, by default 16). With more of them, each a network
            call, distinct results come up more nearly as often as they should.

    Returns:
        The samples, `dtype[shape]`; with `return_trajectory` the pair (samples, trajectory), of
        which the latter is of latents if the samples are decoded.

    Raises:
        ValueError: for an invalid argument, as far as it can be detected while tracing.
        TypeError: for an option that there is not.
    """
    check_callable(constraint=constraint)
    check_scheduler(scheduler)
    shape = check_sample_shape(shape)
    dtype = floating_dtype("dtype", dtype)
    if not isinstance(method, str) or method not in METHODS:
        raise ValueError(f"method must be one of {list(METHODS)}, got {shown(method)}")

    _check_options(options, method)

    # The noise levels of the run, by default those of the method.
    levels: dict[str, Any] = {
        "num_inference_steps": num_inference_steps,
        "timesteps": timesteps,
        "sigmas": sigmas,
    }
    if all(value is None for value in levels.values()):
        levels = _default_levels(scheduler, method)
    state = scheduler.set_timesteps(**levels)
    run = sample_posterior if method == "posterior" else _project

    # What is sampled, and the constraint on it.
    own = constraint
    own_shape = shape
    if autoencoder is not None:
        own_shape = latent_shape(autoencoder, shape)
        own = on_latents(autoencoder, constraint, shape, method)
    arguments = (key, apply_fn, params, scheduler, own, own_shape, state)
    result = run(*arguments, first_index=first_index, dtype=dtype, **options)
    if autoencoder is None:
        return result

    # Of known values with noise only soft edges are blended.
    exact = _is_zero(options.get("sigma_y", 0.0))
    if not options.get("return_trajectory", False):
        return pictures_of(autoencoder, result, constraint, exact)
    samples, trajectory = result
    return pictures_of(autoencoder, samples, constraint, exact), trajectory


def _is_zero(sigma_y):
    """Whether measurements are known to have no noise, as of `sample_posterior`."""
    known = known_reals("sigma_y", sigma_y)
    return known is not None and bool(np.all(known == 0))


def _check_options(options, method):
    """Raises an error for an option that a method of editing does not have."""
    for name in options:
        if name in _POSTERIOR_OPTIONS and method != "posterior":
            raise ValueError(f'{name} is an option of method="posterior"')
        if name not in _OPTIONS and name not in _POSTERIOR_OPTIONS:
            hint = did_you_mean(name, [*_OPTIONS, *_POSTERIOR_OPTIONS])
            raise TypeError(f"edit has no option {name!r}{hint}")


def _default_levels(scheduler, method):
    """The default levels of a method, as arguments of `set_timesteps`."""
    if not isinstance(scheduler, CMStochasticIterativeScheduler):
        raise ValueError(
            "give num_inference_steps, timesteps or sigmas: the default levels are those of a "
            f"CMStochasticIterativeScheduler, and scheduler is a {type(scheduler).__name__}"
        )
    if method == "posterior":
        return {"sigmas": _posterior_sigmas(scheduler)}
    return {"timesteps": editing_timesteps(scheduler.num_train_timesteps)}


def _posterior_sigmas(scheduler):
    """The default levels of "posterior", f64[10]."""
    low, high = scheduler.sigma_range
    second = min(_HIGHEST_SHARE * scheduler.sigma_data, high / 2)
    lowest = max(_LOWEST_SHARE * scheduler.sigma_data, low)

    # If the data's standard deviation is outside of the model's range, all ratios are equal.
    if lowest >= second:
        return np.geomspace(high, low, _POSTERIOR_LEVELS)
    return np.append(high, np.geomspace(second, lowest, _POSTERIOR_LEVELS - 1))


def _project(
    key,
    apply_fn,
    params,
    scheduler,
    constraint,
    shape,
    state,
    *,
    first_index,
    dtype,
    **options,
):
    """Algorithm 4: the loop of `cmjax.sample` with a constraint."""
    # Algorithm 4, lines 2 and 3: the known part of the image, `[B, ...]`, plus noise.
    known = apply_constraint(constraint, jnp.zeros(shape, dtype))
    return sample(
        key,
        apply_fn,
        params,
        scheduler,
        shape,
        state=state,
        init=noised(key, scheduler, state, known, first_index),
        first_index=first_index,
        constrain=constraint,
        dtype=dtype,
        **options,
    )

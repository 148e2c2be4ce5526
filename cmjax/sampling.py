"""The sampling loop (Song et al. 2023, Algorithm 1): one `lax.scan` over any scheduler."""

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypedDict, Unpack, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from cmjax.arrays import (
    ApplyFn,
    as_array,
    as_floats,
    as_pytree,
    concrete,
    floating_dtype,
    hashable,
    is_tracing,
)
from cmjax.configs import LARGEST, is_int, shown
from cmjax.meshes import as_returned, divided_alike
from cmjax.networks import check_network, is_guided, num_classes, parse_cond
from cmjax.random import as_key, sample_index, sample_keys
from cmjax.schedulers.base import (
    Constraint,
    Scheduler,
    SchedulerState,
    StepOutput,
)
from cmjax.schedulers.checks import check_constraint, check_sample_shape

# Compiled loops to keep, for calls outside of `jax.jit`. Bounded, since each holds its executable.
_PROGRAMS = 64


class SampleOptions(TypedDict, total=False):
    """The options of `sample` that say nothing of what it returns, for type checkers."""

    num_inference_steps: int | None
    timesteps: ArrayLike | Sequence[float] | None
    sigmas: ArrayLike | Sequence[float] | None
    state: SchedulerState | None
    cond: Mapping[str, Any] | None
    init: ArrayLike | None
    constrain: Constraint | None
    first_index: int | jax.Array
    callback: Callable[[Any, StepOutput], None] | None
    dtype: DTypeLike


@overload
def sample(
    key: jax.Array,
    apply_fn: ApplyFn,
    params: Any,
    scheduler: Scheduler,
    shape: Sequence[int],
    *,
    return_trajectory: Literal[False] = False,
    **options: Unpack[SampleOptions],
) -> jax.Array: ...


@overload
def sample(
    key: jax.Array,
    apply_fn: ApplyFn,
    params: Any,
    scheduler: Scheduler,
    shape: Sequence[int],
    *,
    return_trajectory: Literal[True],
    **options: Unpack[SampleOptions],
) -> tuple[jax.Array, StepOutput]: ...


@overload
def sample(
    key: jax.Array,
    apply_fn: ApplyFn,
    params: Any,
    scheduler: Scheduler,
    shape: Sequence[int],
    *,
    return_trajectory: bool,
    **options: Unpack[SampleOptions],
) -> jax.Array | tuple[jax.Array, StepOutput]: ...


def sample(
    key: jax.Array,
    apply_fn: ApplyFn,
    params: Any,
    scheduler: Scheduler,
    shape: Sequence[int],
    *,
    num_inference_steps: int | None = None,
    timesteps: ArrayLike | Sequence[float] | None = None,
    sigmas: ArrayLike | Sequence[float] | None = None,
    state: SchedulerState | None = None,
    cond: Mapping[str, Any] | None = None,
    init: ArrayLike | None = None,
    constrain: Constraint | None = None,
    first_index: int | jax.Array = 0,
    return_trajectory: bool = False,
    callback: Callable[[Any, StepOutput], None] | None = None,
    dtype: DTypeLike = jnp.float32,
) -> jax.Array | tuple[jax.Array, StepOutput]:
    """Generates a batch of samples; a pure function that can be jitted, vmapped and sharded.

    Outside of `jax.jit` it compiles its loop, and reuses the program in later calls with the same
    `apply_fn`, scheduler, shapes and options. Values that `apply_fn` closes over are constants of
    that program; pass what changes as `params` or `cond`.

    Example:
        >>> import cmjax, jax
        >>> scheduler = cmjax.CMStochasticIterativeScheduler()
        >>> def apply_fn(params, x, t):
        ...     return params * x
        >>> x0 = cmjax.sample(
        ...     jax.random.key(0), apply_fn, 0.1, scheduler, (4, 2), num_inference_steps=2
        ... )
        >>> x0.shape
        (4, 2)

    Args:
        key: one key, of which sample *i* uses `fold_in(key, first_index + i)`, or one key per
            sample `[B]`.
        apply_fn: `(params, x, t, **cond) -> model_output`, with x `[B, ...]` and t f32[B].
        params: of the network.
        scheduler: the sampler.
        shape: of the result, `(B, ...)`; images are `(B, H, W, C)`.
        num_inference_steps: number of steps. Give at most one of this and the next three arguments;
            without any of them one step is taken.
        timesteps: the noise levels as the scheduler's own timesteps: training indices, times or
            angles, as its docstring says.
        sigmas: the noise levels themselves.
        state: the noise levels as a state at its first step, from `scheduler.set_timesteps`.
        cond: conditioning, passed to `apply_fn` as keyword arguments, such as `class_labels`:
            pytrees of arrays whose leading axis is B, or None.
        init: samples already at the first noise level, `[B, ...]`, instead of noise.
        constrain: x0 -> x0, applied to every x0 estimate (see `cmjax.constraints`).
        first_index: global index of the first sample of this batch, from 0 to 2^32 - 1.
        return_trajectory: also return `StepOutput(prev_sample, denoised)` of every step,
            `[N, B, ...]`.
        callback: called on the host as `callback(step_index, StepOutput)` after every step.
        dtype: of the samples; noise levels and the network's time stay float32.

    Returns:
        The samples, `dtype[shape]`; with `return_trajectory` the pair (samples, trajectory).

    Raises:
        ValueError: for an invalid argument, as far as it can be detected while tracing.
    """
    # Check all arguments here, where the caller's names are known.
    shape = check_sample_shape(shape)
    dtype = floating_dtype("dtype", dtype)
    check_network(apply_fn)
    check_scheduler(scheduler)
    check_constraint(constrain)
    check_options(return_trajectory, callback)
    levels = {
        "num_inference_steps": num_inference_steps,
        "timesteps": timesteps,
        "sigmas": sigmas,
    }
    state, steps = _parse_levels(scheduler, levels, state)
    num_steps = steps if state is None else state.num_steps
    if warning := check_guided(apply_fn, scheduler, num_steps):
        warnings.warn(warning, stacklevel=2)

    # What the program takes as data: other values never compile again.
    inputs = {
        "key": as_key(key),
        "params": params,
        "state": state,
        "cond": parse_cond(cond, shape[0], num_classes(apply_fn)),
        "init": _parse_init(init, shape, dtype),
        "constrain": None if constrain is None else as_pytree(constrain),
        "first_index": sample_index(first_index, shape[0]),
    }

    # What it is compiled for; see `_compiled`.
    options = (steps, shape, dtype, return_trajectory, callback)
    structure = jax.tree.structure(inputs["constrain"])
    compiled = _compiled
    if is_tracing() or not hashable(apply_fn, scheduler, options):
        # Nothing is kept: under a trace, apply_fn may close over values of that trace.
        compiled = _compiled.__wrapped__
    program = compiled(apply_fn, scheduler, *options, structure)
    try:
        return program(**inputs)
    except (TypeError, ValueError, OverflowError):
        # Looked at only now: flattening the parameters of a network takes a while at every call.
        check_params(params)
        raise


@functools.lru_cache(_PROGRAMS, typed=True)
def _compiled(
    apply_fn, scheduler, steps, shape, dtype, return_trajectory, callback, structure
):
    """The jitted loop; inlined, so that under the caller's own `jit` it is part of that program."""
    # The constraint's tree structure holds its function. As part of the cache's key it lets a
    # program be dropped with the constraint that it was compiled for.
    del structure

    def loop(key, params, state, cond, init, constrain, first_index):
        keys = sample_keys(key, shape[0], first_index)

        # What is divided over devices divides all of a sample: networks may `vmap` over it.
        keys, init, cond = divided_alike((keys, init, cond))

        # The levels of the run, and the sample (B, ...) that it starts from.
        if state is None:
            state = scheduler.set_timesteps(steps)
        if init is None:
            start = scheduler.init(keys, state, shape, dtype)
        else:
            start = scheduler.prepare(state, init), init

        # One network call; the noise of a step is that of its level, whatever came before.
        def step(carry, _):
            state, x = carry
            model_output = scheduler.predict(apply_fn, params, state, x, **cond)
            next_state, output = scheduler.step(
                keys, state, model_output, x, constrain=constrain
            )
            if callback is not None:
                jax.debug.callback(callback, state.step_index, output)
            kept = output if return_trajectory else None
            return (next_state, output.prev_sample), kept

        # On a mesh with explicit axes a carry must be divided over devices as it is returned.
        start = as_returned(lambda carry: step(carry, None)[0], start)

        # scan stacks what every step returns: [N, B, ...] for a trajectory.
        (_, x), trajectory = jax.lax.scan(step, start, length=state.num_steps)
        return (x, trajectory) if return_trajectory else x

    return jax.jit(loop, inline=True)


def check_scheduler(scheduler: Any) -> None:
    """Raises ValueError unless `scheduler` is one."""
    if hasattr(scheduler, "num_vec_classes"):
        raise ValueError(
            f"scheduler {type(scheduler).__name__} samples categories; call "
            "cmjax.categorical.sample"
        )
    if not isinstance(scheduler, Scheduler):
        raise ValueError(
            "scheduler must be a scheduler, such as cmjax.CMStochasticIterativeScheduler(), "
            f"got {shown(scheduler)}"
        )


def check_guided(apply_fn: ApplyFn, scheduler: Scheduler, num_steps: int | None) -> str:
    """Checks that a guided network is not read as a consistency function.

    Returns:
        What to warn of if it is, in several calls; "" if all is well.

    Raises:
        ValueError: if it is, in one call.
    """
    if scheduler.solves_ode or not is_guided(apply_fn):
        return ""
    reads = (
        f"apply_fn is guided, but {type(scheduler).__name__} reads consistency functions"
    )
    way_out = (
        "guide a denoiser under a solver such as EDMHeunScheduler, or the teacher that the "
        "network is distilled from"
    )
    if num_steps == 1:
        raise ValueError(
            f"{reads}: extrapolating one in a single call throws samples far from the data; "
            f"{way_out}"
        )
    return f"{reads}: extrapolating one is only an approximation of guidance; {way_out}"


def check_params(params: Any) -> None:
    """Raises ValueError for parameters that are no pytree of arrays."""
    for leaf in jax.tree.leaves(params):
        if isinstance(leaf, jax.Array | float) or is_int(leaf, -LARGEST, LARGEST):
            continue
        if not isinstance(leaf, np.ndarray | np.generic | bool | complex):
            raise ValueError(f"params must be a pytree of arrays, got a leaf {shown(leaf)}")
        if as_array("params", leaf).dtype != np.asarray(leaf).dtype:
            raise ValueError(f"params must be arrays of JAX's dtypes, got {shown(leaf)}")


def check_options(return_trajectory: Any, callback: Any) -> None:
    """Raises ValueError for options of the loop that are of another kind."""
    if not isinstance(return_trajectory, bool | np.bool_):
        raise ValueError(
            f"return_trajectory must be True or False, got {shown(return_trajectory)}"
        )
    if callback is not None and not callable(callback):
        raise ValueError(
            f"callback must be a function (step_index, StepOutput), got {shown(callback)}"
        )


def _parse_levels(scheduler, levels, state):
    """The pair (state, number of steps), one of which is None, from at most one argument."""
    given = {name: value for name, value in levels.items() if value is not None}
    if len(given) + (state is not None) > 1:
        names = list(given)
        if state is not None:
            names.append("state")
        raise ValueError(
            f"give at most one of num_inference_steps, timesteps, sigmas and state, got {names}"
        )
    if state is not None:
        scheduler.check_state(state)
    else:
        # A number of steps is static, so its table can be computed within the compiled program.
        if not given or "num_inference_steps" in given:
            steps = given.get("num_inference_steps", 1)
            return None, int(steps) if isinstance(steps, np.integer) else steps
        ((name, value),) = given.items()
        return _state_of_levels(scheduler, name, value), None

    # The loop has as many steps as the state has levels; a state under way would end early.
    index = concrete(state.step_index)
    if index is not None and index != 0:
        raise ValueError(
            f"state is at step {index}, but sample() takes all steps; "
            "pass a state from set_timesteps"
        )
    return state, None


def _state_of_levels(scheduler, name, value):
    """The state of levels that were written down, kept for the next call where they are known."""
    known = concrete(as_array(name, value))
    if known is None or known.ndim != 1 or is_tracing() or not hashable(scheduler):
        return scheduler.set_timesteps(**{name: value})
    return _known_state(scheduler, name, known.dtype.str, tuple(known.tolist()))


@functools.lru_cache(_PROGRAMS)
def _known_state(scheduler, name, dtype, values):
    """Made eagerly, an operation at a time: a hundred times as slow as to look it up."""
    return scheduler.set_timesteps(**{name: np.array(values, dtype)})


def _parse_init(init, shape, dtype):
    """The given first samples, `dtype[shape]`, or None."""
    if init is None:
        return None
    x = as_floats("init", init).astype(dtype)
    if x.shape != shape:
        raise ValueError(f"init has shape {x.shape}, but shape={shape}")
    return x

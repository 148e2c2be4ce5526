"""The sampling loop (Song et al. 2023, Algorithm 1): one `lax.scan` over any scheduler."""

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypedDict, Unpack, overload

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from cmjax.arrays import ApplyFn, floating_dtype
from cmjax.meshes import batch_sharded_alike, carry_as_returned, check_devices
from cmjax.networks import check_network, num_classes, parse_cond
from cmjax.random import as_key, sample_index, sample_keys
from cmjax.sampling_inputs import (
    check_guided,
    check_outputs,
    check_params,
    check_scheduler,
    parse_init,
    requested_levels,
)
from cmjax.schedulers.base import (
    Constraint,
    Scheduler,
    SchedulerState,
    StepOutput,
)
from cmjax.schedulers.checks import check_constraint, check_sample_shape
from cmjax.tracing import as_input, cached_unless_tracing, plain_or_pytree

# Number of compiled loops to keep, for calls outside of `jax.jit`; each holds its executable.
_PROGRAMS = 64


class SampleOptions(TypedDict, total=False):
    """The options of `sample` for type checkers, without `return_trajectory`.

    That one decides the type of the result, so the overloads have it.
    """

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
        shape: of the result, `(B, ...)`; images are `(B, H, W, C)`. Sizes may be symbols of
            `jax.export`.
        num_inference_steps: number of steps. Give at most one of this and the next three arguments;
            without any of them one step is taken.
        timesteps: the noise levels as the scheduler's own timesteps: training indices, times or
            angles, as its docstring says.
        sigmas: the noise levels themselves.
        state: the noise levels as a state at its first step, from `scheduler.set_timesteps`.
        cond: conditioning, passed to `apply_fn` as keyword arguments, such as `class_labels`:
            pytrees of arrays whose leading axis is B, or None.
        init: samples already at the first noise level, `[B, ...]`, instead of noise. With churn it
            is the raised level, as in the state.
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
    check_outputs(return_trajectory, callback)
    state, steps = requested_levels(
        scheduler,
        num_inference_steps=num_inference_steps,
        timesteps=timesteps,
        sigmas=sigmas,
        state=state,
    )
    num_steps = steps if state is None else state.num_steps
    warning = check_guided(apply_fn, scheduler, num_steps)
    if warning:
        warnings.warn(warning, stacklevel=2)

    # The data of the program: it is not compiled again for other values.
    plain_constrain, constrain = plain_or_pytree(constrain)
    inputs = {
        "key": as_key(key),
        "params": params,
        "state": state,
        "cond": parse_cond(cond, shape[0], num_classes(apply_fn)),
        "init": parse_init(init, shape, dtype),
        "constrain": constrain,
        "first_index": as_input(sample_index(first_index, shape[0])),
    }

    # What the program is compiled for.
    options = (steps, shape, dtype, return_trajectory, callback)
    program = cached_unless_tracing(
        _compiled, apply_fn, scheduler, *options, plain_constrain
    )
    try:
        return program(**inputs)
    except (TypeError, ValueError, OverflowError):
        # Checked only after a failure, since going through all parameters at every call takes time.
        check_params(params)
        check_devices(inputs)
        raise


@functools.lru_cache(_PROGRAMS, typed=True)
def _compiled(
    apply_fn, scheduler, steps, shape, dtype, return_trajectory, callback, plain_constrain
):
    """The jitted loop; inlined, so that under the caller's own `jit` it is part of that program."""

    def loop(key, params, state, cond, init, constrain, first_index):
        keys = sample_keys(key, shape[0], first_index)

        # A constraint that is a plain function is compiled in; one that holds arrays is data.
        if constrain is None:
            constrain = plain_constrain

        # Networks may `vmap` over samples, which needs all of a sample on the same device.
        keys, init, cond = batch_sharded_alike((keys, init, cond))

        # The noise levels, and the sample (B, ...) at the first of them.
        if state is None:
            state = scheduler.set_timesteps(steps)
        if init is None:
            state, x = scheduler.init(keys, state, shape, dtype)
        else:
            state = scheduler.prepare(state, init)
            x = init

        # One network call and the step that it leads to. `step` draws the noise from the keys and
        # the level alone.
        def body(carry, _):
            state, x = carry
            model_output = scheduler.predict(apply_fn, params, state, x, **cond)
            next_state, output = scheduler.step(
                keys, state, model_output, x, constrain=constrain
            )
            if callback is not None:
                jax.debug.callback(callback, state.step_index, output)
            return (next_state, output.prev_sample), output if return_trajectory else None

        # On a mesh with explicit axes, scan needs its carry divided as `body` returns it.
        start = carry_as_returned(lambda carry: body(carry, None)[0], (state, x))

        # scan stacks the outputs of all steps into a trajectory: [N, B, ...].
        (_, x), trajectory = jax.lax.scan(body, start, length=state.num_steps)
        return (x, trajectory) if return_trajectory else x

    return jax.jit(loop, inline=True)

"""The sampling loop (Song et al. 2023, Algorithm 1): one `lax.scan` over any scheduler."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from cmjax.arrays import ApplyFn, as_pytree, concrete
from cmjax.random import as_key, sample_index, sample_keys
from cmjax.schedulers.base import (
    Constraint,
    Scheduler,
    SchedulerState,
    StepOutput,
    check_sample_shape,
)

_PROGRAMS = 64  # compiled loops to keep, for calls outside of `jax.jit`


def sample(
    key: jax.Array,
    apply_fn: ApplyFn,
    params: Any,
    scheduler: Scheduler,
    shape: Sequence[int],
    *,
    num_inference_steps: int | None = None,
    timesteps: Any = None,
    sigmas: Any = None,
    state: SchedulerState | None = None,
    cond: Mapping[str, Any] | None = None,
    init: ArrayLike | None = None,
    constrain: Constraint | None = None,
    first_index: int | jax.Array = 0,
    return_trajectory: bool = False,
    callback: Callable[[Any, StepOutput], None] | None = None,
    dtype: DTypeLike = jnp.float32,
) -> Any:
    """Generates a batch of samples; a pure function to be jitted, vmapped or sharded as you like.

    Called outside of `jax.jit` it compiles its loop, and keeps the program for the next call with
    the same `apply_fn`, scheduler, shapes and options. What `apply_fn` closes over is fixed then.

    Args:
        key: one key, from which sample *i* draws by `fold_in(key, first_index + i)`, or one per
            sample `[B]`.
        apply_fn: `(params, x, t, **cond) -> model_output`, with x `[B, ...]` and t f32[B].
        params: of the network.
        scheduler: the sampler.
        shape: of the result, `(B, ...)`; images are `(B, H, W, C)`.
        num_inference_steps: number of steps. At most one of this and the next three; none means one
            step.
        timesteps: the levels as what the network is told at each.
        sigmas: the levels as noise levels.
        state: the levels as a state at its first step, from `scheduler.set_timesteps`.
        cond: conditioning, handed to `apply_fn` by name, such as `class_labels`: any pytrees of
            arrays whose leading axis is B; None is passed on as it is.
        init: samples already at the first noise level, `[B, ...]`, instead of noise.
        constrain: x0 -> x0, applied to every x0 estimate (editing).
        first_index: global index of the first sample of this batch, from 0 to 2^32 - 1.
        return_trajectory: also return `StepOutput(prev_sample, denoised)` of every step,
            `[N, B, ...]`.
        callback: called on the host as `callback(step_index, StepOutput)` after every step.
        dtype: of the samples; noise levels and the network's time stay float32.

    Returns:
        The samples, `dtype[shape]`; with `return_trajectory` the pair (samples, trajectory).

    Raises:
        ValueError: for misuse that can be seen while tracing; it names the argument and the way
            out.
    """
    shape = tuple(shape)
    check_sample_shape(shape)
    levels = {"num_inference_steps": num_inference_steps, "timesteps": timesteps, "sigmas": sigmas}
    state, steps = _parse_levels(scheduler, levels, state)
    inputs = {
        "key": as_key(key),
        "params": params,
        "state": state,
        "cond": _parse_cond(cond, shape[0]),
        "init": _parse_init(init, shape, dtype),
        "constrain": None if constrain is None else as_pytree(constrain),
        "first_index": sample_index(first_index),
    }
    options = (steps, shape, np.dtype(dtype), return_trajectory, callback)
    structure = jax.tree.structure(inputs["constrain"])
    try:
        program = _compiled(apply_fn, scheduler, *options, structure)
    except TypeError:  # something that cannot be hashed
        program = _compiled.__wrapped__(apply_fn, scheduler, *options, structure)
    return program(**inputs)


@functools.lru_cache(_PROGRAMS, typed=True)
def _compiled(apply_fn, scheduler, steps, shape, dtype, return_trajectory, callback, structure):
    """The jitted loop. Inlined, so that under the caller's own `jit` it is as if it were not."""
    del structure  # of the constraint: part of the key, so that programs go when constraints do

    def loop(key, params, state, cond, init, constrain, first_index):
        keys = sample_keys(key, shape[0], first_index)
        if state is None:
            state = scheduler.set_timesteps(steps)
        if init is None:
            start = scheduler.init(keys, state, shape, dtype)
        else:
            start = scheduler.prepare(state, init), init

        def step(carry, _):
            state, x = carry
            model_output = scheduler.predict(apply_fn, params, state, x, **cond)
            next_state, output = scheduler.step(keys, state, model_output, x, constrain=constrain)
            if callback is not None:
                jax.debug.callback(callback, state.step_index, output)
            return (next_state, output.prev_sample), output if return_trajectory else None

        (_, x), trajectory = jax.lax.scan(step, start, length=state.num_steps)
        return (x, trajectory) if return_trajectory else x

    return jax.jit(loop, inline=True)


def _parse_levels(scheduler, levels, state):
    """The levels as a state, or as a number of steps, from at most one argument."""
    given = {name: value for name, value in levels.items() if value is not None}
    if len(given) + (state is not None) > 1:
        names = [*given, *(["state"] if state is not None else [])]
        raise ValueError(
            f"give at most one of num_inference_steps, timesteps, sigmas and state, got {names}"
        )
    if state is None:
        if not given or "num_inference_steps" in given:
            return None, given.get("num_inference_steps", 1)
        return scheduler.set_timesteps(**given), None
    index = concrete(state.step_index)
    if index is not None and index != 0:
        raise ValueError(
            f"state is at step {index}, but sample() takes all steps; "
            "pass a state from set_timesteps"
        )
    return state, None


def _parse_init(init, shape, dtype):
    if init is None:
        return None
    x = jnp.asarray(init).astype(dtype)
    if x.shape != shape:
        raise ValueError(f"init has shape {x.shape}, but the samples are to be {shape}")
    return x


def _parse_cond(cond, batch):
    """The conditioning as trees of arrays `[B, ...]`; lists of plain numbers are arrays."""

    def parse(name, value):
        leaves = jax.tree.leaves(value)
        if leaves and all(isinstance(leaf, (bool, int, float)) for leaf in leaves):
            value = np.asarray(value)
        value = jax.tree.map(jnp.asarray, value)
        for leaf in jax.tree.leaves(value):
            if leaf.shape[:1] != (batch,):
                raise ValueError(
                    f"cond[{name!r}] must have the leading axis of the batch, {batch}, "
                    f"got {leaf.shape}"
                )
        return value

    return {name: parse(name, value) for name, value in (cond or {}).items()}

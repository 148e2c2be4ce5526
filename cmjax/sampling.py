"""The sampling loop (Song et al. 2023, Algorithm 1): one `lax.scan` over any scheduler."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from cmjax.arrays import check_shapes, concrete
from cmjax.random import level_noise, sample_keys
from cmjax.schedulers.base import Scheduler, SchedulerState, StepOutput


def sample(
    key: jax.Array,
    apply_fn: Callable[..., jax.Array],
    params: Any,
    scheduler: Scheduler,
    shape: Sequence[int],
    *,
    num_inference_steps: int | None = None,
    timesteps: Any = None,
    sigmas: Any = None,
    state: SchedulerState | None = None,
    cond: Mapping[str, Any] | None = None,
    init: jax.Array | None = None,
    constrain: Callable[[jax.Array], jax.Array] | None = None,
    first_index: int | jax.Array = 0,
    return_trajectory: bool = False,
    callback: Callable[[Any, StepOutput], None] | None = None,
    dtype: DTypeLike = jnp.float32,
) -> Any:
    """Generates a batch of samples; a pure function to be jitted, vmapped or sharded as you like.

    Args:
        key: one key, from which sample *i* draws by `fold_in(key, first_index + i)`, or one per sample `[B]`.
        apply_fn: `(params, x, t, **cond) -> model_output`, with x `[B, ...]` and t f32[B].
        params: of the network.
        scheduler: the sampler.
        shape: of the result, `(B, ...)`; images are `(B, H, W, C)`.
        num_inference_steps: number of steps. At most one of this and the next three; none means one step.
        timesteps: the levels as training indices.
        sigmas: the levels as noise levels.
        state: the levels as a state at its first step, from `scheduler.set_timesteps`.
        cond: per-sample arrays, leading axis B, handed to `apply_fn` by name, such as `class_labels`.
        init: samples already at the first noise level, `[B, ...]`, instead of noise.
        constrain: x0 -> x0, applied to every x0 estimate (editing).
        first_index: global index of the first sample of this batch.
        return_trajectory: also return `StepOutput(prev_sample, denoised)` of every step, `[N, B, ...]`.
        callback: called on the host as `callback(step_index, StepOutput)` after every step.
        dtype: of the samples; noise levels and the network's time stay float32.

    Returns:
        The samples, `dtype[shape]`; with `return_trajectory` the pair (samples, trajectory).

    Raises:
        ValueError: for misuse that can be seen while tracing; it names the argument and the way out.
    """
    shape = tuple(shape)
    cond = _checked_cond(cond, shape)
    state = _initial_state(scheduler, num_inference_steps, timesteps, sigmas, state)
    keys = sample_keys(key, shape[0], first_index)
    if init is None:
        x = scheduler.init_sample(state, level_noise(keys, 0, shape, dtype))
    else:
        x = jnp.asarray(init).astype(dtype)
        if x.shape != shape:
            raise ValueError(f"init has shape {x.shape}, but the samples are to be {shape}")
    start = (scheduler.prepare(state, x), x)

    def step(carry, _):
        state, x = carry
        times = [jnp.broadcast_to(t, shape[:1]) for t in scheduler.time_inputs(state)]
        model_output = apply_fn(params, scheduler.scale_input(state, x), *times, **cond)
        denoised = scheduler.denoise(state, model_output, x)
        if constrain is not None:
            estimate, denoised = denoised, constrain(denoised)
            check_shapes(constrained=denoised, denoised=estimate)
        noise = level_noise(keys, state.step_index + 1, shape, dtype)
        next_state, x = scheduler.advance(state, x, denoised, noise)
        output = StepOutput(x, denoised)
        if callback is not None:
            jax.debug.callback(callback, state.step_index, output)
        return (next_state, x), output if return_trajectory else None

    (_, x), trajectory = jax.lax.scan(step, start, length=state.num_steps)
    return (x, trajectory) if return_trajectory else x


def _initial_state(scheduler, num_inference_steps, timesteps, sigmas, state) -> SchedulerState:
    levels = {"num_inference_steps": num_inference_steps, "timesteps": timesteps, "sigmas": sigmas}
    given = [name for name, value in {**levels, "state": state}.items() if value is not None]
    if len(given) > 1:
        raise ValueError(
            f"give at most one of num_inference_steps, timesteps, sigmas and state, got {given}"
        )
    if state is None:
        return scheduler.set_timesteps(**levels) if given else scheduler.set_timesteps(1)
    index = concrete(state.step_index)
    if index is not None and index != 0:
        raise ValueError(
            f"state is at step {index}, but sample() takes all steps; pass a state from set_timesteps"
        )
    return state


def _checked_cond(cond, shape) -> dict[str, jax.Array]:
    if not shape or any(size < 1 for size in shape):
        raise ValueError(f"shape must be (B, ...) with sizes of at least 1, got {shape}")
    cond = {name: jnp.asarray(value) for name, value in (cond or {}).items()}
    for name, value in cond.items():
        if value.shape[:1] != shape[:1]:
            raise ValueError(
                f"cond[{name!r}] must have the leading axis of the batch, {shape[0]}, got {value.shape}"
            )
    return cond

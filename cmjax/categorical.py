"""The sampling loop for categories: `VQDiffusionScheduler`, which takes and makes integers.

It is the loop of `cmjax.sampling` without what categories do not have: noise levels sigma, an x0
between classes, constraints, and a choice of the samples' dtype.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from cmjax.arrays import ApplyFn, as_categories, concrete
from cmjax.configs import shown
from cmjax.meshes import batch_sharded_alike, carry_as_returned
from cmjax.networks import check_network, num_classes, parse_cond
from cmjax.random import as_key, sample_index, sample_keys
from cmjax.schedulers.checks import check_sample_shape
from cmjax.schedulers.vq_diffusion import VQDiffusionScheduler
from cmjax.tracing import cached_unless_tracing

# Compiled loops to keep, for calls outside of `jax.jit`; see `cmjax.sampling`.
_PROGRAMS = 16


def sample(
    key: jax.Array,
    apply_fn: ApplyFn,
    params: Any,
    scheduler: VQDiffusionScheduler,
    shape: Sequence[int],
    *,
    num_inference_steps: int | None = None,
    timesteps: Any = None,
    cond: Mapping[str, Any] | None = None,
    init: Any = None,
    first_index: int | jax.Array = 0,
    return_trajectory: bool = False,
) -> Any:
    """Generates a batch of categories; a pure function that can be jitted and vmapped.

    Args:
        key: one key, of which sample *i* uses `fold_in(key, first_index + i)`, or one key per
            sample `[B]`.
        apply_fn: `(params, x, t, **cond) -> logits`, with x i32[B, ...] and t f32[B]; logits are
            `[B, ..., num_vec_classes - 1]`.
        params: of the network.
        scheduler: the sampler.
        shape: of the result, `(B, ...)`, such as `(B, 1024)` for codes of 32 x 32.
        num_inference_steps: number of steps; give this or `timesteps`.
        timesteps: or the training times, descending.
        cond: conditioning, passed to `apply_fn` as keyword arguments; leading axes are B.
        init: categories at the first time, `[B, ...]`, instead of all masked.
        first_index: global index of the first sample of this batch.
        return_trajectory: also return `StepOutput(prev_sample, denoised)` of every step.

    Returns:
        The categories, i32[shape], from 0 to num_vec_classes - 2; with `return_trajectory` the
        pair (categories, trajectory).

    Raises:
        ValueError: for an invalid argument, as far as it can be detected while tracing.
    """
    shape = check_sample_shape(shape)
    check_network(apply_fn)
    if not isinstance(scheduler, VQDiffusionScheduler):
        raise ValueError(
            f"scheduler must be a VQDiffusionScheduler, got {shown(scheduler)}; "
            "cmjax.sample is for samplers of floats"
        )

    # What the program takes as data: other values never compile again.
    inputs = {
        "key": as_key(key),
        "params": params,
        "state": scheduler.set_timesteps(num_inference_steps, timesteps=timesteps),
        "cond": parse_cond(cond, shape[0], num_classes(apply_fn)),
        "init": _parse_init(init, shape, scheduler),
        "first_index": sample_index(first_index, shape[0]),
    }

    # What it is compiled for.
    options = (shape, bool(return_trajectory))
    program = cached_unless_tracing(_compiled, apply_fn, scheduler, *options)
    return program(**inputs)


@functools.lru_cache(_PROGRAMS, typed=True)
def _compiled(apply_fn, scheduler, shape, return_trajectory):
    """The jitted loop; inlined, so that under the caller's own `jit` it is part of that program."""

    def loop(key, params, state, cond, init, first_index):
        keys = sample_keys(key, shape[0], first_index)
        keys, init, cond = batch_sharded_alike((keys, init, cond))
        x = scheduler.init(state, shape) if init is None else init

        # One network call; the noise of a step is that of its level.
        def step(carry, _):
            state, x = carry
            model_output = scheduler.predict(apply_fn, params, state, x, **cond)
            state, output = scheduler.step(keys, state, model_output, x)
            return (state, output.prev_sample), output if return_trajectory else None

        start = carry_as_returned(lambda carry: step(carry, None)[0], (state, x))
        (_, x), trajectory = jax.lax.scan(step, start, length=state.num_steps)
        return (x, trajectory) if return_trajectory else x

    return jax.jit(loop, inline=True)


def _parse_init(init, shape, scheduler):
    """The given first categories, i32[shape], or None."""
    if init is None:
        return None
    x = as_categories("init", init)
    if x.shape != shape:
        raise ValueError(f"init has shape {x.shape}, but shape={shape}")

    # The values are known outside of jit only.
    known = concrete(x)
    most = scheduler.mask_class
    if known is not None and not ((known >= 0) & (known <= most)).all():
        raise ValueError(
            f"init must hold classes from 0 to {most}, the mask, "
            f"got {known.min()} to {known.max()}"
        )
    return x.astype(jnp.int32)

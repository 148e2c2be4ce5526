"""Pairs of noise and sample, the data of rectified flow's second stage."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.typing import ArrayLike

from cmjax.arrays import ApplyFn
from cmjax.configs import positive_int
from cmjax.networks import num_classes, parse_cond
from cmjax.random import as_key, level_noise, sample_keys
from cmjax.sampling import sample
from cmjax.schedulers.base import Scheduler
from cmjax.schedulers.checks import check_sample_shape
from cmjax.training.losses.flow_paths import check_flow_scheduler


def reflow_pairs(
    key: jax.Array,
    apply_fn: ApplyFn,
    params: Any,
    scheduler: Scheduler,
    shape: Sequence[int],
    *,
    cond: Mapping[str, ArrayLike] | None = None,
    batch_size: int = 64,
    **levels: Any,
) -> dict[str, np.ndarray]:
    """Makes samples of a network of flow matching, each with the noise that it was made from.

    A network that is trained on such pairs (`losses.FlowMatching`, which takes "noise" from the
    batch) has straighter paths, which fewer steps can follow: "reflow" of Liu et al. 2022 (arXiv
    2209.03003), algorithm 1. Store the pairs by `np.savez`, and name the file as `data.source` of
    a training run. They are made for one order of pixels, so a run over them flips no pictures.

    Example:
        >>> import cmjax, jax
        >>> from cmjax.training import pairs
        >>> def apply_fn(params, x, t):
        ...     return params * x
        >>> found = pairs.reflow_pairs(
        ...     jax.random.key(0),
        ...     apply_fn,
        ...     0.5,
        ...     cmjax.FlowMatchEulerDiscreteScheduler(),
        ...     (6, 2),
        ...     num_inference_steps=4,
        ...     batch_size=3,
        ... )
        >>> found["images"].shape, found["noise"].shape
        ((6, 2), (6, 2))

    Args:
        key: one key, of which pair *i* uses `fold_in(key, i)`; the samples are those of
            `cmjax.sample` with this key.
        apply_fn: the network, `(params, x, t, **cond) -> velocity`.
        params: of the network.
        scheduler: a solver of flow matching that adds no noise, such as
            `FlowMatchEulerDiscreteScheduler`.
        shape: of all samples together, `(N, ...)`.
        cond: conditioning by name, arrays `[N, ...]`.
        batch_size: number of samples that are made at a time.
        **levels: the noise levels, by one argument of `scheduler.set_timesteps`:
            `num_inference_steps`, `timesteps` or `sigmas`.

    Returns:
        "images" f32[N, ...] and "noise" f32[N, ...], and "labels" i32[N] if `cond` has
        `class_labels`: the names that `sources.open_source` reads.

    Raises:
        ValueError: for a scheduler of another kind, or arguments that `cmjax.sample` refuses.
    """
    shape = check_sample_shape(shape)
    check_flow_scheduler(scheduler, num_times=1)
    batch_size = positive_int("batch_size", batch_size)
    key = as_key(key)
    state = scheduler.set_timesteps(**levels)
    if state.weights.noise is not None:
        raise ValueError(
            f"scheduler {type(scheduler).__name__} adds noise on the way, which a pair cannot "
            "hold; take one that does not"
        )
    cond = parse_cond(cond, shape[0], num_classes(apply_fn))

    # Batch by batch. Sample i has the same noise in every size of batch.
    samples = []
    starts = []
    for first in range(0, shape[0], batch_size):
        rows = slice(first, min(first + batch_size, shape[0]))
        part = (rows.stop - rows.start, *shape[1:])
        noise = level_noise(sample_keys(key, part[0], first), 0, part, np.float32)
        x0 = sample(
            key,
            apply_fn,
            params,
            scheduler,
            part,
            state=state,
            init=scheduler.init_sample(state, noise),
            cond=jax.tree.map(lambda leaf, rows=rows: leaf[rows], cond),
            first_index=first,
        )
        samples.append(np.asarray(x0))
        starts.append(np.asarray(noise))

    pairs = {"images": np.concatenate(samples), "noise": np.concatenate(starts)}
    if "class_labels" in cond:
        pairs["labels"] = np.asarray(cond["class_labels"], np.int32)
    return pairs

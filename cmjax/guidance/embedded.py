"""Networks that take the scale of guidance as an input: one call a step, without extrapolation."""

import functools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from cmjax.arrays import ApplyFn, known_reals, reals_of_batch
from cmjax.configs import shown
from cmjax.guidance.strength import hashable_reals, interval_ends
from cmjax.meshes import sharded_like
from cmjax.networks import check_network, takes, with_attributes_of
from cmjax.tracing import cached_unless_tracing

# Number of networks to keep, so that programs that are compiled for them are found again.
_NETWORKS = 64


def embedded_scale(
    apply_fn: ApplyFn, scale: Any, interval: Sequence[float] | None = None
) -> ApplyFn:
    """Returns a network that is called with a fixed guidance scale.

    It is for networks that were trained with the scale as an input, such as those of mean flows
    (Geng et al. 2025).

    Args:
        apply_fn: the network, which takes `guidance_scale` f32[B] as conditioning, and
            `guidance_interval` f32[B, 2] if an interval is given.
        scale: a positive number, or one per sample `[B]`; 1 is no guidance.
        interval: the times (low, high) that guidance acts at, 0 (data) to 1 (noise); None leaves it
            to the network.

    Returns:
        `(params, x, *times, **cond) -> model_output`. A call may override both by conditioning of
        these names.

    Raises:
        ValueError: for a scale that is not positive, an interval that is none, or one for a network
            that takes none.
    """
    check_network(apply_fn)
    if callable(scale):
        raise ValueError(
            "scale must be a number or one per sample: the network takes the same at all levels"
        )
    known = known_reals("scale", scale)
    is_right = known is None or np.all(np.isfinite(known) & (known > 0))
    if not is_right or np.ndim(scale) > 1:
        raise ValueError(
            f"scale must be a positive number, or one per sample [B], got {shown(scale)}"
        )

    if known is not None:
        scale = hashable_reals(known)

    # The interval, which only some of these networks take.
    ends = None
    if interval is not None:
        if not takes(apply_fn, "guidance_interval"):
            raise ValueError(
                "interval must be None for this network, which takes no guidance_interval, got "
                f"{shown(interval)}; ImprovedMeanFlow and PixelMeanFlow take one"
            )
        ends = interval_ends("interval", interval, of_times=True)

    return cached_unless_tracing(_embedded, apply_fn, scale, ends)


@functools.lru_cache(_NETWORKS)
def _embedded(apply_fn, scale, ends):
    """The network of `embedded_scale`, whose arguments are checked."""

    def guided(params, x, *times, **cond):
        # One scale and one interval per sample, f32[B] and f32[B, 2], divided over devices as the
        # samples are.
        batch = x.shape[0]
        scales = jnp.broadcast_to(reals_of_batch("scale", scale, batch), (batch,))
        guidance = {"guidance_scale": sharded_like(scales, x)}
        if ends is not None:
            interval = jnp.broadcast_to(jnp.asarray(ends, jnp.float32), (batch, 2))
            guidance["guidance_interval"] = sharded_like(interval, x)
        return apply_fn(params, x, *times, **{**guidance, **cond})

    return with_attributes_of(apply_fn, guided)

"""Guidance: functions that turn a network into a guided network, for any sampler."""

import numpy as np
from jax.typing import ArrayLike

from cmjax.arrays import ApplyFn, as_reals, as_samples, combine, known_reals
from cmjax.configs import shown
from cmjax.networks import call_network, check_network, with_classes_of


def autoguidance(apply_fn: ApplyFn, scale: ArrayLike) -> ApplyFn:
    """Returns a network guided by a weaker version of itself (Karras et al. 2024, 2406.02507).

    The paper extrapolates x0; since x0 is linear in the network's output, extrapolating the output
    is the same: `weaker + scale (output - weaker)`.

    Example:
        >>> import jax.numpy as jnp
        >>> from cmjax.guidance import autoguidance
        >>> def apply_fn(params, x, t):
        ...     return params * x
        >>> guided = autoguidance(apply_fn, 2.0)
        >>> guided((1.0, 0.5), jnp.ones((1, 2)), jnp.zeros(1)).tolist()  # 0.5 + 2 (1 - 0.5)
        [[1.5, 1.5]]

    Args:
        apply_fn: `(params, x, t, **cond) -> model_output`.
        scale: a number, or one per sample `[B]`: 1 is the network alone; larger values move its
            output away from the weaker one's.

    Returns:
        `((params, weaker_params), x, t, **cond) -> model_output`.

    Raises:
        ValueError: if `apply_fn` is no function or `scale` not finite; when called, if the
            parameters are no pair.
    """
    check_network(apply_fn)
    weight = as_reals("scale", scale)
    known = known_reals("scale", scale)
    if known is not None and not np.all(np.isfinite(known)):
        raise ValueError(f"scale must be finite, got {shown(scale)}")

    def guided(params, x, /, *times, **cond):
        if not isinstance(params, tuple | list) or len(params) != 2:
            raise ValueError(
                f"params must be the pair (params, weaker_params), got {shown(params)}"
            )
        x = as_samples("x", x)
        if weight.shape not in ((), x.shape[:1]):
            raise ValueError(
                f"scale must be a number or one per sample {x.shape[:1]}, "
                f"got shape {weight.shape}"
            )
        output = call_network(apply_fn, params[0], x, times, cond)
        weaker = call_network(apply_fn, params[1], x, times, cond)

        # weaker + scale (output - weaker), with one coefficient per network.
        return combine((weight, output), (1 - weight, weaker))

    return with_classes_of(apply_fn, guided)

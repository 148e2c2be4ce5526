"""Latents that are drawn again at every step, from stored means and standard deviations."""

from collections.abc import Mapping
from typing import Any

import jax

from cmjax import random
from cmjax.meshes import sharded_like

STD = "data_std"  # the name of the standard deviations in a batch


def draw_latents(key: jax.Array, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a batch whose data are drawn: `data + data_std z`, with normal noise z.

    `make_train_step` calls it for every batch that has "data_std", so losses see latents alone. In
    a loop of your own, call it before the loss.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from cmjax.training.latents import draw_latents
        >>> moments = {"data": jnp.zeros((2, 4)), "data_std": jnp.ones((2, 4))}
        >>> sorted(draw_latents(jax.random.key(0), moments))
        ['data']

    Args:
        key: PRNG key of the noise.
        batch: "data", the means `[B, ...]`, and "data_std", the standard deviations, likewise; and
            whatever else a batch may have. Without "data_std" it is returned as it is.

    Raises:
        ValueError: for standard deviations that differ in shape or dtype from the means.
    """
    drawn = dict(batch)
    if STD not in drawn:
        return drawn
    mean = drawn["data"]
    std = drawn.pop(STD)
    if std.shape != mean.shape or std.dtype != mean.dtype:
        raise ValueError(
            f"batch[{STD!r}] must be like batch['data'], {mean.dtype}{list(mean.shape)}, "
            f"got {std.dtype}{list(std.shape)}"
        )
    noise = random.normal(key, mean.shape).astype(mean.dtype)
    drawn["data"] = mean + std * sharded_like(noise, mean)
    return drawn

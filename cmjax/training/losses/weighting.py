"""Adaptive weighting: how much each noise level counts, learned with the network."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

NUM_FREQUENCIES = 8


class WeightedParams(NamedTuple):
    """Parameters of a network, and of the weighting that is trained with it.

    Attributes:
        network: the network's parameters.
        level_weight: coefficients of w, f32[2 NUM_FREQUENCIES + 1].
    """

    network: Any
    level_weight: jax.Array


def with_level_weight(params: Any) -> WeightedParams:
    """Returns the parameters of a network with those of a weighting that is 1 everywhere."""
    return WeightedParams(params, jnp.zeros(2 * NUM_FREQUENCIES + 1))


def weigh_levels(level_weight: jax.Array, error: jax.Array, sigma: jax.Array) -> jax.Array:
    """Returns `exp(w) error - w`, f32[B], w being linear in cosines and sines of log sigma.

    Minimising it over w makes every noise level count the same (Karras et al. 2024, arXiv
    2312.02696, equation 21; Lu and Song 2024, section 4.2).

    Args:
        level_weight: coefficients of w.
        error: of each sample, f32[B].
        sigma: noise level of each sample, f32[B].
    """
    frequencies = jnp.arange(1, NUM_FREQUENCIES + 1, dtype=jnp.float32)
    angles = jnp.log(sigma)[:, None] * frequencies[None, :] / 4
    constant = jnp.ones_like(angles[:, :1])
    features = jnp.concatenate([constant, jnp.cos(angles), jnp.sin(angles)], axis=-1)
    w = features @ level_weight
    return jnp.exp(w) * error - w

"""How much each noise level counts: EDM's weight, and one that is learned with the network."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cmjax.serialization import serializable

NUM_FREQUENCIES = 8  # of w as a function of log sigma: enough for a smooth curve


def edm_weight(sigma: jax.Array, sigma_data: float) -> jax.Array:
    """Returns `(sigma^2 + sigma_data^2) / (sigma sigma_data)^2`, f32[B].

    With this weight of the denoised sample's error the network's own output, F, is fitted with
    weight 1 (Karras et al. 2022, table 1: lambda).

    Args:
        sigma: noise levels, f32[B].
        sigma_data: standard deviation of the data.
    """
    return (jnp.square(sigma) + sigma_data**2) / jnp.square(sigma * sigma_data)


class WeightedParams(NamedTuple):
    """Parameters of a network and of the weighting that is trained with it.

    Attributes:
        network: the network's parameters.
        level_weight: coefficients of w, f32[2 NUM_FREQUENCIES + 1].
    """

    network: Any
    level_weight: jax.Array


serializable(WeightedParams)


def with_level_weight(params: Any) -> WeightedParams:
    """Returns a network's parameters together with those of a weighting that starts at 1."""
    # w = 0 at every level: training starts from the unweighted loss.
    return WeightedParams(params, jnp.zeros(2 * NUM_FREQUENCIES + 1, jnp.float32))


def weigh_levels(level_weight: jax.Array, error: jax.Array, sigma: jax.Array) -> jax.Array:
    """Returns `exp(w) error - w`, f32[B], where w is a Fourier series in log sigma.

    The minimum over w is at `exp(w) = 1 / error`, where every noise level contributes equally
    (Karras et al. 2024, arXiv 2312.02696, equation 21; Lu and Song 2024, section 4.2).

    Args:
        level_weight: coefficients of w, f32[2 NUM_FREQUENCIES + 1].
        error: of each sample, f32[B].
        sigma: noise level of each sample, f32[B].
    """
    # 1, cos(k/4 log sigma) and sin(k/4 log sigma), f32[B, 2 NUM_FREQUENCIES + 1]. The longest
    # period, 8 pi in log sigma, is more than twice the range from 0.002 to 80.
    frequencies = jnp.arange(1, NUM_FREQUENCIES + 1, dtype=jnp.float32)
    angles = jnp.log(sigma)[:, None] * frequencies[None, :] / 4
    constant = jnp.ones_like(angles[:, :1])
    features = jnp.concatenate([constant, jnp.cos(angles), jnp.sin(angles)], axis=-1)
    w = features @ level_weight
    return jnp.exp(w) * error - w

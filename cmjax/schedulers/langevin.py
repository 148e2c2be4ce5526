"""Langevin steps whose size is set by a signal-to-noise ratio (Song et al. 2021, Algorithm 4)."""

import jax
import jax.numpy as jnp

from cmjax.arrays import at_least_float32
from cmjax.schedulers.weights import Weights

# A squared norm of eps below this is none: eps is of size 1, and float32 holds 1 / this squared.
_SMALLEST = 1e-18


def langevin_columns(sigmas: jax.Array, snr: float) -> Weights:
    """Returns the table of `x' = x + h s + sqrt(2 h) z` where |z| = |eps|, f32[n] each column.

    There `h = 2 (snr |z| / |s|)^2` is `2 (snr sigma)^2`, since the score s is -eps / sigma.

    Args:
        sigmas: f32[n], noise levels.
        snr: the signal-to-noise ratio.
    """
    eps = (1 - 2 * snr**2) * sigmas
    return Weights(x0=jnp.ones_like(sigmas), eps=eps, noise=2 * snr * sigmas)


def langevin_weights(row: Weights, norm_ratio: jax.Array, snr: float) -> Weights:
    """Returns the weights of a Langevin step, f32[B] each, from its row of that table.

    Args:
        row: of `langevin_columns`, f32[] each.
        norm_ratio: `|z| / |eps|` of each sample, f32[B]; with 1 the weights are the row.
        snr: the signal-to-noise ratio.
    """
    # h grows with the square of the ratio of norms.
    eps = row.eps + snr * row.noise * (1 - jnp.square(norm_ratio))
    return row._replace(eps=eps, noise=row.noise * norm_ratio)


def ratio_of_norms(noise: jax.Array, eps: jax.Array, error: jax.Array) -> jax.Array:
    """Returns |noise| / |eps| of each sample, f32[B].

    Where either is 0, or eps not larger than its own rounding error, it is 0, with the gradient 0:
    a step without direction is none.

    Args:
        noise: `[B, ...]`.
        eps: `[B, ...]`.
        error: of the entries of eps, `[B, ...]`.
    """
    top = _squared_norm(noise)
    bottom = _squared_norm(eps)
    least = jnp.maximum(_SMALLEST, _squared_norm(error))
    known = (top > 0) & (bottom > least)
    square = jnp.where(known, top, 1) / jnp.where(known, bottom, 1)
    return jnp.where(known, jnp.sqrt(square), 0)


def _squared_norm(x):
    """The sum of the squares of each sample `[B, ...]`, f32[B]."""
    square = jnp.square(at_least_float32(x))
    return jnp.sum(square, axis=tuple(range(1, x.ndim))).astype(jnp.float32)

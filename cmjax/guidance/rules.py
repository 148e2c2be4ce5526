"""How the two outputs of a network become one: extrapolated, then rescaled, or projected."""

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp

from cmjax.arrays import inverse_or_zero, safe_sqrt, scaled, weighted_sum
from cmjax.parametrization import Parametrization

# Numbers of float32 that differ by rounding have a standard deviation of less than this share of
# their size.
_ROUNDING = 1e-6


class Rule(Protocol):
    """Joins two outputs `[B, ...]` by the scale of each sample."""

    def __call__(
        self,
        output: jax.Array,
        other: jax.Array,
        scale: jax.Array,
        x: jax.Array,
        time: jax.Array,
    ) -> jax.Array:
        """Returns the guided output, `[B, ...]`; a scale of 1 leaves `output` as it is."""
        ...


@dataclasses.dataclass(frozen=True)
class Extrapolated:
    """`other + scale (output - other)`, with its spread moved towards that of `output`.

    Attributes:
        rescale: how far, from 0 to 1: phi of Lin et al. 2024, section 3.4.
    """

    rescale: float = 0.0

    def __call__(self, output, other, scale, x, time) -> jax.Array:
        """Returns the guided output, `[B, ...]`."""
        del x, time

        # scale output + (1 - scale) other: at a scale of 1 this is `output` without rounding.
        guided = weighted_sum((scale, output), (1 - scale, other))
        if not self.rescale:
            return guided

        # Lin et al. 2024, section 3.4, with the standard deviations of each sample:
        #     phi (std(output) / std(guided)) guided + (1 - phi) guided.
        wanted = _spread(output)
        found = _spread(guided)
        varies = found > 0
        ratio = jnp.where(varies, wanted / jnp.where(varies, found, 1), 1)
        return scaled(1 + self.rescale * (ratio - 1), guided)


@dataclasses.dataclass(frozen=True)
class Projected:
    """Adaptive projected guidance (Sadat et al. 2024, algorithm 1, without its momentum).

    Attributes:
        parametrization: of the network, read as a denoiser.
        eta: weight of the part of the change that is parallel to the denoised sample.
        norm_threshold: bound of the norm of the change; 0 for none.
    """

    parametrization: Parametrization
    eta: float
    norm_threshold: float

    def __call__(self, output, other, scale, x, time) -> jax.Array:
        """Returns the guided output, `[B, ...]`."""
        alpha, sigma = self.parametrization.path(time)
        c_in, c_skip, c_out = self.parametrization.scalings(alpha, sigma)

        # The denoised sample D = c_skip x + c_out F, where the network saw c_in x, and the change
        # d = c_out (F - F_other) that a scale of 2 would make.
        denoised = weighted_sum((c_skip / c_in, x), (c_out, output))
        change = weighted_sum((c_out, output), (-c_out, other))

        # min(1, r / |d|) for each sample, [B].
        share = jnp.ones(x.shape[0], jnp.float32)
        if self.norm_threshold:
            norm = jnp.sqrt(jnp.maximum(_dot(change, change), 1e-30))
            share = jnp.minimum(1, self.norm_threshold / norm)

        # The parallel part of d is (d.D / D.D) D, of which 1 - eta is taken away.
        square = _dot(denoised, denoised)
        parallel = _dot(change, denoised) / jnp.where(square > 0, square, 1)

        # The guided D' = D + (scale - 1) share (d - (1 - eta) parallel D), as an output F':
        #     F' = F + (scale - 1) share (F - F_other - (1 - eta) parallel D / c_out).
        # Where c_out is 0 the output does not matter.
        weight = (scale - 1) * share
        away = weight * (1 - self.eta) * parallel * inverse_or_zero(c_out)
        return weighted_sum((1 + weight, output), (-weight, other), (-away, denoised))


def _spread(array: jax.Array) -> jax.Array:
    """The standard deviation within each sample, f32[B]; 0 where it is only rounding."""
    array = array.astype(jnp.float32)
    axes = tuple(range(1, array.ndim))

    # The mean is rounded, which would show where all numbers are equal. What is left of it in the
    # differences from it is small, and so is its own rounding.
    centred = array - array.mean(axes, keepdims=True)
    centred = centred - centred.mean(axes, keepdims=True)
    variance = jnp.square(centred).mean(axes)
    varies = variance > _ROUNDING**2 * jnp.square(array).mean(axes)
    return safe_sqrt(jnp.where(varies, variance, 0))


def _dot(one: jax.Array, other: jax.Array) -> jax.Array:
    """The inner product of each pair of samples, f32[B]."""
    product = one.astype(jnp.float32) * other.astype(jnp.float32)
    return product.sum(tuple(range(1, product.ndim)))

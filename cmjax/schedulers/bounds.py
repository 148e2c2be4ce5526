"""Clipping and thresholding of x0 estimates, under diffusers' names for the options."""

import dataclasses

import jax
import jax.numpy as jnp

from cmjax.arrays import along_batch, at_least_float32
from cmjax.meshes import with_automatic_axes


@dataclasses.dataclass(frozen=True)
class BoundOptions:
    """The options of a sampler that bound its x0 estimates, and what they do.

    Attributes:
        clip_sample: clip x0 estimates.
        clip_sample_range: x0 is clipped to plus or minus this.
        thresholding: scale x0 estimates that leave [-1, 1], instead of clipping (Saharia et al.
            2022, section 2.3).
        dynamic_thresholding_ratio: which quantile of a sample's |x0| is scaled to 1, if it is
            above 1.
        sample_max_value: the largest number that a sample is divided by.
    """

    clip_sample: bool = True
    clip_sample_range: float = 1.0
    thresholding: bool = False
    dynamic_thresholding_ratio: float = 0.995
    sample_max_value: float = 1.0

    _domains = {
        "clip_sample_range": (1e-6, 1e6),
        "dynamic_thresholding_ratio": (0.0, 1.0),
        "sample_max_value": (1.0, 1e6),
    }

    def bound(self, denoised: jax.Array) -> jax.Array:
        """Returns x0 estimates `[B, ...]` thresholded or clipped, if so configured."""
        # Thresholding first, as in diffusers: it replaces clipping.
        if self.thresholding:
            ratio = self.dynamic_thresholding_ratio
            return dynamic_threshold(denoised, ratio, self.sample_max_value)
        if self.clip_sample:
            limit = self.clip_sample_range
            return jnp.clip(denoised, -limit, limit)
        return denoised


class Thresholded:
    """Thresholding of x0 estimates, for samplers that do not clip them.

    The fields are not those of this class, since the order of fields is that of diffusers, and
    differs from class to class.

    Attributes:
        thresholding: scale x0 estimates that leave [-1, 1] (Saharia et al. 2022, section 2.3).
        dynamic_thresholding_ratio: which quantile of a sample's |x0| is scaled to 1, if it is
            above 1.
        sample_max_value: the largest number that a sample is divided by.
    """

    # Declared for type checkers; the subclasses make them fields.
    thresholding: bool
    dynamic_thresholding_ratio: float
    sample_max_value: float

    def bound(self, denoised: jax.Array) -> jax.Array:
        """Returns x0 estimates `[B, ...]`, thresholded if so configured."""
        if not self.thresholding:
            return denoised
        ratio = self.dynamic_thresholding_ratio
        return dynamic_threshold(denoised, ratio, self.sample_max_value)


def dynamic_threshold(x: jax.Array, ratio: float, largest: float) -> jax.Array:
    """Scales each sample `[B, ...]` down to [-1, 1] by a quantile of |x|.

    Saharia et al. 2022, section 2.3.

    Args:
        x: x0 estimates, `[B, ...]`.
        ratio: the quantile, in [0, 1].
        largest: the largest number that a sample is divided by.
    """
    wide = at_least_float32(x)

    def quantile(wide, _):
        magnitude = jnp.abs(wide).reshape(wide.shape[0], -1)
        return jnp.quantile(magnitude, ratio, axis=-1)

    # The quantile of each sample, f32[B]; at least 1, so that no sample is scaled up.
    limit = jnp.clip(with_automatic_axes(quantile, wide), 1, largest)

    # Clipped to the quantile first, so that the result lies in [-1, 1].
    limit = along_batch(limit, x.ndim)
    return (jnp.clip(wide, -limit, limit) / limit).astype(x.dtype)

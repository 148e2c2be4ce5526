"""Discrete samplers that keep their x0 estimates in range."""

import dataclasses

import jax
import jax.numpy as jnp

from cmjax.schedulers.discrete import DiscreteScheduler


@dataclasses.dataclass(frozen=True)
class BoundedDiscreteScheduler(DiscreteScheduler):
    """A discrete sampler that keeps its x0 estimates in range.

    Attributes:
        clip_sample: clip x0 estimates.
        clip_sample_range: to plus or minus this.
        set_alpha_to_one: end without noise, rather than at training time 0.
        thresholding: scale x0 estimates that leave the range (Saharia et al. 2022, section 2.3), instead of clipping.
        dynamic_thresholding_ratio: quantile of |x0| of a sample that is scaled to 1, if it is larger.
        sample_max_value: and at most this.
    """

    clip_sample: bool = False
    clip_sample_range: float = 1.0
    set_alpha_to_one: bool = True
    thresholding: bool = False
    dynamic_thresholding_ratio: float = 0.995
    sample_max_value: float = 1.0

    _domains = {
        "clip_sample_range": (1e-6, 1e6),
        "dynamic_thresholding_ratio": (0.0, 1.0),
        "sample_max_value": (1.0, 1e6),
    }

    def bound(self, denoised: jax.Array) -> jax.Array:
        """Returns the x0 estimate thresholded or clipped."""
        if self.thresholding:
            return dynamic_threshold(
                denoised, self.dynamic_thresholding_ratio, self.sample_max_value
            )
        if self.clip_sample:
            return jnp.clip(denoised, -self.clip_sample_range, self.clip_sample_range)
        return denoised

    def final_levels(self) -> tuple[jax.Array, jax.Array]:
        """Returns (alpha, sigma) that sampling ends at, f32[1] each."""
        if self.set_alpha_to_one:
            return jnp.ones(1, jnp.float32), jnp.zeros(1, jnp.float32)
        return self.path(jnp.zeros(1, jnp.float32))


def dynamic_threshold(x: jax.Array, ratio: float, largest: float) -> jax.Array:
    """Scales each sample `[B, ...]` down to [-1, 1] by a quantile of |x| (Saharia et al. 2022, section 2.3)."""
    magnitude = jnp.abs(x.astype(jnp.float32)).reshape(x.shape[0], -1)
    limit = jnp.clip(jnp.quantile(magnitude, ratio, axis=-1), 1, largest)
    limit = limit.reshape(-1, *[1] * (x.ndim - 1))
    return (jnp.clip(x.astype(jnp.float32), -limit, limit) / limit).astype(x.dtype)

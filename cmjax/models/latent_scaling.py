"""How the latents of an autoencoder are scaled and shifted for samplers.

diffusers has three ways of saying it: `scaling_factor` alone (Stable Diffusion), with
`shift_factor` (Stable Diffusion 3, Flux), and with `latents_mean` and `latents_std` of each channel
(some SDXL models). All are `latents = (raw - mean) / std`, where raw latents are those of the
network.
"""

from typing import Any

import jax
import jax.numpy as jnp

from cmjax.arrays import at_least_float32

# Of scaling factors, shifts and statistics: beyond these float32 would lose the latents.
SMALLEST_FACTOR = 1e-6
LARGEST_FACTOR = 1e6


def check_factors(config: Any) -> None:
    """Checks the statistics of the latents in the config of an autoencoder.

    Raises:
        ValueError: if there is not one for each channel, or two fields give the mean.
    """
    for name in ("latents_mean", "latents_std"):
        values = getattr(config, name, None)
        if values is not None and len(values) != config.latent_channels:
            raise ValueError(
                f"{name} must have one entry per latent channel, {config.latent_channels}, got "
                f"{len(values)}"
            )

    # diffusers' pipelines read one or the other.
    if config.shift_factor and getattr(config, "latents_mean", None) is not None:
        raise ValueError(
            f"shift_factor {config.shift_factor} and latents_mean exclude each other; leave one out"
        )


def to_samplers(config: Any, raw: jax.Array) -> jax.Array:
    """Returns the network's latents `[B, h, w, c]` as samplers want them, in the same dtype."""
    wide = at_least_float32(raw)
    mean, std = _statistics(config, wide.dtype)
    return ((wide - mean) / std).astype(raw.dtype)


def deviation_to_samplers(config: Any, raw: jax.Array) -> jax.Array:
    """Returns standard deviations of the network's latents as those of samplers' latents."""
    wide = at_least_float32(raw)
    _, std = _statistics(config, wide.dtype)
    return (wide / std).astype(raw.dtype)


def to_network(config: Any, latents: jax.Array) -> jax.Array:
    """Returns samplers' latents `[B, h, w, c]` as the decoder wants them, in the same dtype."""
    wide = at_least_float32(latents)
    mean, std = _statistics(config, wide.dtype)
    return (wide * std + mean).astype(latents.dtype)


def _statistics(config, dtype):
    """Returns mean and standard deviation of the network's latents, `[1, 1, 1, c]` each."""
    channels = config.latent_channels
    mean = getattr(config, "latents_mean", None)
    if mean is None:
        mean = (config.shift_factor or 0.0,) * channels
    std = getattr(config, "latents_std", None)
    if std is None:
        std = (1.0,) * channels
    scaled = [value / config.scaling_factor for value in std]
    shape = (1, 1, 1, channels)
    return jnp.asarray(mean, dtype).reshape(shape), jnp.asarray(scaled, dtype).reshape(
        shape
    )

"""Constraints on pictures, for models that sample latents.

A constraint is a projection of x0, which here is a latent, while what is known are pixels. By
projection only inpainting can be kept: in the latents of which every pixel is known. By moves of
the noise every linear constraint can, since these differentiate through the decoder. In the end the
constraint is applied to the pictures, so that what is known is exact.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from cmjax.configs import shown
from cmjax.constraints import Constraint, Inpaint, inpaint
from cmjax.constraints.checks import broadcast_to_samples
from cmjax.constraints.composition import certain, kept_in_part, measurable
from cmjax.meshes import with_automatic_axes
from cmjax.tracing import as_pytree

AT_ONCE = 8  # pictures that are encoded or decoded at a time, which bounds the memory


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Decoded:
    """A constraint on what an autoencoder makes of latents; no projection of the latents.

    Attributes:
        autoencoder: a `cmjax.Autoencoder`.
        constraint: on its pictures.
    """

    autoencoder: Any
    constraint: Constraint

    def residual(self, latents: jax.Array) -> jax.Array:
        """Returns by how much the constraint moves the pictures, `[B, H, W, C]`."""
        pictures = self.autoencoder.decode(latents)
        return self.constraint(pictures) - pictures

    def certain(self) -> "Decoded":
        """Returns the constraint without what it keeps in part only."""
        return dataclasses.replace(self, constraint=certain(self.constraint))

    def measure(self, latents: jax.Array) -> Any:
        """Returns what the constraint compares with its data."""
        return measurable(self.constraint).measure(self.autoencoder.decode(latents))

    def shifted(self, shift: Any) -> "Decoded":
        """Returns the constraint for its own data plus `shift`."""
        return dataclasses.replace(
            self, constraint=measurable(self.constraint).shifted(shift)
        )

    def __call__(self, latents: jax.Array) -> jax.Array:
        """Returns the latents as they are: what is left to be moved are pictures."""
        return latents


def latent_shape(autoencoder: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape of the latents of pictures `[B, H, W, C]`.

    Raises:
        ValueError: if the autoencoder makes no pictures of that shape.
    """
    if not hasattr(autoencoder, "decode"):
        raise ValueError(
            f"autoencoder must be a cmjax.Autoencoder or None, got {shown(autoencoder)}"
        )
    stride = autoencoder.stride
    channels = autoencoder.config.out_channels
    is_whole = len(shape) == 4 and not shape[1] % stride and not shape[2] % stride
    if not is_whole or shape[3] != channels:
        raise ValueError(
            f"shape must be that of pictures, (B, H, W, {channels}) with multiples of {stride} "
            f"for H and W, got {shape}; leave out autoencoder for a constraint on latents"
        )
    height, width = shape[1] // stride, shape[2] // stride
    return (shape[0], height, width, autoencoder.config.latent_channels)


def on_latents(
    autoencoder: Any, constraint: Constraint, shape: tuple[int, ...], method: str
) -> Any:
    """Returns the constraint on latents that stands for one on pictures.

    Args:
        autoencoder: a `cmjax.Autoencoder`.
        constraint: on pictures.
        shape: of the pictures, `(B, H, W, C)`.
        method: of `cmjax.editing.edit`.

    Raises:
        ValueError: if a projection of latents cannot keep it.
    """
    if method == "posterior":
        # A plain function is no pytree, which what is given to compiled steps must be.
        return Decoded(autoencoder, as_pytree(constraint))
    if not isinstance(constraint, Inpaint):
        raise ValueError(
            "constraint must be what inpaint(image, mask) returns: of an autoencoder's pictures, "
            f"method='projection' keeps no others, got {shown(constraint)}; use method='posterior'"
        )

    # One picture for all samples is encoded once.
    samples = jnp.zeros(shape)
    if constraint.image.ndim < 4 and constraint.mask.ndim < 4:
        samples = samples[:1]
    image = broadcast_to_samples("image", constraint.image, samples)
    mask = broadcast_to_samples("mask", constraint.mask, samples)
    encoded = autoencoder.encode(_filled(image, mask), batch_size=AT_ONCE)
    return inpaint(encoded, _kept(mask, autoencoder.stride))


def pictures_of(
    autoencoder: Any, latents: jax.Array, constraint: Constraint, exact: bool
) -> jax.Array:
    """Returns decoded latents, `[B, H, W, C]`, to which the constraint is applied.

    Unless it is `exact`, that is only what it keeps in part.
    """
    pictures = autoencoder.decode(latents, batch_size=AT_ONCE)
    return constraint(pictures) if exact else kept_in_part(constraint)(pictures)


def _filled(image, mask):
    """The image with its mean colour where the mask is 0; blended in between.

    Whatever is there would show in the latents around, as each of them depends on many pixels.
    """
    known = jnp.where(mask > 0, image, 0)
    weight = jnp.sum(mask, axis=(1, 2), keepdims=True)
    mean = jnp.sum(mask * known, axis=(1, 2), keepdims=True) / jnp.maximum(weight, 1e-6)
    return mean + mask * (known - mean)


def _kept(mask, stride):
    """Which latents are kept, bool[B, h, w, 1]: those of which every pixel is known."""

    def pooled(mask, _):
        batch, height, width, channels = mask.shape
        blocks = mask.reshape(
            batch, height // stride, stride, width // stride, stride, channels
        )
        return (blocks == 1).all(axis=(2, 4, 5))[..., None]

    # On explicit axes JAX refuses a reshape of more than one axis.
    return with_automatic_axes(pooled, mask)

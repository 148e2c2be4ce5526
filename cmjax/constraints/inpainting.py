"""Inpainting: keeps an image where a mask is 1."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from cmjax.arrays import as_array, as_floats, at_least_float32, concrete, known_reals
from cmjax.constraints.checks import as_image, broadcast_to_samples
from cmjax.meshes import with_automatic_axes
from cmjax.serialization import serializable


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)  # hashed by identity, as functions are
class Inpaint:
    """Keeps an image where a mask is 1; made by `inpaint`.

    Attributes:
        image: `[B, ...]` or `[...]`.
        mask: f32 in [0, 1], shaped likewise; 1 where the image is kept.
    """

    image: jax.Array
    mask: jax.Array

    def __call__(self, x0: jax.Array) -> jax.Array:
        """Returns `x0`, `[B, ...]`, with the image restored where the mask is not 0."""
        # Computed in at least float32, and rounded to the dtype of x0 once, at the end.
        x0 = as_floats("x0", x0)
        exact = at_least_float32(x0)
        mask = broadcast_to_samples("mask", self.mask, exact)
        image = broadcast_to_samples("image", self.image, exact)

        # On a mesh with explicit axes, `where` needs arrays that are divided alike.
        return with_automatic_axes(_blend, (exact, mask, image)).astype(x0.dtype)

    def measure(self, x0: jax.Array) -> jax.Array:
        """Returns what is compared with the image, `[B, ...]`: `x0` itself."""
        return x0

    def certain(self) -> "Inpaint":
        """Returns the constraint with weight 0 where the image is kept in part only."""
        return dataclasses.replace(self, mask=jnp.floor(self.mask))

    def kept_in_part(self) -> "Inpaint":
        """Returns the constraint with weight 0 where the whole image is kept."""
        return dataclasses.replace(self, mask=jnp.where(self.mask == 1, 0, self.mask))

    def shifted(self, shift: jax.Array) -> "Inpaint":
        """Returns the constraint for the image plus `shift`, `[B, ...]`."""
        image = broadcast_to_samples("image", self.image, shift)
        return dataclasses.replace(self, image=image + shift)


serializable(Inpaint)


def inpaint(image: ArrayLike, mask: ArrayLike) -> Inpaint:
    """Keeps the part of an image, or of any other array, where a mask is 1.

    Where the mask is 1, samples equal the image bit for bit. Where it is 0, they are the model's
    and the image is ignored (it may be NaN). In between they are the weighted mean of both, for
    soft edges. With samplers that do not end in x0 (docs/editing.md), this holds for x0 only.

    Example:
        >>> import jax.numpy as jnp
        >>> from cmjax.constraints import inpaint
        >>> constraint = inpaint(jnp.array([0.25, 0.0]), jnp.array([1.0, 0.0]))
        >>> constraint(jnp.array([[0.5, 0.75]])).tolist()
        [[0.25, 0.75]]

    Args:
        image: floats in the range of the samples (pictures in [-1, 1]), `[B, ...]` or `[...]`.
        mask: weights in [0, 1], or booleans, shaped likewise; axes may have size 1, as in
            `[H, W, 1]`. Under `jax.jit` values are not known, and an 8-bit mask must be divided by
            255 before.

    Raises:
        ValueError: for other weights, pixels of 0 to 255, or, when applied, shapes that do not fit
            the samples.
    """
    weights = as_array("mask", mask)
    if weights.dtype != bool:
        known_reals("mask", mask)

    # A comparison with NaN is false, so this refuses NaN, too.
    known = concrete(weights)
    if known is not None and not np.all((known >= 0) & (known <= 1)):
        raise ValueError(
            f"mask must be in [0, 1], got {known.min()} to {known.max()}; "
            "an 8-bit mask is mask / 255"
        )

    # Of a traced mask it is not known which part of the image it keeps.
    used = False if known is None else known > 0
    image = as_image("image", image, used)
    return Inpaint(image, jnp.asarray(weights).astype(jnp.float32))


def _blend(arrays, _):
    """The weighted mean of samples and an image, from `(samples, mask, image)`."""
    samples, mask, image = arrays

    # Where the mask is 0 the image may be NaN, and 0 times NaN is NaN.
    image = jnp.where(mask > 0, image, samples)

    # Where the mask is 1, the image itself: the weighted sum would be rounded.
    blended = samples + mask * (image - samples)
    return jnp.where(mask == 1, image, blended)

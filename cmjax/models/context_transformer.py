"""Transformers whose conditioning is tokens in front of those of the image.

The part that Pixel MeanFlow (Lu et al. 2026, arXiv 2601.22158) and improved mean flows (Geng et al.
2025, arXiv 2512.02012) have in common.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cmjax.arrays import known_reals
from cmjax.configs import shown
from cmjax.models import embeddings, second_head
from cmjax.models.token_layers import ContextTokens, RMSNorm

FEATURES = 256  # sines and cosines of every number that the network takes


class ContextTransformer(nnx.Module):
    """The base of these networks: all but how patches become tokens, and what the output means.

    A last layer of zeros makes the output of an untrained network zero.
    """

    def __init__(self, config: Any, *, rngs: nnx.Rngs):
        """Makes the parts in common, with float32 parameters drawn from `rngs`.

        Args:
            config: a `ContextConfig`.
            rngs: that parameters are drawn from.
        """
        self.config = config
        width = config.width

        # The last row of the classes stands for none.
        self.class_embedding = nnx.Embed(config.num_class_embeds + 1, width, rngs=rngs)
        self.scale_embedding = embeddings.TimestepEmbedding(FEATURES, width, rngs=rngs)
        self.start_embedding = embeddings.TimestepEmbedding(FEATURES, width, rngs=rngs)
        self.end_embedding = embeddings.TimestepEmbedding(FEATURES, width, rngs=rngs)
        self.time_embedding = embeddings.TimestepEmbedding(FEATURES, width, rngs=rngs)
        self.context = nnx.List(
            [ContextTokens(count, width, rngs=rngs) for count in config.context_tokens]
        )

        # The blocks, and the way back to patches; for training perhaps a second one.
        self.blocks = second_head.blocks(config, config.num_layers, rngs)
        self.norm_out = RMSNorm(width, rngs=rngs)
        self.proj_out = second_head.last_layer(config, rngs)
        head = None
        if config.second_head_layers:
            head = second_head.SecondHead(config, rngs=rngs)
        self.second_head = head

    def with_context(
        self,
        image: jax.Array,
        span: jax.Array,
        class_labels: jax.Array | None,
        guidance_scale: jax.Array | None,
        guidance_interval: jax.Array | None,
    ) -> jax.Array:
        """Returns the tokens of the conditions, then those of the image.

        Args:
            image: tokens of the image, `[B, side * side, width]`.
            span: length of the step, t - r, f32[B].
            class_labels: i32[B].
            guidance_scale: f32[B], or None for the config's.
            guidance_interval: f32[B, 2], or None for the config's.

        Returns:
            `[B, num_tokens, width]`, in the dtype of `image`.

        Raises:
            ValueError: if labels are missing or none of the model's, the scale or interval has
                another shape, or a scale is known to be 0 or less.
        """
        config = self.config
        batch = image.shape[0]
        scale = _condition(
            "guidance_scale", guidance_scale, config.guidance_scale, (batch,)
        )
        interval = _condition(
            "guidance_interval", guidance_interval, config.guidance_interval, (batch, 2)
        )

        # A scale w enters as 1 - 1 / w. Of a scale that is not positive the output is NaN.
        strength = 1 - 1 / jnp.where(scale > 0, scale, jnp.nan)

        # One embedding per kind of tokens, f32[B, width], in the order of `context_tokens`.
        embedded = [
            embeddings.class_features(self.class_embedding, class_labels, batch),
            _embedded(self.scale_embedding, strength),
            _embedded(self.start_embedding, interval[:, 0]),
            _embedded(self.end_embedding, interval[:, 1]),
            _embedded(self.time_embedding, span),
        ]

        # Several tokens of each kind, `[B, count, width]`, then those of the image.
        sequence = []
        for tokens, embedding in zip(self.context, embedded, strict=True):
            sequence.append(tokens(embedding.astype(image.dtype)))
        sequence.append(image)
        return jnp.concatenate(sequence, axis=1)

    def output(self, h: jax.Array, angles: np.ndarray, both: bool = False) -> jax.Array:
        """Returns the output of the blocks and the last layer, `[B, H, W, in_channels]`.

        Args:
            h: the sequence, `[B, num_tokens, width]`.
            angles: rotary angles of its last tokens; see `token_layers.rotated`.
            both: whether to return the output of the second head as well, behind the other along
                the last axis: `[B, H, W, 2 in_channels]`.

        Raises:
            ValueError: for both heads of a network without a second one.
        """
        if both and self.second_head is None:
            raise ValueError(
                "second_head is asked of a network without one; set second_head_layers in its "
                "config"
            )

        # The second head branches off before the last blocks.
        config = self.config
        shared = config.num_layers - config.second_head_layers
        for block in self.blocks[:shared]:
            h = block(h, angles)
        first = h
        for block in self.blocks[shared:]:
            first = block(first, angles)
        first = second_head.image_of(config, self.proj_out(self.norm_out(first)))
        if not both or self.second_head is None:
            return first
        return jnp.concatenate([first, self.second_head(h, angles)], axis=-1)


def _embedded(embedding, values):
    """Returns the embedding of one number per sample, f32[B, width]."""
    return embedding(embeddings.sinusoidal_embedding(values, FEATURES))


def _condition(name, value, default, shape):
    """Returns a condition as f32[shape], or the config's for all samples."""
    if value is None:
        return jnp.broadcast_to(jnp.asarray(default, jnp.float32)[None], shape)
    if value.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {value.shape}")

    # Where the values are known: under `jax.jit` a scale of 0 or less gives NaN.
    known = known_reals(name, value)
    if name == "guidance_scale" and known is not None and not np.all(known > 0):
        raise ValueError(f"{name} must be above 0 (1 is no guidance), got {shown(value)}")
    return jnp.asarray(value).astype(jnp.float32)

"""Pixel MeanFlow (Lu et al. 2026, arXiv 2601.22158): images in one call, without latents."""

import jax
import jax.numpy as jnp
from flax import nnx

from cmjax.models import layers, resampling
from cmjax.models.embeddings import TimestepEmbedding, class_features, sinusoidal_embedding
from cmjax.models.on_meshes import on_any_mesh
from cmjax.models.pixel_mean_flow_config import PixelMeanFlowConfig
from cmjax.models.token_layers import (
    ContextTokens,
    GatedBlock,
    RMSNorm,
    drawn,
    rotary_angles,
)

FEATURES = 256  # sines and cosines of every number that the network is told
SHORTEST_TIME = 0.05  # below it the velocity is that of this time


class PixelMeanFlow(nnx.Module):
    """A transformer `(x, t, r, class_labels, guidance_scale, guidance_interval) -> velocity`.

    It takes images `[B, H, W, C]`, and returns the mean velocity from t to r, for
    `FlowMapEulerDiscreteScheduler`. What it is told besides the image are tokens in front of the
    image's: those of the class, of the guidance scale, of both ends of its interval, and of the
    time t - r. A last layer of zeros makes the x0 of an untrained network zero.
    """

    def __init__(self, config: PixelMeanFlowConfig, *, rngs: nnx.Rngs):
        """Makes the network with float32 parameters drawn from `rngs`."""
        self.config = config
        width = config.width
        folded = config.patch_size**2 * config.in_channels

        # Patches pass through a few channels: what natural images have in common.
        self.patch_bottleneck = layers.linear(folded, config.bottleneck_channels, rngs=rngs)
        self.patch_embed = layers.linear(config.bottleneck_channels, width, rngs=rngs)

        # The last row of the classes stands for none.
        self.class_embedding = nnx.Embed(config.num_class_embeds + 1, width, rngs=rngs)
        self.scale_embedding = TimestepEmbedding(FEATURES, width, rngs=rngs)
        self.start_embedding = TimestepEmbedding(FEATURES, width, rngs=rngs)
        self.end_embedding = TimestepEmbedding(FEATURES, width, rngs=rngs)
        self.time_embedding = TimestepEmbedding(FEATURES, width, rngs=rngs)
        self.context = nnx.List(
            [ContextTokens(count, width, rngs=rngs) for count in config.context_tokens]
        )
        self.position_embedding = drawn((1, config.num_tokens, width), 0.02, rngs)

        # The blocks, and the way back to patches.
        self.blocks = nnx.List(
            [
                GatedBlock(
                    width, config.num_attention_heads, config.mlp_channels, rngs=rngs
                )
                for _ in range(config.num_layers)
            ]
        )
        self.norm_out = RMSNorm(width, rngs=rngs)
        self.proj_out = layers.linear(
            width, folded, kernel_init=nnx.initializers.zeros, rngs=rngs
        )

    @on_any_mesh
    def __call__(
        self,
        x: jax.Array,
        t: jax.Array,
        r: jax.Array,
        class_labels: jax.Array | None = None,
        guidance_scale: jax.Array | None = None,
        guidance_interval: jax.Array | None = None,
    ) -> jax.Array:
        """Evaluates the network.

        Args:
            x: noisy images `[B, H, W, in_channels]`; the network computes in their dtype.
            t: their times, f32[B]; with the config's `time_scale` they are 0 (data) to 1 (noise).
            r: the times to go to, f32[B], at most t. Only t - r is embedded.
            class_labels: classes, i32[B]; `config.num_class_embeds` stands for none.
            guidance_scale: f32[B], above 0; 1 is no guidance. None is the config's.
            guidance_interval: f32[B, 2], the lowest and highest time, 0 to 1, that guidance acts
                at. None is the config's.

        Returns:
            The mean velocity `[B, H, W, in_channels]`, in the dtype of `x`.

        Raises:
            ValueError: if the images have another size, labels are missing or none of the model's,
                or the scale or interval has another shape.
        """
        config = self.config
        layers.check_images(x, config.sample_size, config.in_channels)
        batch = len(x)
        scale = _told("guidance_scale", guidance_scale, config.guidance_scale, (batch,))
        interval = _told(
            "guidance_interval", guidance_interval, config.guidance_interval, (batch, 2)
        )
        t = t.astype(jnp.float32) * config.time_scale
        r = r.astype(jnp.float32) * config.time_scale

        # One embedding per kind of tokens, f32[B, width]; a scale w is told as 1 - 1 / w.
        embeddings = (
            class_features(self.class_embedding, class_labels, batch),
            _embedded(self.scale_embedding, 1 - 1 / jnp.where(scale > 0, scale, jnp.nan)),
            _embedded(self.start_embedding, interval[:, 0]),
            _embedded(self.end_embedding, interval[:, 1]),
            _embedded(self.time_embedding, t - r),
        )

        # The sequence is [B, num_tokens, width]: what the network is told, then the image.
        told = [
            tokens(embedding.astype(x.dtype))
            for tokens, embedding in zip(self.context, embeddings, strict=True)
        ]
        side = config.sample_size // config.patch_size
        patches = resampling.space_to_depth(x, config.patch_size).reshape(
            batch, side**2, -1
        )
        image = self.patch_embed(self.patch_bottleneck(patches))
        h = jnp.concatenate([*told, image], axis=1)
        h = h + self.position_embedding[...].astype(x.dtype)

        angles = rotary_angles(side, config.attention_head_dim)
        for block in self.blocks:
            h = block(h, angles)

        # The tokens of the image become x0: [B, H, W, in_channels].
        h = self.proj_out(self.norm_out(h[:, -(side**2) :])).reshape(batch, side, side, -1)
        x0 = resampling.depth_to_space(h, config.patch_size)

        # u = (x - x0) / t, in float32 since it is a difference.
        time = jnp.clip(t, SHORTEST_TIME, 1.0)[:, None, None, None]
        return ((x.astype(jnp.float32) - x0.astype(jnp.float32)) / time).astype(x.dtype)


def _embedded(embedding, values):
    """Returns the embedding of one number per sample, f32[B, width]."""
    return embedding(sinusoidal_embedding(values, FEATURES))


def _told(name, value, default, shape):
    """Returns what the network is told as f32[shape], or the config's for all samples."""
    if value is None:
        return jnp.broadcast_to(jnp.asarray(default, jnp.float32)[None], shape)
    if value.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {value.shape}")
    return jnp.asarray(value).astype(jnp.float32)

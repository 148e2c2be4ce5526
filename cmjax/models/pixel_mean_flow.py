"""Pixel MeanFlow (Lu et al. 2026, arXiv 2601.22158): images in one call, without latents."""

import jax
import jax.numpy as jnp
from flax import nnx

from cmjax.models import layers, resampling
from cmjax.models.context_transformer import ContextTransformer
from cmjax.models.on_meshes import on_any_mesh
from cmjax.models.pixel_mean_flow_config import PixelMeanFlowConfig
from cmjax.models.token_layers import drawn, rotary_angles


class PixelMeanFlow(ContextTransformer):
    """A transformer `(x, t, r, class_labels, guidance_scale, guidance_interval) -> velocity`.

    It takes images `[B, H, W, C]`, and returns the mean velocity from t to r, for
    `FlowMapEulerDiscreteScheduler`. What it takes besides the image are tokens in front of the
    image's: those of the class, of the guidance scale, of both ends of its interval, and of the
    time t - r. A last layer of zeros makes the x0 of an untrained network zero.
    """

    def __init__(self, config: PixelMeanFlowConfig, *, rngs: nnx.Rngs):
        """Makes the network with float32 parameters drawn from `rngs`."""
        super().__init__(config, rngs=rngs)
        folded = config.patch_size**2 * config.in_channels

        # Patches pass through a few channels: what natural images have in common.
        self.patch_bottleneck = layers.linear(folded, config.bottleneck_channels, rngs=rngs)
        self.patch_embed = layers.linear(
            config.bottleneck_channels, config.width, rngs=rngs
        )
        self.position_embedding = drawn((1, config.num_tokens, config.width), 0.02, rngs)

    @on_any_mesh
    def __call__(
        self,
        x: jax.Array,
        t: jax.Array,
        r: jax.Array,
        class_labels: jax.Array | None = None,
        guidance_scale: jax.Array | None = None,
        guidance_interval: jax.Array | None = None,
        second_head: bool = False,
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
            second_head: whether to return the velocity at t of the second head as well, behind the
                other along the last axis, as training asks for it.

        Returns:
            The mean velocity `[B, H, W, in_channels]`, in the dtype of `x`; with the second head's
            `[B, H, W, 2 in_channels]`.

        Raises:
            ValueError: if the images have another size, labels are missing or none of the model's,
                the scale or interval has another shape, or there is no second head.
        """
        config = self.config
        layers.check_images(x, config.sample_size, config.in_channels)
        t = t.astype(jnp.float32) * config.time_scale
        r = r.astype(jnp.float32) * config.time_scale

        # The sequence is [B, num_tokens, width]: the conditions, then the image.
        side = config.sample_size // config.patch_size
        patches = resampling.space_to_depth(x, config.patch_size).reshape(
            x.shape[0], side**2, -1
        )
        image = self.patch_embed(self.patch_bottleneck(patches))
        h = self.with_context(image, t - r, class_labels, guidance_scale, guidance_interval)
        h = h + self.position_embedding[...].astype(x.dtype)

        # The tokens of the image become x0, one for each head: [B, H, W, in_channels].
        angles = rotary_angles(side, config.attention_head_dim)
        x0 = self.output(h, angles, second_head)

        # u = (x - x0) / t, in float32 since it is a difference.
        time = jnp.clip(t, config.shortest_time, 1.0)[:, None, None, None]
        start = x.astype(jnp.float32)
        if second_head:
            start = jnp.concatenate([start, start], axis=-1)
        return ((start - x0.astype(jnp.float32)) / time).astype(x.dtype)

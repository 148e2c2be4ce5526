"""Improved mean flows (Geng et al. 2025, arXiv 2512.02012): latents in one or two calls."""

import jax
import jax.numpy as jnp
from flax import nnx

from cmjax.models import layers, resampling
from cmjax.models.context_transformer import ContextTransformer
from cmjax.models.improved_mean_flow_config import ImprovedMeanFlowConfig
from cmjax.models.on_meshes import on_any_mesh
from cmjax.models.token_layers import sequence_angles


class ImprovedMeanFlow(ContextTransformer):
    """A transformer `(x, t, r, class_labels, guidance_scale, guidance_interval) -> velocity`.

    It takes latents `[B, H, W, C]`, and returns the mean velocity from t to r, for
    `FlowMapEulerDiscreteScheduler`. It takes its conditions as `PixelMeanFlow` does, as tokens in
    front of the image's, and returns the velocity itself. Positions are those in the sequence.
    """

    def __init__(self, config: ImprovedMeanFlowConfig, *, rngs: nnx.Rngs):
        """Makes the network with float32 parameters drawn from `rngs`."""
        super().__init__(config, rngs=rngs)
        folded = config.patch_size**2 * config.in_channels
        self.patch_embed = layers.linear(folded, config.width, rngs=rngs)

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
            x: noisy latents `[B, H, W, in_channels]`; the network computes in their dtype.
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
            ValueError: if the latents have another size, labels are missing or none of the model's,
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
        h = self.with_context(
            self.patch_embed(patches),
            t - r,
            class_labels,
            guidance_scale,
            guidance_interval,
        )
        angles = sequence_angles(config.num_tokens, config.attention_head_dim)
        return self.output(h, angles, second_head)

"""diffusers' class-conditional transformer, `DiTTransformer2DModel`, in Flax NNX, channels-last."""

import jax
import jax.numpy as jnp
from flax import nnx

from cmjax.models import layers, resampling
from cmjax.models.dit_blocks import modulated
from cmjax.models.dit_transformer_blocks import EPSILON, Block, PatchEmbedding
from cmjax.models.dit_transformer_config import DiTTransformer2DConfig
from cmjax.models.on_meshes import on_any_mesh


class DiTTransformer2D(nnx.Module):
    """A transformer `(x, t, class_labels) -> model_output` with the parameters of diffusers'.

    Unlike in `DiT`, each block has its own embedding of the time and the class: diffusers made
    copies of the authors' one. The last layer is conditioned by that of the first block.
    """

    def __init__(self, config: DiTTransformer2DConfig, *, rngs: nnx.Rngs):
        """Makes the network with float32 parameters drawn from `rngs`."""
        self.config = config
        width = config.width
        folded = config.patch_size**2
        self.pos_embed = PatchEmbedding(config, rngs=rngs)
        self.transformer_blocks = nnx.List(
            [Block(config, rngs=rngs) for _ in range(config.num_layers)]
        )
        self.proj_out_1 = layers.linear(width, 2 * width, rngs=rngs)
        self.proj_out_2 = layers.linear(width, folded * config.out_channels, rngs=rngs)

    @on_any_mesh
    def __call__(self, x: jax.Array, t: jax.Array, class_labels: jax.Array) -> jax.Array:
        """Evaluates the network.

        Args:
            x: samples `[B, H, W, in_channels]`; the network computes in their dtype.
            t: training times 0..N-1, f32[B]; embedded in float32.
            class_labels: classes, i32[B]; `num_embeds_ada_norm` is no class.

        Returns:
            The prediction `[B, H, W, in_channels]`, in the dtype of `x`; with `keep_variance`
            `[B, H, W, out_channels]`.

        Raises:
            ValueError: if the samples have another size, or labels are missing or no classes.
        """
        config = self.config
        layers.check_images(x, config.sample_size, config.in_channels)

        # Patches are the tokens: [B, side * side, width].
        h = self.pos_embed(x)
        for block in self.transformer_blocks:
            h = block(h, t, class_labels)

        # From tokens to patches, scaled and shifted by the first block's embedding.
        first = self.transformer_blocks[0].norm1.embed(t, class_labels).astype(x.dtype)
        condition = self.proj_out_1(jax.nn.silu(first))[:, None]
        shift, scale = jnp.split(condition, 2, axis=-1)
        h = self.proj_out_2(modulated(h, shift, scale, EPSILON))

        # And from patches to pixels.
        side = config.sample_size // config.patch_size
        patches = h.reshape(x.shape[0], side, side, h.shape[-1])
        output = resampling.depth_to_space(patches, config.patch_size)
        if config.keep_variance:
            return output
        return output[..., : config.in_channels]

"""The convolutional UNet of the released consistency models, in Flax NNX, channels-last.

Modules have the names of diffusers' `UNet2DModel`, by which the tensors of a file find their place.
"""

import jax
from flax import nnx

from cmjax.models import layers, resampling
from cmjax.models.embeddings import (
    TimestepEmbedding,
    add_class_embedding,
    class_table,
    sinusoidal_embedding,
)
from cmjax.models.further_conditions import FurtherConditions
from cmjax.models.on_meshes import on_any_mesh
from cmjax.models.unet_blocks import DownBlock, MidBlock, UpBlock
from cmjax.models.unet_config import UNet2DConfig


class UNet2D(nnx.Module):
    """A UNet `(x, t, r, class_labels, guidance_scale) -> model_output`.

    It takes images `[B, H, W, C]` and times f32[B]; what follows t only if its config says so. The
    last convolution starts at zero: the output of an untrained network is zero, which leaves the
    skip connection of the model, c_skip * x.
    """

    def __init__(self, config: UNet2DConfig, *, rngs: nnx.Rngs):
        """Makes the network with float32 parameters drawn from `rngs`."""
        self.config = config
        widths = config.block_out_channels
        folded = config.patch_size**2

        # The first feature map, and what all blocks are conditioned on: the time and the class.
        self.conv_in = layers.conv(folded * config.in_channels, widths[0], rngs=rngs)
        self.time_embedding = TimestepEmbedding(widths[0], config.time_features, rngs=rngs)
        self.class_embedding = class_table(config, config.time_features, rngs=rngs)
        self.further = FurtherConditions(config, widths[0], config.time_features, rngs=rngs)

        # `skips` has the channels of every map that the way down leaves for the way up: that of
        # conv_in, one per residual block and one per halving.
        skips = [widths[0]]
        self.down_blocks = nnx.List([])
        for i, kind in enumerate(config.down_block_types):
            last = i == len(widths) - 1
            self.down_blocks.append(
                DownBlock(config, kind, skips[-1], widths[i], not last, rngs=rngs)
            )
            skips += [widths[i]] * (config.layers_per_block + (not last))
        self.mid_block = MidBlock(config, widths[-1], rngs=rngs)

        # The way up takes them, the last one first: one more per resolution than the way down has
        # residual blocks, which accounts for the halvings and conv_in.
        channels = widths[-1]
        self.up_blocks = nnx.List([])
        for i, kind in enumerate(config.up_block_types):
            width = widths[::-1][i]
            taken = [skips.pop() for _ in range(config.layers_per_block + 1)]
            last = i == len(widths) - 1
            self.up_blocks.append(
                UpBlock(config, kind, channels, taken, width, not last, rngs=rngs)
            )
            channels = width

        # Back to an image.
        self.conv_norm_out = layers.GroupNorm(
            widths[0], config.norm_num_groups, config.norm_eps, rngs=rngs
        )
        self.conv_out = layers.conv(
            widths[0],
            folded * config.out_channels,
            kernel_init=nnx.initializers.zeros,
            rngs=rngs,
        )

    @on_any_mesh
    def __call__(
        self,
        x: jax.Array,
        t: jax.Array,
        r: jax.Array | None = None,
        class_labels: jax.Array | None = None,
        guidance_scale: jax.Array | None = None,
    ) -> jax.Array:
        """Evaluates the network.

        Args:
            x: scaled samples `[B, H, W, in_channels]`; the network computes in their dtype.
            t: times, f32[B]; embedded in float32.
            r: second times, f32[B], for a network with `second_time`.
            class_labels: classes, i32[B], for a model that has them.
            guidance_scale: f32[B], for a network with `guidance_embeds`.

        Returns:
            The model output `[B, H, W, out_channels]`, in the dtype of `x`.

        Raises:
            ValueError: if the images have another size, or labels, a second time or a scale are
                missing, or given to a model without them.
        """
        config = self.config
        layers.check_images(x, config.sample_size, config.in_channels)

        # The embedding is computed in float32, and cast at the end: [B, time_features].
        embedding = self._embed(t, r, class_labels, guidance_scale).astype(x.dtype)
        if config.center_input_sample:
            x = 2 * x - 1

        # The blocks use `skips` as a stack: those going down push, those going up pop.
        h = self.conv_in(resampling.space_to_depth(x, config.patch_size))
        skips = [h]
        for block in self.down_blocks:
            h = block(h, embedding, skips)
        h = self.mid_block(h, embedding)
        for block in self.up_blocks:
            h = block(h, embedding, skips)

        # The output `[B, H/p, W/p, p * p * out_channels]`, unfolded to pixels.
        h = self.conv_out(jax.nn.silu(self.conv_norm_out(h)))
        return resampling.depth_to_space(h, config.patch_size)

    def _embed(self, t, r, class_labels, guidance_scale):
        """Returns the embedding of times, class and scale, f32[B, time_features]."""
        config = self.config
        features = sinusoidal_embedding(
            t * config.time_scale,
            config.block_out_channels[0],
            flip_sin_to_cos=config.flip_sin_to_cos,
            freq_shift=config.freq_shift,
        )
        embedding = self.further(self.time_embedding(features), t, r, guidance_scale)
        return add_class_embedding(embedding, self.class_embedding, class_labels)

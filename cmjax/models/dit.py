"""The diffusion transformer (Peebles & Xie 2023, arXiv 2212.09748), in Flax NNX, channels-last."""

import jax
import jax.numpy as jnp
from flax import nnx

from cmjax.models import layers, resampling
from cmjax.models.dit_blocks import Block, modulated, position_embedding, zero_linear
from cmjax.models.dit_config import DiTConfig
from cmjax.models.embeddings import (
    TimestepEmbedding,
    add_class_embedding,
    class_table,
    sinusoidal_embedding,
)
from cmjax.models.further_conditions import FurtherConditions
from cmjax.models.on_meshes import on_any_mesh

TIME_FEATURES = 256  # sines and cosines of the time, as in the authors' code


class DiT(nnx.Module):
    """A transformer `(x, t, r, class_labels, guidance_scale) -> model_output`.

    It takes images `[B, H, W, C]` and times f32[B]; what follows t only if its config says so. The
    gates of every block and the last layer start at zero: the output of an untrained network is
    zero, which leaves the skip connection of the model, c_skip * x.
    """

    def __init__(self, config: DiTConfig, *, rngs: nnx.Rngs):
        """Makes the network with float32 parameters drawn from `rngs`."""
        self.config = config
        width = config.width
        folded = config.patch_size**2

        # Tokens, and what all blocks are conditioned on: the time and the class.
        self.patch_embed = layers.linear(folded * config.in_channels, width, rngs=rngs)
        self.time_embedding = TimestepEmbedding(TIME_FEATURES, width, rngs=rngs)
        self.class_embedding = class_table(config, width, rngs=rngs)
        self.further = FurtherConditions(config, TIME_FEATURES, width, rngs=rngs)

        # The blocks, and a layer per long skip, from twice the channels back to the width.
        self.blocks = nnx.List([Block(config, rngs=rngs) for _ in range(config.num_layers)])
        joined = config.num_layers // 2 if config.long_skips else 0
        self.skips = nnx.List(
            [layers.linear(2 * width, width, rngs=rngs) for _ in range(joined)]
        )

        # From tokens to patches, scaled and shifted as in the blocks.
        self.modulation = zero_linear(width, 2 * width, rngs)
        self.proj_out = zero_linear(width, folded * config.out_channels, rngs)

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

        # The embedding is computed in float32, and cast at the end: [B, width].
        embedding = self._embed(t, r, class_labels, guidance_scale)
        condition = jax.nn.silu(embedding).astype(x.dtype)

        # Patches are the tokens, [B, side * side, width]; their positions are added.
        batch = x.shape[0]
        side = config.sample_size // config.patch_size
        patches = resampling.space_to_depth(x, config.patch_size)
        tokens = self.patch_embed(patches).reshape(batch, side * side, config.width)
        positions = jnp.asarray(position_embedding(side, config.width), x.dtype)
        h = tokens + positions[None]

        # With long skips, the last block takes what the first returned, the last but one what the
        # second returned, and so on: `kept` is a stack. With an odd number the middle has none.
        num_skips = len(self.skips)
        first_joined = config.num_layers - num_skips
        kept: list[jax.Array] = []
        for i, block in enumerate(self.blocks):
            if i >= first_joined:
                join = self.skips[i - first_joined]
                h = join(jnp.concatenate([h, kept.pop()], axis=-1))
            h = block(h, condition)
            if i < num_skips:
                kept.append(h)

        # Back from tokens to patches, and from patches to pixels.
        modulation = self.modulation(condition)[:, None]
        shift, scale = jnp.split(modulation, 2, axis=-1)
        out = self.proj_out(modulated(h, shift, scale))
        out = out.reshape(batch, side, side, out.shape[-1])
        return resampling.depth_to_space(out, config.patch_size)

    def _embed(self, t, r, class_labels, guidance_scale):
        """Returns the embedding of times, class and scale, f32[B, width]."""
        features = sinusoidal_embedding(t * self.config.time_scale, TIME_FEATURES)
        embedding = self.time_embedding(features)
        embedding = self.further(embedding, t, r, guidance_scale)
        return add_class_embedding(embedding, self.class_embedding, class_labels)

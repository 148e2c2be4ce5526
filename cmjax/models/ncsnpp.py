"""NCSN++ (Song et al. 2021, arXiv 2011.13456): the UNet of OpenAI's models of CIFAR-10."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from cmjax.models import embeddings, layers
from cmjax.models.further_conditions import FurtherConditions
from cmjax.models.ncsnpp_blocks import DownBlock, MidBlock, UpBlock, group_norm
from cmjax.models.ncsnpp_config import NCSNppConfig
from cmjax.models.on_meshes import on_any_mesh
from cmjax.models.token_layers import drawn

FREQUENCY_SCALE = 16.0  # standard deviation of the frequencies of the time


class NCSNpp(nnx.Module):
    """A UNet `(x, t, r, class_labels, guidance_scale) -> model_output`.

    It takes images `[B, H, W, C]` and times f32[B]; what follows t only if its config says so.
    From `UNet2D` it differs in smooth resampling, in residual sums that keep the variance, in the
    input that is halved too and added at every resolution, and in the random frequencies of the
    time. The output of an untrained network is zero.
    """

    def __init__(self, config: NCSNppConfig, *, rngs: nnx.Rngs):
        """Makes the network with float32 parameters drawn from `rngs`."""
        self.config = config
        base = config.base_channels

        # What all blocks are conditioned on. Of random frequencies there are sines and cosines.
        frequencies = None
        if config.fourier_time:
            frequencies = drawn((base,), FREQUENCY_SCALE, rngs)
        self.time_frequencies = frequencies
        features = base * (1 + config.fourier_time)
        width = config.time_features
        self.time_embedding = embeddings.TimestepEmbedding(features, width, rngs=rngs)
        self.class_embedding = embeddings.class_table(config, width, rngs=rngs)
        self.further = FurtherConditions(config, base, width, rngs=rngs)

        # `skips` has the channels of every map that the way down leaves for the way up.
        levels = range(len(config.block_out_channels))
        self.conv_in = layers.conv(config.in_channels, base, rngs=rngs)
        skips = [base]
        self.down_blocks = nnx.List([DownBlock(config, i, skips, rngs) for i in levels])
        self.mid_block = MidBlock(config, rngs)
        self.up_blocks = nnx.List([UpBlock(config, i, skips, rngs) for i in levels[::-1]])

        # Back to an image.
        highest = config.block_out_channels[0]
        self.conv_norm_out = group_norm(highest, rngs)
        self.conv_out = layers.conv(
            highest, config.out_channels, kernel_init=nnx.initializers.zeros, rngs=rngs
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
        embedding = self.time_embedding(self._features_of(t))
        embedding = self.further(embedding, t, r, guidance_scale)
        embedding = embeddings.add_class_embedding(
            embedding, self.class_embedding, class_labels
        )
        embedding = embedding.astype(x.dtype)

        # The blocks use `skips` as a stack: those going down push, those going up pop.
        pyramid = x
        skips = [self.conv_in(x)]
        for block in self.down_blocks:
            pyramid = block(pyramid, embedding, skips)
        h = self.mid_block(skips[-1], embedding)
        for block in self.up_blocks:
            h = block(h, embedding, skips)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(h)))

    def _features_of(self, t):
        """Returns sines and cosines of the times, f32[B, F]."""
        t = t.astype(jnp.float32) * self.config.time_scale
        if self.time_frequencies is None:
            return embeddings.sinusoidal_embedding(
                t, self.config.base_channels, flip_sin_to_cos=False, freq_shift=1
            )

        # They stay as they were drawn: training does not change them.
        frequencies = jax.lax.stop_gradient(self.time_frequencies[...].astype(jnp.float32))
        angles = t[:, None] * frequencies[None] * (2 * math.pi)
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)

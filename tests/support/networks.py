"""Models so small that they compile at once, for tests that are not about networks."""

import jax
import numpy as np
from flax import nnx

import cmjax
from cmjax.models import DiT, DiTConfig


def tiny_model(num_classes=10, channels=1, seed=0):
    """A transformer of four patches, of random parameters, under the consistency sampler.

    No parameter is zero, so that samples depend on everything: noise, class and time.
    """
    config = DiTConfig(
        sample_size=8,
        in_channels=channels,
        out_channels=channels,
        patch_size=4,
        num_layers=1,
        num_attention_heads=1,
        attention_head_dim=8,
        num_class_embeds=num_classes,
    )
    apply_fn, abstract = cmjax.from_nnx(nnx.eval_shape(lambda: DiT(config, rngs=nnx.Rngs(0))))
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda leaf: jax.numpy.asarray(rng.normal(0, 0.3, leaf.shape), leaf.dtype), abstract
    )
    return cmjax.Model(apply_fn, params, cmjax.CMStochasticIterativeScheduler(), config)

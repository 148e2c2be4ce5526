"""Small networks with every parameter drawn: layers of zeros would hide what is before them."""

import functools

import jax
import numpy as np
from flax import nnx

import cmjax
from cmjax.models import DiT, DiTConfig, UNet2DConfig
from cmjax.models.registry import architecture, network_name

UNET = UNet2DConfig(
    sample_size=8,
    in_channels=1,
    out_channels=1,
    block_out_channels=(8, 16),
    layers_per_block=1,
    attention_head_dim=8,
    norm_num_groups=4,
    patch_size=2,
    num_class_embeds=3,
)
DIT = DiTConfig(
    sample_size=8,
    num_layers=4,
    num_attention_heads=2,
    attention_head_dim=8,
    num_class_embeds=3,
)


@functools.cache
def network(config=UNET):
    """Returns a jitted `apply_fn`, and parameters that keep the activations' scale.

    NumPy draws them: a network made layer by layer compiles a program for every shape.
    """
    cls, _ = architecture(network_name(config))
    apply_fn, abstract = cmjax.from_nnx(
        nnx.eval_shape(lambda: cls(config, rngs=nnx.Rngs(0)))
    )
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        name = jax.tree_util.keystr(path)
        values = rng.normal(size=leaf.shape)
        if "kernel" in name:
            values /= np.sqrt(np.prod(leaf.shape[:-1]))
        elif "scale" in name:
            values = 1 + 0.3 * values
        elif "bias" in name:
            values *= 0.3
        return jax.numpy.asarray(values, leaf.dtype)

    return jax.jit(apply_fn), jax.tree_util.tree_map_with_path(draw, abstract)


def model(config=UNET, scheduler=None, **fields):
    """Returns a model of such a network."""
    apply_fn, params = network(config)
    scheduler = scheduler or cmjax.CMStochasticIterativeScheduler()
    return cmjax.Model(apply_fn, params, scheduler, config, **fields)


def tiny_model(num_classes=10, channels=1, seed=0, null_class=False):
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
        null_class=null_class,
    )
    apply_fn, abstract = cmjax.from_nnx(
        nnx.eval_shape(lambda: DiT(config, rngs=nnx.Rngs(0)))
    )
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda leaf: jax.numpy.asarray(rng.normal(0, 0.3, leaf.shape), leaf.dtype), abstract
    )
    return cmjax.Model(apply_fn, params, cmjax.CMStochasticIterativeScheduler(), config)

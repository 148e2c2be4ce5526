"""The class-conditional transformer of diffusers, on the same weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DiTTransformer2DModel
from flax import nnx

from cmjax.checkpoints.checkpoint import flatten_named
from cmjax.checkpoints.diffusers import layout
from cmjax.models import DiTTransformer2D, DiTTransformer2DConfig, from_nnx

CONFIG = DiTTransformer2DConfig(
    sample_size=8,
    num_layers=2,
    num_attention_heads=2,
    attention_head_dim=8,
    num_embeds_ada_norm=5,
    keep_variance=True,
)
X = np.random.default_rng(0).standard_normal((3, 8, 8, 4)).astype(np.float32)
T = np.array([0.0, 500.0, 999.0], np.float32)
LABELS = np.array([0, 5, 3], np.int32)  # 5 is no class


def reference(config):
    """diffusers' network with every tensor drawn."""
    options = dataclasses.asdict(config)
    del options["keep_variance"]
    torch.manual_seed(0)
    network = DiTTransformer2DModel(**options).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    return network


def params_of(config, network):
    """The parameters of a network of diffusers, in the tree of cmjax's."""
    tensors = network.state_dict()
    _, params = from_nnx(DiTTransformer2D(config, rngs=nnx.Rngs(0)))
    leaves = []
    for name, leaf in flatten_named(params).items():
        stored, axes = layout(name, leaf.ndim)
        leaves.append(jnp.asarray(tensors[stored].numpy().transpose(np.argsort(axes))))
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


@pytest.mark.parametrize(
    "changes",
    [{}, {"patch_size": 4, "attention_bias": False, "out_channels": 4, "norm_eps": 0.1}],
)
def test_outputs_equal_those_of_diffusers(changes):
    config = dataclasses.replace(CONFIG, **changes)
    network = reference(config)
    apply_fn, _ = from_nnx(DiTTransformer2D(config, rngs=nnx.Rngs(0)))
    with torch.no_grad():
        x = torch.from_numpy(X.transpose(0, 3, 1, 2))
        theirs = network(x, torch.from_numpy(T), torch.from_numpy(LABELS)).sample
    theirs = theirs.numpy().transpose(0, 2, 3, 1)
    ours = apply_fn(params_of(config, network), X, T, class_labels=jnp.asarray(LABELS))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * theirs.std())


def test_a_variance_is_dropped_unless_it_is_asked_for():
    network = reference(CONFIG)
    params = params_of(CONFIG, network)
    both, _ = from_nnx(DiTTransformer2D(CONFIG, rngs=nnx.Rngs(0)))
    config = dataclasses.replace(CONFIG, keep_variance=False)
    one, _ = from_nnx(DiTTransformer2D(config, rngs=nnx.Rngs(0)))
    labels = jnp.asarray(LABELS)
    np.testing.assert_array_equal(
        one(params, X, T, class_labels=labels),
        both(params, X, T, class_labels=labels)[..., :4],
    )

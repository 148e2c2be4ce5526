"""Small autoencoders with every tensor drawn."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np

import cmjax
from cmjax.models import AutoencoderKLConfig, AutoencoderTinyConfig
from cmjax.models.registry import network_parts

KL = AutoencoderKLConfig(
    down_block_types=("DownEncoderBlock2D",) * 2,
    up_block_types=("UpDecoderBlock2D",) * 2,
    block_out_channels=(4, 8),
    layers_per_block=1,
    norm_num_groups=2,
    sample_size=8,
)
TINY = AutoencoderTinyConfig(
    encoder_block_out_channels=(4, 4),
    decoder_block_out_channels=(4, 4),
    num_encoder_blocks=(1, 1),
    num_decoder_blocks=(1, 1),
)


@functools.cache
def autoencoder(config, seed=0):
    _, abstract = network_parts(config)
    rng = np.random.default_rng(seed)

    def draw(leaf):
        fan_in = max(1, int(np.prod(leaf.shape[:-1])))
        return jnp.asarray(rng.normal(0, fan_in**-0.5, leaf.shape), leaf.dtype)

    return cmjax.Autoencoder(config, jax.tree.map(draw, abstract))


@functools.cache
def images(batch=2, size=8):
    rng = np.random.default_rng(1)
    return jnp.asarray(rng.uniform(-1, 1, (batch, size, size, 3)), jnp.float32)


def draw_tensors(network, torch):
    """Draws every tensor of a network of PyTorch, norm scales and biases too."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            fan_in = max(1, parameter[0].numel()) if parameter.ndim > 1 else 4
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(centre + torch.randn_like(parameter) / fan_in**0.5)
    return network.eval()


def flax_tree(params):
    """The parameters as diffusers' Flax classes nest and name them."""
    tree = {}
    for name, value in cmjax.checkpoints.checkpoint.flatten_named(params).items():
        parts = []
        for part in name.split("."):
            if part.isdigit():
                parts[-1] += f"_{part}"
            else:
                parts.append(part)
        names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out_0": "proj_attn"}
        *above, leaf = [names.get(part, part) for part in parts]
        inside = tree
        for part in above:
            inside = inside.setdefault(part, {})
        inside[leaf] = np.asarray(value)
    return tree


def edit(path, **changes):
    """Changes options of a JSON file; None removes one."""
    content = json.loads(path.read_text()) | changes
    kept = {name: value for name, value in content.items() if value is not None}
    path.write_text(json.dumps(kept))

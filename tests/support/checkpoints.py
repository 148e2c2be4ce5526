"""A network of a few hundred numbers, in every kind of file."""

import functools
import json
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from safetensors.numpy import load_file

import cmjax
from cmjax.checkpoints import diffusers_weights, openai
from cmjax.models import UNet2D, UNet2DConfig
from tests.support import torch_zip

CONFIG = UNet2DConfig(
    sample_size=4,
    in_channels=1,
    out_channels=1,
    down_block_types=("DownBlock2D",),
    up_block_types=("UpBlock2D",),
    block_out_channels=(2,),
    layers_per_block=1,
    attention_head_dim=1,
    norm_num_groups=1,
    num_class_embeds=2,
)
KINDS = ("cmjax", "diffusers", "bin", "pt")
GOLDEN = Path(__file__).parents[1] / "golden"
NO_FILE = Path("cd_tiny.pt")  # a name alone


@functools.cache
def model(seed=0):
    apply_fn, abstract = cmjax.from_nnx(
        nnx.eval_shape(lambda: UNet2D(CONFIG, rngs=nnx.Rngs(0)))
    )
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda leaf: jax.numpy.asarray(rng.normal(0, 0.3, leaf.shape), leaf.dtype), abstract
    )
    return cmjax.Model(
        jax.jit(apply_fn), params, cmjax.CMStochasticIterativeScheduler(), CONFIG
    )


def write(root, kind):
    """Writes the model; returns what to open, and the file that holds its tensors."""
    if kind == "cmjax":
        cmjax.save(root / "cmjax", model())
        return root / "cmjax", root / "cmjax" / "model.safetensors"
    path = root / kind
    cmjax.save(path, model(), to="diffusers")
    weights = path / "unet" / diffusers_weights.SAFETENSORS
    if kind == "diffusers":
        return path, weights
    tensors = load_file(weights)
    if kind == "bin":
        weights.unlink()
        return path, torch_zip.save(path / "unet" / diffusers_weights.TORCH, tensors)
    torch_zip.save(root / "cd_tiny.pt", openai_names(tensors))
    return root / "cd_tiny.pt", root / "cd_tiny.pt"


def openai_names(tensors):
    """The tensors under the names, and in the shapes, of OpenAI's network."""
    modules = openai.module_names(CONFIG)
    parts = {ours: theirs for theirs, ours in openai.LAYERS.items()}
    parts |= dict.fromkeys(openai.QUERY_KEY_VALUE, "qkv")
    renamed = {}
    order = {"to_q": 0, "to_k": 1, "to_v": 2}  # of the rows of OpenAI's qkv
    for name, tensor in sorted(
        tensors.items(), key=lambda item: order.get(item[0].split(".")[-2], 0)
    ):
        module, _, leaf = name.rpartition(".")
        if module in modules:
            renamed[f"{modules[module]}.{leaf}"] = tensor
            continue
        parent = max((m for m in modules if module.startswith(f"{m}.")), key=len)
        part = module.removeprefix(f"{parent}.")
        flat = "attentions" in parent and tensor.ndim > 1
        theirs = f"{modules[parent]}.{parts.get(part, part)}.{leaf}"
        tensor = tensor[..., None] if flat else tensor
        renamed[theirs] = (
            np.concatenate([renamed[theirs], tensor]) if theirs in renamed else tensor
        )
    return renamed


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))

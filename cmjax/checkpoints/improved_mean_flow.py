"""Improved MeanFlow's checkpoints (Lyy-iiis/imeanflow), of its JAX and its PyTorch code.

They are training states or state dicts without a config: names and shapes tell the network, whose
modules have the names of Pixel MeanFlow's. What these leave open, the guidance by default, is that
of the released model of this size.
"""

import functools
import math
from collections.abc import Mapping
from pathlib import Path

from cmjax.checkpoints import pixel_mean_flow
from cmjax.checkpoints.checkpoint import Checkpoint, Latents
from cmjax.checkpoints.pixel_mean_flow import CONTEXT, SECOND_HEAD
from cmjax.checkpoints.released_sizes import name_of_size, num_blocks, preset_of
from cmjax.checkpoints.tensors import StoredTensor
from cmjax.models import IMPROVED_MEAN_FLOWS, ImprovedMeanFlowConfig
from cmjax.schedulers import FlowMapEulerDiscreteScheduler

FIRST = "x_embedder.proj.weight"
NORM = "u_final_layer.norm.weight"
PREFIXES = ("net.", "")
SIDE = 32  # of the latents of 256x256 images, which no tensor tells

# Latents are those of this autoencoder by its own scale, less their mean, divided by their
# standard deviation (utils/vae_util.py of the authors' code).
LATENTS = Latents(
    "stabilityai/sd-vae-ft-mse",
    {
        "scaling_factor": 1.0,
        "shift_factor": None,
        "latents_mean": (0.86488, -0.27787343, 0.21616915, 0.3738409),
        "latents_std": (4.85503674, 5.31922414, 3.93725398, 3.9870003),
    },
)

# What tensors do not tell of a network; without a released model of its size, these values.
_UNKNOWN = {"guidance_scale": 1.0, "guidance_interval": (0.0, 1.0)}


def prefix_of(tensors: Mapping[str, StoredTensor]) -> str | None:
    """Returns what all names of such a file begin with; None if it is another file."""
    for prefix in PREFIXES:
        if prefix + FIRST in tensors and prefix + NORM in tensors:
            return prefix
    return None


def from_tensors(
    path: Path,
    tensors: Mapping[str, StoredTensor],
    config: ImprovedMeanFlowConfig | str | None = None,
    note: str = "",
) -> Checkpoint:
    """Opens a checkpoint of improved MeanFlow.

    Args:
        path: its file or folder.
        tensors: its tensors by name, as PyTorch has them.
        config: config of the network, or the name of a preset; None tells it from the tensors.
        note: what is said of it already.

    Raises:
        ValueError: if the tensors are not those of such a network, or not of the one given.
    """
    config = preset_of(config, IMPROVED_MEAN_FLOWS, "improved MeanFlow")
    prefix = prefix_of(tensors) or ""
    try:
        config = config or infer_config(tensors, prefix)
        used, ignored = _used(tensors, prefix)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None

    notes = [note, ignored]
    if not name_of_size(config, IMPROVED_MEAN_FLOWS, _UNKNOWN):
        scale = f"{config.guidance_scale:g}"
        notes.append(
            f"no released model has this size: it is sampled with guidance of scale {scale}"
        )
    shared_depth = num_blocks(tensors, f"{prefix}shared_blocks.")
    return Checkpoint(
        kind="improved MeanFlow checkpoint",
        files=(path,),
        config=config,
        scheduler=FlowMapEulerDiscreteScheduler(),
        tensors=used,
        layout=functools.partial(layout, prefix, shared_depth),
        note="; ".join(filter(None, notes)),
        latents=LATENTS,
    )


def infer_config(
    tensors: Mapping[str, StoredTensor], prefix: str = "net."
) -> ImprovedMeanFlowConfig:
    """Infers the network from the names and shapes of its tensors.

    Raises:
        ValueError: if they are not those of an `ImprovedMeanFlow`.
    """

    def shape(name):
        return tensors[prefix + name].shape

    shared_depth = num_blocks(tensors, f"{prefix}shared_blocks.")
    head_depth = num_blocks(tensors, f"{prefix}u_heads.")
    block = "shared_blocks.0" if shared_depth else "u_heads.0"
    try:
        width, channels, patch, _ = shape(FIRST)
        (head_dim,) = shape(f"{block}.attn.q_norm.weight")
        hidden, _ = shape(f"{block}.mlp.w1._flax_linear.weight")
        labels, _ = shape("y_embedder.embedding_table._flax_embedding.weight")
        context = tuple(shape(name)[0] for name in CONTEXT)
        heads = width // head_dim
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise ValueError(
            f"the tensors are not those of improved MeanFlow's network ({error})"
        ) from None

    # Without a released model of this size, sampling is not guided.
    config = ImprovedMeanFlowConfig(
        sample_size=SIDE,
        in_channels=channels,
        patch_size=patch,
        num_layers=shared_depth + head_depth,
        num_attention_heads=heads,
        attention_head_dim=head_dim,
        mlp_channels=hidden,
        num_class_embeds=labels - 1,
        context_tokens=context,
        **_UNKNOWN,
    )
    name = name_of_size(config, IMPROVED_MEAN_FLOWS, _UNKNOWN)
    return IMPROVED_MEAN_FLOWS[name] if name else config


def layout(
    prefix: str, shared_depth: int, name: str, ndim: int
) -> tuple[str, tuple[int, ...]]:
    """Returns the name in the file of one of our parameters; see `pixel_mean_flow.layout`."""
    stored, axes = pixel_mean_flow.layout(prefix, shared_depth, name, ndim)
    # Patches become tokens at once, where those of Pixel MeanFlow pass through fewer channels.
    return stored.replace("x_embedder.proj2.", "x_embedder.proj."), axes


def _used(
    tensors: Mapping[str, StoredTensor], prefix: str
) -> tuple[dict[str, StoredTensor], str]:
    """Returns the tensors in the network's shapes, and what is said of those left out.

    Unknown ones are among the former: `Checkpoint.check` lists them.
    """
    used = {}
    second_head = 0
    for name, tensor in tensors.items():
        own = name.removeprefix(prefix)
        if own.startswith(SECOND_HEAD):
            second_head += 1
        # A convolution of patches [out, in, p, p] is a dense layer over their pixels here.
        elif own == FIRST:
            used[name] = tensor.patches_as_rows()
        elif own in CONTEXT and math.prod(tensor.shape):
            used[name] = tensor.reshaped((1, *tensor.shape))
        else:
            used[name] = tensor
    if not second_head:
        return used, ""
    return used, (
        f"ignored: {second_head} tensors of the second head, which only training uses"
    )

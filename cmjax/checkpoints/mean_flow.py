"""MeanFlow's checkpoints (Gsunshine/meanflow): training states of Flax, without a config.

Names and shapes tell the network but for two things: the latents are those of 256x256 images, of
32x32, and the number of heads is that of the authors' network of this width.
"""

import functools
from collections.abc import Mapping
from pathlib import Path

from cmjax.checkpoints.checkpoint import Checkpoint, Latents
from cmjax.checkpoints.released_sizes import heads_of, num_blocks, preset_of
from cmjax.checkpoints.tensors import StoredTensor
from cmjax.models import MEAN_FLOWS, DiTConfig
from cmjax.models.registry import preset_name
from cmjax.schedulers import FlowMapEulerDiscreteScheduler

FIRST = "x_embedder.proj.weight"
SECOND_TIME = "h_embedder.mlp.0._flax_linear.weight"

# Names of our modules -> theirs, without those of the blocks.
MODULES = {
    "patch_embed": "x_embedder.proj",
    "time_embedding.linear_1": "t_embedder.mlp.0._flax_linear",
    "time_embedding.linear_2": "t_embedder.mlp.2._flax_linear",
    "further.second_time.linear_1": "h_embedder.mlp.0._flax_linear",
    "further.second_time.linear_2": "h_embedder.mlp.2._flax_linear",
    "class_embedding": "y_embedder.embedding_table._flax_embedding",
    "modulation": "final_layer.adaLN_modulation.1._flax_linear",
    "proj_out": "final_layer.linear._flax_linear",
}
IN_BLOCKS = {
    "modulation": "adaLN_modulation.1._flax_linear",
    "to_qkv": "attn.qkv._flax_linear",
    "to_out": "attn.proj._flax_linear",
    "linear_1": "mlp.fc1._flax_linear",
    "linear_2": "mlp.fc2._flax_linear",
}

# The config of this autoencoder has the scale of the latents.
LATENTS = Latents("stabilityai/sd-vae-ft-mse")


def prefix_of(tensors: Mapping[str, StoredTensor]) -> str | None:
    """Returns what all names of such a file begin with; None if it is another file."""
    for prefix in ("net.", ""):
        if all(prefix + name in tensors for name in (FIRST, SECOND_TIME)):
            if any(name.startswith(f"{prefix}blocks.") for name in tensors):
                return prefix
    return None


def from_tensors(
    path: Path,
    tensors: Mapping[str, StoredTensor],
    config: DiTConfig | str | None = None,
    note: str = "",
) -> Checkpoint:
    """Opens a checkpoint of MeanFlow.

    Args:
        path: its file or folder.
        tensors: its tensors by name, as PyTorch would have them.
        config: config of the network, or the name of a preset; None tells it from the tensors.
        note: what is said of it.

    Raises:
        ValueError: if the tensors are not those of such a network, or not of the one given.
    """
    config = preset_of(config, MEAN_FLOWS, "MeanFlow")
    prefix = prefix_of(tensors) or ""
    try:
        config = config or infer_config(tensors, prefix)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None

    # A convolution of patches [out, in, p, p] is a dense layer over their pixels here.
    used = dict(tensors)
    used[prefix + FIRST] = tensors[prefix + FIRST].patches_as_rows()
    if not preset_name(config):
        note = f"{note}; no released model has this size".removeprefix("; ")
    return Checkpoint(
        kind="MeanFlow checkpoint",
        files=(path,),
        config=config,
        scheduler=FlowMapEulerDiscreteScheduler(),
        tensors=used,
        layout=functools.partial(layout, prefix),
        note=note,
        latents=LATENTS,
    )


def infer_config(tensors: Mapping[str, StoredTensor], prefix: str = "net.") -> DiTConfig:
    """Infers the network from the names and shapes of its tensors.

    Raises:
        ValueError: if they are not those of a network of MeanFlow, or of one whose number of heads
            is not known.
    """
    depth = num_blocks(tensors, f"{prefix}blocks.")
    try:
        width, channels, patch, _ = tensors[prefix + FIRST].shape
        hidden, _ = tensors[f"{prefix}blocks.0.mlp.fc1._flax_linear.weight"].shape
        table = f"{prefix}y_embedder.embedding_table._flax_embedding.weight"
        labels, _ = tensors[table].shape
        ratio = hidden / width
    except (KeyError, ValueError, ZeroDivisionError) as error:
        raise ValueError(
            f"the tensors are not those of MeanFlow's network ({error})"
        ) from None

    heads, head_dim = heads_of(width)
    return DiTConfig(
        sample_size=32,
        in_channels=channels,
        out_channels=channels,
        patch_size=patch,
        num_layers=depth,
        num_attention_heads=heads,
        attention_head_dim=head_dim,
        mlp_ratio=ratio,
        num_class_embeds=labels - 1,
        null_class=True,
        time_scale=0.001,
        second_time="span",
    )


def layout(prefix: str, name: str, ndim: int) -> tuple[str, tuple[int, ...]]:
    """Returns the name in the file of one of our parameters, and the order of its axes there.

    Args:
        prefix: of the names in the file.
        name: of the parameter, such as "blocks.3.to_qkv.kernel".
        ndim: its number of axes.
    """
    # "module.leaf", or "blocks.index.module.leaf": the leaf is "bias", or in PyTorch "weight".
    names = MODULES
    block = ""
    if name.startswith("blocks."):
        _, index, name = name.split(".", 2)
        names = IN_BLOCKS
        block = f"blocks.{index}."
    module, _, leaf = name.rpartition(".")
    theirs = "bias" if leaf == "bias" else "weight"

    # Dense layers are stored [out, in].
    axes = tuple(range(ndim))
    if leaf == "kernel":
        axes = axes[::-1]
    return f"{prefix}{block}{names[module]}.{theirs}", axes

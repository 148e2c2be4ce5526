"""Pixel MeanFlow's checkpoints (Lyy-iiis/pMF): a state dict or a training state without a config.

The network is recognised by names and shapes. What these leave open, the scale of the noise and the
guidance by default, is that of the released model of this size.
"""

import functools
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from cmjax.checkpoints.checkpoint import Checkpoint
from cmjax.checkpoints.released_sizes import name_of_size, num_blocks, preset_of
from cmjax.checkpoints.tensors import StoredTensor
from cmjax.models import PIXEL_MEAN_FLOWS, PixelMeanFlowConfig
from cmjax.models.token_layers import rotary_angles
from cmjax.schedulers import FlowMapEulerDiscreteScheduler

# Files hold the network as a part of its sampler, `net`, or alone.
FIRST = "x_embedder.proj1.weight"
PREFIXES = ("net.", "")

# Names of our modules -> theirs, without those of the blocks.
MODULES = {
    "patch_bottleneck": "x_embedder.proj1",
    "patch_embed": "x_embedder.proj2",
    "class_embedding": "y_embedder.embedding_table._flax_embedding",
    "scale_embedding.linear_1": "omega_embedder.mlp.0._flax_linear",
    "scale_embedding.linear_2": "omega_embedder.mlp.2._flax_linear",
    "start_embedding.linear_1": "cfg_t_start_embedder.mlp.0._flax_linear",
    "start_embedding.linear_2": "cfg_t_start_embedder.mlp.2._flax_linear",
    "end_embedding.linear_1": "cfg_t_end_embedder.mlp.0._flax_linear",
    "end_embedding.linear_2": "cfg_t_end_embedder.mlp.2._flax_linear",
    "time_embedding.linear_1": "h_embedder.mlp.0._flax_linear",
    "time_embedding.linear_2": "h_embedder.mlp.2._flax_linear",
    "norm_out": "u_final_layer.norm",
    "proj_out": "u_final_layer.linear._flax_linear",
}
IN_BLOCKS = {
    "norm_1": "norm1",
    "attention.to_q": "attn.q_proj._flax_linear",
    "attention.to_k": "attn.k_proj._flax_linear",
    "attention.to_v": "attn.v_proj._flax_linear",
    "attention.to_out": "attn.out_proj._flax_linear",
    "attention.norm_q": "attn.q_norm",
    "attention.norm_k": "attn.k_norm",
    "norm_2": "norm2",
    "mlp.linear_gate": "mlp.w1._flax_linear",
    "mlp.linear_in": "mlp.w3._flax_linear",
    "mlp.linear_out": "mlp.w2._flax_linear",
}
PARAMETERS = {"gate_1": "attn_scale", "gate_2": "mlp_scale"}  # of a block itself
CONTEXT = ("class_tokens", "omega_tokens", "t_min_tokens", "t_max_tokens", "time_tokens")
FREQUENCIES = "rope_freqs"

# The second head, which training alone has.
SECOND_HEAD = ("v_heads.", "v_final_layer.")

# What tensors do not tell of a network; without a released model of its size, these values.
_UNKNOWN = {"noise_scale": 1.0, "guidance_scale": 1.0, "guidance_interval": (0.0, 1.0)}


def prefix_of(tensors: Mapping[str, StoredTensor]) -> str | None:
    """Returns what all names of such a file begin with; None if it is another file."""
    return next((prefix for prefix in PREFIXES if prefix + FIRST in tensors), None)


def from_tensors(
    path: Path,
    tensors: Mapping[str, StoredTensor],
    config: PixelMeanFlowConfig | str | None = None,
    note: str = "",
) -> Checkpoint:
    """Opens a checkpoint of Pixel MeanFlow.

    Args:
        path: its file or folder.
        tensors: its tensors by name, as PyTorch has them.
        config: config of the network, or the name of a preset; None tells it from the tensors.
        note: what is said of it already.

    Raises:
        ValueError: if the tensors are not those of such a network, or not of the one given.
    """
    config = preset_of(config, PIXEL_MEAN_FLOWS, "Pixel MeanFlow")
    prefix = prefix_of(tensors) or ""
    try:
        config = config or infer_config(tensors, prefix)
        used, ignored = _used(tensors, prefix, config)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None

    notes = [note, ignored]
    if not name_of_size(config, PIXEL_MEAN_FLOWS, _UNKNOWN):
        notes.append(
            "no released model has this size: it is sampled with noise of scale "
            f"{config.noise_scale:g} and guidance of scale {config.guidance_scale:g}"
        )
    shared_depth = num_blocks(tensors, f"{prefix}shared_blocks.")
    return Checkpoint(
        kind="Pixel MeanFlow checkpoint",
        files=(path,),
        config=config,
        scheduler=FlowMapEulerDiscreteScheduler(noise_scale=config.noise_scale),
        tensors=used,
        layout=functools.partial(layout, prefix, shared_depth),
        note="; ".join(filter(None, notes)),
    )


def infer_config(
    tensors: Mapping[str, StoredTensor], prefix: str = "net."
) -> PixelMeanFlowConfig:
    """Infers the network from the names and shapes of its tensors.

    Raises:
        ValueError: if they are not those of a `PixelMeanFlow`.
    """

    def shape(name):
        return tensors[prefix + name].shape

    shared_depth = num_blocks(tensors, f"{prefix}shared_blocks.")
    head_depth = num_blocks(tensors, f"{prefix}u_heads.")
    block = "shared_blocks.0" if shared_depth else "u_heads.0"
    try:
        bottleneck, channels, patch, _ = shape(FIRST)
        width = shape("x_embedder.proj2.weight")[0]
        (head_dim,) = shape(f"{block}.attn.q_norm.weight")
        hidden, _ = shape(f"{block}.mlp.w1._flax_linear.weight")
        labels, _ = shape("y_embedder.embedding_table._flax_embedding.weight")
        context = tuple(shape(name)[1] for name in CONTEXT)
        side = math.isqrt(shape("pos_embed")[1] - sum(context))
        heads = width // head_dim
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise ValueError(
            f"the tensors are not those of Pixel MeanFlow's network ({error})"
        ) from None

    # Without a released model of this size, sampling is neither guided nor scaled.
    config = PixelMeanFlowConfig(
        sample_size=side * patch,
        in_channels=channels,
        patch_size=patch,
        bottleneck_channels=bottleneck,
        num_layers=shared_depth + head_depth,
        num_attention_heads=heads,
        attention_head_dim=head_dim,
        mlp_channels=hidden,
        num_class_embeds=labels - 1,
        context_tokens=context,
        **_UNKNOWN,
    )
    name = name_of_size(config, PIXEL_MEAN_FLOWS, _UNKNOWN)
    return PIXEL_MEAN_FLOWS[name] if name else config


def layout(
    prefix: str, shared_depth: int, name: str, ndim: int
) -> tuple[str, tuple[int, ...]]:
    """Returns the name in the file of one of our parameters, and the order of its axes there.

    Args:
        prefix: of the names in the file.
        shared_depth: number of blocks that both heads share; those after it are the first head's.
        name: of the parameter, such as "blocks.3.mlp.linear_in.kernel".
        ndim: its number of axes.
    """
    # Dense layers are stored [out, in].
    axes = tuple(range(ndim))
    if name.endswith(".kernel"):
        axes = axes[::-1]
    return prefix + _their_name(name, shared_depth), axes


def _their_name(name: str, shared_depth: int) -> str:
    """Returns the name in the file, without the prefix."""
    if name == "position_embedding":
        return "pos_embed"
    part, _, rest = name.partition(".")
    if part == "context":
        return CONTEXT[int(rest.partition(".")[0])]

    # "module.leaf", or "blocks.index.module.leaf": the leaf is "bias", or in PyTorch "weight".
    names = MODULES
    block = ""
    if part == "blocks":
        number, _, name = rest.partition(".")
        index = int(number)
        names = IN_BLOCKS
        block = f"shared_blocks.{index}."
        if index >= shared_depth:
            block = f"u_heads.{index - shared_depth}."
        if name in PARAMETERS:
            return block + PARAMETERS[name]
    module, _, leaf = name.rpartition(".")
    theirs = "bias" if leaf == "bias" else "weight"
    return f"{block}{names[module]}.{theirs}"


def _used(
    tensors: Mapping[str, StoredTensor], prefix: str, config: PixelMeanFlowConfig
) -> tuple[dict[str, StoredTensor], str]:
    """Returns the tensors that the network has, in its shapes, and what is said of the others.

    Unknown ones are among the former: `Checkpoint.check` lists them.

    Raises:
        ValueError: if the rotary frequencies are not those of the network.
    """
    used = {}
    second_head = 0
    ignored = []
    for name, tensor in tensors.items():
        own = name.removeprefix(prefix)
        if own.startswith(SECOND_HEAD):
            second_head += 1
        elif own == FREQUENCIES:
            _check_frequencies(tensor, config)
            ignored.append(f"{name}, which the network computes itself")
        # Convolutions of patches [out, in, p, p] are dense layers over their pixels here.
        elif own in (FIRST, "x_embedder.proj2.weight") and len(tensor.shape) == 4:
            used[name] = tensor.patches_as_rows()
        else:
            used[name] = tensor
    if second_head:
        ignored.insert(
            0, f"{second_head} tensors of the second head, which only training uses"
        )
    return used, f"ignored: {'; '.join(ignored)}" if ignored else "all tensors are used"


def _check_frequencies(tensor: StoredTensor, config: PixelMeanFlowConfig) -> None:
    """Raises ValueError unless stored rotary frequencies are those that the network computes."""
    side = config.sample_size // config.patch_size
    shape = (side**2, config.attention_head_dim // 2)
    if tensor.shape != shape or tensor.dtype != np.complex64:
        raise ValueError(
            f"{FREQUENCIES} must be complex64 of shape {shape}, got {tensor.dtype} of shape "
            f"{tensor.shape}"
        )
    # Not NaN either.
    expected = np.exp(1j * rotary_angles(side, config.attention_head_dim))
    if not np.all(np.abs(tensor.read() - expected) < 1e-3):
        raise ValueError(f"{FREQUENCIES} are not those of rows and columns to base 10,000")

"""OpenAI's original `.pt` files (openai/consistency_models): a state dict without a config.

The network is inferred from the tensors. What they leave open is taken from the released models:
attention heads of 64 channels, 32 groups in every normalisation, and attention from 32x32 down,
which gives the image size.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from cmjax.checkpoints import diffusers_weights
from cmjax.checkpoints.checkpoint import Checkpoint
from cmjax.checkpoints.tensors import StoredTensor, by_name
from cmjax.configs import shown
from cmjax.models import PRESETS, UNet2DConfig
from cmjax.schedulers import CMStochasticIterativeScheduler

# Levels that the released models were trained with (scripts/launch.sh there): distilled ones with
# 40, the others with end_scales + 1.
NUM_TRAIN_TIMESTEPS = {
    "cd_imagenet64_l2": 40,
    "cd_imagenet64_lpips": 40,
    "cd_bedroom256_l2": 40,
    "cd_bedroom256_lpips": 40,
    "cd_cat256_l2": 40,
    "cd_cat256_lpips": 40,
    "ct_imagenet64": 201,
    "ct_bedroom256": 151,
    "ct_cat256": 151,
}
TEACHERS = ("edm_imagenet64_ema", "edm_bedroom256_ema", "edm_cat256_ema")

# Every network of theirs begins with this convolution: their files are recognised by it.
FIRST = "input_blocks.0.0.weight"

# What tensors do not say of the network; all released models have these values.
HEAD_DIM = 64
GROUPS = 32
LARGEST_ATTENTION = 32  # pixels, height and width

# OpenAI's names of the layers in a block -> cmjax's and diffusers'.
LAYERS = {
    # Of a residual block.
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
    # Of an attention, besides "qkv", which has three names here.
    "norm": "group_norm",
    "proj_out": "to_out.0",
    # Of a resampling, going down and up.
    "op": "conv",
    "conv": "conv",
}
QUERY_KEY_VALUE = ("to_q", "to_k", "to_v")


def from_tensors(
    path: Path,
    tensors: Mapping[str, StoredTensor],
    config: UNet2DConfig | str | None = None,
) -> Checkpoint:
    """Opens an OpenAI file.

    Args:
        path: the `.pt` file. The names of the released files give the number of noise levels.
        tensors: its tensors by name.
        config: config of the network, or the name of a preset; None infers it from the tensors.

    Raises:
        ValueError: if the tensors are not those of OpenAI's network, or not of the one given.
    """
    if isinstance(config, str):
        if config not in PRESETS:
            raise ValueError(
                f"config {shown(config)} is not a preset; presets are {', '.join(PRESETS)}"
            )
        config = PRESETS[config]

    try:
        config = config or infer_config(tensors)
        renamed = _as_diffusers(tensors, config)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None

    # The number of noise levels is not in the file, only in its name.
    levels = NUM_TRAIN_TIMESTEPS.get(path.stem, 40)
    note = ""
    if path.stem in TEACHERS:
        note = (
            "an EDM diffusion model, a teacher; sample it with EDMHeunScheduler in 40 steps"
        )
    elif path.stem not in NUM_TRAIN_TIMESTEPS:
        note = (
            "the file's name is not that of a released model: 40 noise levels are assumed"
        )
    return Checkpoint(
        kind="OpenAI file",
        files=(path,),
        config=config,
        scheduler=CMStochasticIterativeScheduler(num_train_timesteps=levels),
        tensors=renamed,
        layout=diffusers_weights.layout,
        note=note,
    )


def infer_config(tensors: Mapping[str, StoredTensor]) -> UNet2DConfig:
    """Infers the network from the names and shapes of its tensors.

    Raises:
        ValueError: if they are not those of a network that `UNet2D` can be.
    """
    try:
        levels, layers = _count_blocks(tensors)

        # Input block 0 is a convolution; each resolution then has `layers` blocks and a
        # downsampling. Of the first block of each: its channels, and whether it has attention.
        first = [1 + level * (layers + 1) for level in range(levels)]
        widths = [tensors[f"input_blocks.{i}.0.in_layers.2.weight"].shape[0] for i in first]
        attention = [f"input_blocks.{i}.1.qkv.weight" in tensors for i in first]

        # A block that is scaled and shifted by the embedding of time and class needs two numbers
        # per channel of it.
        embedding = tensors["input_blocks.1.0.emb_layers.1.weight"].shape[0]
        scale_shift = embedding == 2 * widths[0]
        in_channels = tensors[FIRST].shape[1]
        out_channels = tensors["out.2.weight"].shape[0]
        classes = None
        if "label_emb.weight" in tensors:
            classes = tensors["label_emb.weight"].shape[0]
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(
            f"the tensors are not those of OpenAI's network ({error}); name a preset as config"
        ) from None

    # Shapes of convolutions do not depend on the image size; where attention begins does.
    if not any(attention):
        raise ValueError(
            "the image size is inferred from the attention layers, and there are none; pass the "
            "network's config"
        )

    # diffusers names a block by its attention or, without any, by its way of resampling.
    resample = "resnet"
    plain = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D")
    if f"input_blocks.{layers + 1}.0.op.weight" in tensors:
        resample = "conv"
        plain = ("DownBlock2D", "UpBlock2D")
    down = ["AttnDownBlock2D" if has else plain[0] for has in attention]
    up = ["AttnUpBlock2D" if has else plain[1] for has in reversed(attention)]
    return UNet2DConfig(
        sample_size=LARGEST_ATTENTION * 2 ** attention.index(True),
        in_channels=in_channels,
        out_channels=out_channels,
        down_block_types=tuple(down),
        up_block_types=tuple(up),
        block_out_channels=tuple(widths),
        layers_per_block=layers,
        downsample_type=resample,
        upsample_type=resample,
        attention_head_dim=HEAD_DIM,
        norm_num_groups=GROUPS,
        attn_norm_num_groups=GROUPS if scale_shift else None,
        resnet_time_scale_shift="scale_shift" if scale_shift else "default",
        num_class_embeds=classes,
    )


def _count_blocks(tensors: Mapping[str, StoredTensor]) -> tuple[int, int]:
    """Returns the number of resolutions, and of residual blocks in each on the way down.

    Raises:
        IndexError: for a name of an output block without a number.
        ValueError: if there are no blocks.
    """
    # Output blocks: one more than on the way down for each resolution, from the lowest one up.
    names = [name for name in tensors if name.startswith("output_blocks.")]
    blocks = {int(name.split(".")[1]) for name in names}

    # The first one that is followed by a resampling module ends its resolution. Without any there
    # is a single resolution.
    ends = [i for i in sorted(blocks) if _ends_resolution(tensors, i)]
    layers = ends[0] if ends else len(blocks) - 1
    if layers < 1:
        raise ValueError("no residual blocks")
    return len(blocks) // (layers + 1), layers


def _ends_resolution(tensors: Mapping[str, StoredTensor], block: int) -> bool:
    """Whether an output block has a resampling module, after its attention or without one."""
    for place in (1, 2):
        module = f"output_blocks.{block}.{place}"
        if f"{module}.in_layers.0.weight" in tensors or f"{module}.conv.weight" in tensors:
            return True
    return False


def module_names(config: UNet2DConfig) -> dict[str, str]:
    """Returns OpenAI's name of every module, by its name in diffusers and cmjax.

    Modules that a network of this config does not have, such as attention where there is none, are
    among them.
    """
    names = {
        "conv_in": "input_blocks.0.0",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "class_embedding": "label_emb",
        "mid_block.resnets.0": "middle_block.0",
        "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    layers = config.layers_per_block
    for level in range(len(config.block_out_channels)):
        # OpenAI counts the blocks of all resolutions together; input block 0 is a convolution.
        down = f"down_blocks.{level}"
        start = 1 + level * (layers + 1)
        for i in range(layers):
            names[f"{down}.resnets.{i}"] = f"input_blocks.{start + i}.0"
            names[f"{down}.attentions.{i}"] = f"input_blocks.{start + i}.1"
        names[f"{down}.downsamplers.0"] = f"input_blocks.{start + layers}.0"

        up = f"up_blocks.{level}"
        start = level * (layers + 1)
        for i in range(layers + 1):
            names[f"{up}.resnets.{i}"] = f"output_blocks.{start + i}.0"
            names[f"{up}.attentions.{i}"] = f"output_blocks.{start + i}.1"

        # The upsampling follows the last block of the resolution, and its attention if any.
        place = 2 if config.up_block_types[level] == "AttnUpBlock2D" else 1
        names[f"{up}.upsamplers.0"] = f"output_blocks.{start + layers}.{place}"
    return names


def _as_diffusers(
    tensors: Mapping[str, StoredTensor], config: UNet2DConfig
) -> dict[str, StoredTensor]:
    """Renames the tensors, and splits queries, keys and values; unknown ones keep their names.

    Unknown names are left to `Checkpoint.check`, which lists them.
    """
    return by_name("the file", _renamed(tensors, config))


def _renamed(
    tensors: Mapping[str, StoredTensor], config: UNet2DConfig
) -> Iterator[tuple[str, StoredTensor]]:
    """Yields the tensors with diffusers' names, in the order of the file."""
    modules = {theirs: ours for ours, theirs in module_names(config).items()}
    for name, tensor in tensors.items():
        # A module that is no block, such as `time_embed.0`: "module.leaf".
        module, leaf = name.rpartition(".")[::2]
        if module in modules:
            yield f"{modules[module]}.{leaf}", tensor
            continue

        # A layer of a block: "block.layer.leaf", where the layer is one word ("qkv") or two
        # ("in_layers.0").
        block, _, layer = module.rpartition(".")
        parts = module.split(".")
        if block not in modules and len(parts) > 2:
            block = ".".join(parts[:-2])
            layer = ".".join(parts[-2:])

        ours = modules.get(block)
        rows = tensor.shape[0] if tensor.shape else 0
        if ours is not None and layer in LAYERS:
            # Attention has 1x1 convolutions there and dense layers here: `rows` drops their axes.
            if "attentions" in ours and len(tensor.shape) > 1:
                tensor = tensor.rows(0, rows)
            yield f"{ours}.{LAYERS[layer]}.{leaf}", tensor
        elif ours is not None and layer == "qkv" and rows and rows % 3 == 0:
            # OpenAI stacks queries, keys and values along the output channels, in this order.
            width = rows // 3
            for i, part in enumerate(QUERY_KEY_VALUE):
                yield f"{ours}.{part}.{leaf}", tensor.rows(i * width, (i + 1) * width)
        else:
            yield name, tensor

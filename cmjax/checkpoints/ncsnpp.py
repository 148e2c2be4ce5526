"""OpenAI's models of CIFAR-10 (openai/consistency_models_cifar10): training states of Flax.

The network is recognised by names and shapes. What these leave open, the size of the images and the
resolution of attention, is that of the released models. So is the scheduler.
"""

import functools
from collections.abc import Collection, Mapping
from pathlib import Path

from cmjax.checkpoints.checkpoint import Checkpoint
from cmjax.checkpoints.released_sizes import preset_of
from cmjax.checkpoints.tensors import StoredTensor
from cmjax.models import NCSNPP_PRESETS, NCSNppConfig
from cmjax.schedulers import CMStochasticIterativeScheduler

# Every network of theirs has this block, and no other network that is read here.
BLOCK = "ResnetBlockBigGANpp"
ATTENTION = "AttnBlockpp"
FIRST = f"{BLOCK}_0.Conv_0.kernel"
FREQUENCIES = "GaussianFourierProjection_0.W"
PYRAMID = "Downsample_0.Conv2d_0.weight"

# The released models: pictures of 32x32 with attention at 16x16, and 18 levels (their configs).
SAMPLE_SIZE = 32
ATTENTION_RESOLUTION = 16
NUM_TRAIN_TIMESTEPS = 18

# Denoisers were trained by Adam with a schedule, whose state counts its steps, and consistency
# models by RAdam without one. Progressive distillation also clips gradients, the first stage.
TEACHER = "opt_state.2.count"
HALVED = "opt_state.1.2.count"
NOTES = {
    TEACHER: "an EDM diffusion model, a teacher; sample it with EDMHeunScheduler in 18 steps",
    HALVED: "a denoiser of progressive distillation; sample it with EDMEulerScheduler, "
    "final_sigmas_type=sigma_min, at the levels of its training",
}

# Our names of the layers in a block -> theirs.
RESNET = {
    "norm1": "GroupNorm_0",
    "conv1": "Conv_0",
    "time_emb_proj": "Dense_0",
    "norm2": "GroupNorm_1",
    "conv2": "Conv_1",
    "conv_shortcut": "Conv_2",
}
ATTENTION_LAYERS = {
    "group_norm": "GroupNorm_0",
    "to_q": "NIN_0",
    "to_k": "NIN_1",
    "to_v": "NIN_2",
    "to_out.0": "NIN_3",
}
# And of the parameters in a layer, where they are not kernel, bias and scale.
LEAVES = {"NIN": {"kernel": "W", "bias": "b"}, "Conv2d": {"kernel": "weight"}}


def from_tensors(
    path: Path,
    tensors: Mapping[str, StoredTensor],
    config: NCSNppConfig | str | None = None,
    note: str = "",
    state: Collection[str] = (),
) -> Checkpoint:
    """Opens such a file.

    Args:
        path: the file.
        tensors: the parameters to sample with, by their names.
        config: config of the network, or the name of a preset; None tells it from the tensors.
        note: what is said of the parameters.
        state: names of all arrays of the training state.

    Raises:
        ValueError: if the tensors are not those of such a network, or not of the one given.
    """
    config = preset_of(config, NCSNPP_PRESETS, "NCSN++")
    try:
        config = config or infer_config(tensors)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None

    notes = [what for name, what in NOTES.items() if name in state]
    notes.append(note)
    return Checkpoint(
        kind="OpenAI's file of CIFAR-10",
        files=(path,),
        config=config,
        scheduler=CMStochasticIterativeScheduler(num_train_timesteps=NUM_TRAIN_TIMESTEPS),
        tensors=tensors,
        layout=functools.partial(layout, parameter_names(config)),
        note="; ".join(filter(None, notes)),
    )


def infer_config(tensors: Mapping[str, StoredTensor]) -> NCSNppConfig:
    """Infers the network from the names and shapes of its tensors.

    Raises:
        ValueError: if they are not those of an `NCSNpp`, or leave open where attention is.
    """

    def shape(name):
        return tensors[name].shape

    # Within a resolution a block with a 1x1 convolution changes the number of channels: the first
    # that does not is the one that halves, and ends the highest resolution. A single resolution has
    # `layers` blocks on the way down, 2 in the middle and `layers` + 1 on the way up. Each further
    # one has a halving and a doubling in place of those in the middle.
    blocks = _count(tensors, BLOCK)
    try:
        halvings = (i for i in range(blocks) if _is_square(tensors, f"{BLOCK}_{i}.Conv_2"))
        layers = next(halvings, (blocks - 3) // 2)
        levels = blocks // (2 * layers + 3)

        # The first block of each resolution has its number of channels.
        first_blocks = [level * (layers + 1) for level in range(levels)]
        widths = [shape(f"{BLOCK}_{i}.Conv_0.kernel")[3] for i in first_blocks]
        _, _, in_channels, base = shape("Conv_0.kernel")
        out_channels = shape("Conv_1.kernel")[3]
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(f"the tensors are not those of NCSN++ ({error})") from None
    if out_channels != in_channels:
        raise ValueError(
            f"the network has {out_channels} channels out and {in_channels} in: two heads, which "
            "are not read"
        )

    # One resolution has attention, after each block on the way down and once on the way up, besides
    # the attention in the middle. Where several resolutions have the same width, a file does not
    # say which of them it is; released models halve once before it.
    if _count(tensors, ATTENTION) != layers + 2 or levels < 2:
        raise ValueError(
            "attention is at other resolutions than in the released models, where tensors do not "
            "tell at which; pass the network's config"
        )
    return NCSNppConfig(
        sample_size=SAMPLE_SIZE,
        in_channels=in_channels,
        out_channels=out_channels,
        base_channels=base,
        block_out_channels=tuple(widths),
        layers_per_block=layers,
        attention_resolutions=(ATTENTION_RESOLUTION,),
        smooth_resampling=PYRAMID in tensors,
        input_pyramid=PYRAMID in tensors,
        fourier_time=FREQUENCIES in tensors,
    )


def parameter_names(config: NCSNppConfig) -> dict[str, str]:
    """Returns their name of every layer, by its name in `NCSNpp`.

    Flax counts the layers of each kind in the order in which they are called.
    """
    names = {
        "time_embedding.linear_1": "Dense_0",
        "time_embedding.linear_2": "Dense_1",
        "conv_in": "Conv_0",
        "conv_norm_out": "GroupNorm_0",
        "conv_out": "Conv_1",
    }
    # The next of their blocks of a kind, with its layers, is one of ours.
    counts = {BLOCK: 0, ATTENTION: 0}

    def add(ours, kind, layers):
        theirs = f"{kind}_{counts[kind]}"
        counts[kind] += 1
        for our_layer, their_layer in layers.items():
            names[f"{ours}.{our_layer}"] = f"{theirs}.{their_layer}"

    # The way down, from the highest resolution.
    levels = range(len(config.block_out_channels))
    for level in levels:
        down = f"down_blocks.{level}"
        for i in range(config.layers_per_block):
            add(f"{down}.resnets.{i}", BLOCK, RESNET)
            if config.has_attention(level):
                add(f"{down}.attentions.{i}", ATTENTION, ATTENTION_LAYERS)
        if level < levels[-1]:
            add(f"{down}.downsamplers.0", BLOCK, RESNET)
            names[f"{down}.pyramids.0.conv"] = f"Downsample_{level}.Conv2d_0"

    # The middle, at the lowest resolution.
    add("mid_block.resnets.0", BLOCK, RESNET)
    add("mid_block.attentions.0", ATTENTION, ATTENTION_LAYERS)
    add("mid_block.resnets.1", BLOCK, RESNET)

    # The way up, where our blocks are counted from the lowest resolution.
    for i, level in enumerate(reversed(levels)):
        up = f"up_blocks.{i}"
        for j in range(config.layers_per_block + 1):
            add(f"{up}.resnets.{j}", BLOCK, RESNET)
        if config.has_attention(level):
            add(f"{up}.attentions.0", ATTENTION, ATTENTION_LAYERS)
        if level > 0:
            add(f"{up}.upsamplers.0", BLOCK, RESNET)
    return names


def layout(names: Mapping[str, str], name: str, ndim: int) -> tuple[str, tuple[int, ...]]:
    """Returns the name in the file of one of our parameters; its axes are the same there.

    Args:
        names: their names of layers by ours.
        name: of the parameter, such as "mid_block.attentions.0.to_q.kernel".
        ndim: its number of axes.
    """
    axes = tuple(range(ndim))
    if name == "time_frequencies":
        return FREQUENCIES, axes

    # A layer that they have not, of an extended network, keeps its name and is missing.
    layer, _, leaf = name.rpartition(".")
    theirs = names.get(layer, layer)
    kind = theirs.rpartition(".")[2].partition("_")[0]
    return f"{theirs}.{LEAVES.get(kind, {}).get(leaf, leaf)}", axes


def _count(tensors: Mapping[str, StoredTensor], kind: str) -> int:
    """Returns the number of different blocks of a kind."""
    prefix = f"{kind}_"
    return len({name.partition(".")[0] for name in tensors if name.startswith(prefix)})


def _is_square(tensors: Mapping[str, StoredTensor], layer: str) -> bool:
    """Whether there is a convolution of this name, with as many channels in as out."""
    kernel = tensors.get(f"{layer}.kernel")
    return kernel is not None and kernel.shape[2] == kernel.shape[3]

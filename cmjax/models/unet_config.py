"""The configuration of a `UNet2D`, and two presets."""

import dataclasses
from typing import Any

from cmjax.configs import LARGEST, check_options
from cmjax.labels import check_null_class
from cmjax.models.further_conditions import SECOND_TIMES

# Block name -> (whether it has attention, how it changes the resolution). None leaves the latter to
# downsample_type or upsample_type of the config.
DOWN_BLOCKS = {
    "DownBlock2D": (False, "conv"),
    "ResnetDownsampleBlock2D": (False, "resnet"),
    "AttnDownBlock2D": (True, None),
}
UP_BLOCKS = {
    "UpBlock2D": (False, "conv"),
    "ResnetUpsampleBlock2D": (False, "resnet"),
    "AttnUpBlock2D": (True, None),
}

# How a resolution changes: by a convolution, or within a residual block.
RESAMPLING = ("conv", "resnet")

# How a residual block uses the embedding of the time: it adds it, or scales and shifts by it.
TIME_CONDITIONING = ("default", "scale_shift")

# Of resolutions, and of residual blocks in each: a damaged file could ask for billions.
MOST_LAYERS = 64


def check_resolutions(config: Any, *names: str) -> None:
    """Checks that fields of a config have one entry per resolution, as `block_out_channels` has.

    Args:
        config: of a network of convolutions.
        names: of the other fields.

    Raises:
        ValueError: naming a field that has not, or if there are too many resolutions or none.
    """
    levels = len(config.block_out_channels)
    if not 1 <= levels <= MOST_LAYERS:
        raise ValueError(
            f"block_out_channels must have 1 to {MOST_LAYERS} entries, got {levels}"
        )
    for name in names:
        entries = len(getattr(config, name))
        if entries != levels:
            raise ValueError(
                f"{name} must have one entry per entry of block_out_channels, {levels}, "
                f"got {entries}"
            )


def check_groups(config: Any) -> None:
    """Checks that `norm_num_groups` divides all of `block_out_channels`.

    Raises:
        ValueError: naming the channels that it does not divide.
    """
    for channels in config.block_out_channels:
        if channels % config.norm_num_groups:
            raise ValueError(
                f"norm_num_groups {config.norm_num_groups} does not divide {channels} channels"
            )


@dataclasses.dataclass(frozen=True)
class UNet2DConfig:
    """The configuration of a `UNet2D`; fields are named as in diffusers' `UNet2DModel`.

    Attributes:
        sample_size: height and width of the images.
        in_channels: channels of the input.
        out_channels: channels of the output.
        center_input_sample: whether the input is in [0, 1] and the network maps it to [-1, 1].
        down_block_types: "DownBlock2D", "ResnetDownsampleBlock2D" or "AttnDownBlock2D" (with
            attention), one per resolution.
        up_block_types: "UpBlock2D", "ResnetUpsampleBlock2D" or "AttnUpBlock2D", one per resolution,
            from the lowest one up.
        block_out_channels: channels at each resolution, from the highest one down.
        layers_per_block: residual blocks per resolution on the way down; one more on the way up.
        downsample_type: how an "AttnDownBlock2D" halves the resolution, "conv" or "resnet".
        upsample_type: how an "AttnUpBlock2D" doubles it, "conv" or "resnet".
        attention_head_dim: channels per attention head; None for a single head.
        norm_num_groups: groups of every normalisation.
        attn_norm_num_groups: groups of the normalisation before the attention in the middle. None
            means norm_num_groups with "default" time conditioning, and no normalisation at all with
            "scale_shift".
        norm_eps: epsilon of every normalisation.
        resnet_time_scale_shift: "default" adds the time embedding in a residual block,
            "scale_shift" modulates the second normalisation with it.
        num_class_embeds: number of classes; None for an unconditional model.
        null_class: whether there is one more class, the last, which stands for none of them, as
            classifier-free guidance needs it.
        flip_sin_to_cos: whether cosines come before sines in the time embedding.
        freq_shift: shift of the time embedding's frequencies; see `sinusoidal_embedding`.
        time_scale: factor on the time before its embedding. diffusers has no such option, which is
            1. With 0.01 the embedding is smooth in log sigma, which learns faster and suits losses
            that differentiate by time.
        patch_size: height and width of the patches that are folded into channels before the first
            convolution. diffusers has no such option, which is 1.
        second_time: what a flow map embeds of its second time r: "end" is r itself, "span" the
            length t - r, and "log_steps", of shortcut models, the whole part of log2(1 / (t - r)),
            0 to 7, of times up to 1; null for a network that takes one time. Both times are
            scaled by `time_scale`. diffusers has no such option.
        guidance_embeds: whether the network takes a guidance scale as well. diffusers' UNet has
            no such option.
    """

    sample_size: int
    in_channels: int = 3
    out_channels: int = 3
    center_input_sample: bool = False
    down_block_types: tuple[str, ...] = ("DownBlock2D", "AttnDownBlock2D")
    up_block_types: tuple[str, ...] = ("AttnUpBlock2D", "UpBlock2D")
    block_out_channels: tuple[int, ...] = (64, 128)
    layers_per_block: int = 2
    downsample_type: str = "conv"
    upsample_type: str = "conv"
    attention_head_dim: int | None = 32
    norm_num_groups: int = 32
    attn_norm_num_groups: int | None = None
    norm_eps: float = 1e-5
    resnet_time_scale_shift: str = "default"
    num_class_embeds: int | None = None
    null_class: bool = False
    flip_sin_to_cos: bool = True
    freq_shift: float = 0.0
    time_scale: float = 1.0
    patch_size: int = 1
    second_time: str | None = None
    guidance_embeds: bool = False

    _domains = {
        "sample_size": (1, 65536),
        "in_channels": (1, 65536),
        "out_channels": (1, 65536),
        "down_block_types": tuple(DOWN_BLOCKS),
        "up_block_types": tuple(UP_BLOCKS),
        "block_out_channels": (1, 65536),
        "layers_per_block": (1, MOST_LAYERS),
        "downsample_type": RESAMPLING,
        "upsample_type": RESAMPLING,
        "attention_head_dim": (1, 65536),
        "norm_num_groups": (1, 65536),
        "attn_norm_num_groups": (1, 65536),
        "norm_eps": (0.0, 1.0),
        "resnet_time_scale_shift": TIME_CONDITIONING,
        "num_class_embeds": (1, LARGEST),
        "freq_shift": (-1e6, 1e6),
        "time_scale": (0.0, 1e6),
        "patch_size": (1, 65536),
        "second_time": SECOND_TIMES,
    }

    def __post_init__(self):
        check_options(self)
        check_null_class(self.null_class, self.num_class_embeds)

        check_resolutions(self, "down_block_types", "up_block_types")
        check_groups(self)
        widths = self.block_out_channels
        groups = self.attn_norm_num_groups
        if groups is not None and widths[-1] % groups:
            raise ValueError(
                f"attn_norm_num_groups {groups} does not divide {widths[-1]} channels"
            )

        # The time embedding divides by half its features minus freq_shift.
        if widths[0] < 2 or widths[0] // 2 == self.freq_shift:
            raise ValueError(
                f"freq_shift {self.freq_shift} leaves no frequencies for {widths[0]} channels"
            )

        # Every resolution but the last is followed by a halving.
        stride = self.patch_size * 2 ** (len(widths) - 1)
        if self.sample_size % stride:
            raise ValueError(
                f"sample_size {self.sample_size} is not a multiple of {stride}, "
                "the network's total stride"
            )

    @property
    def num_blocks(self) -> int:
        """Number of residual blocks on the way down and up."""
        return len(self.block_out_channels) * (2 * self.layers_per_block + 1)

    @property
    def time_features(self) -> int:
        """Number of features of the embedding of time and class."""
        # diffusers' `time_embedding_dim` where it is not set.
        return 4 * self.block_out_channels[0]

    @property
    def mid_attention_groups(self) -> int | None:
        """Groups of the normalisation before the middle attention; None for no normalisation."""
        # The rule of diffusers' `UNetMidBlock2D`, odd as it is: released files depend on it.
        if self.attn_norm_num_groups is None and self.resnet_time_scale_shift == "default":
            return self.norm_num_groups
        return self.attn_norm_num_groups


# The two architectures of the released models (openai/consistency_models, scripts/launch.sh).
PRESETS = {
    # Attention from 32 x 32 pixels down.
    "imagenet64": UNet2DConfig(
        sample_size=64,
        down_block_types=("ResnetDownsampleBlock2D",) + ("AttnDownBlock2D",) * 3,
        up_block_types=("AttnUpBlock2D",) * 3 + ("ResnetUpsampleBlock2D",),
        block_out_channels=(192, 384, 576, 768),
        layers_per_block=3,
        downsample_type="resnet",
        upsample_type="resnet",
        attention_head_dim=64,
        attn_norm_num_groups=32,
        resnet_time_scale_shift="scale_shift",
        num_class_embeds=1000,
    ),
    # The same, after three resolutions without: 256, 128 and 64 pixels.
    "lsun256": UNet2DConfig(
        sample_size=256,
        down_block_types=("ResnetDownsampleBlock2D",) * 3 + ("AttnDownBlock2D",) * 3,
        up_block_types=("AttnUpBlock2D",) * 3 + ("ResnetUpsampleBlock2D",) * 3,
        block_out_channels=(256, 256, 512, 512, 1024, 1024),
        layers_per_block=2,
        downsample_type="resnet",
        upsample_type="resnet",
        attention_head_dim=64,
    ),
}

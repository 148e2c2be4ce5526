"""What a `UNet2D` is made of."""

import dataclasses

from cmjax.configs import is_finite, is_int

# block name -> (has attention, how it changes resolution; None: as downsample_type or upsample_type says)
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
RESAMPLING = ("conv", "resnet")
TIME_CONDITIONING = ("default", "scale_shift")
MOST_LAYERS = 64  # a damaged file could ask for billions


@dataclasses.dataclass(frozen=True)
class UNet2DConfig:
    """What a `UNet2D` is made of; fields are named as in diffusers' `UNet2DModel`.

    Attributes:
        sample_size: height and width of the images.
        in_channels: channels of the input.
        out_channels: channels of the output.
        center_input_sample: the input is in [0, 1]: map it to [-1, 1] first.
        down_block_types: "DownBlock2D", "ResnetDownsampleBlock2D" or "AttnDownBlock2D" (with attention), one
            per resolution.
        up_block_types: "UpBlock2D", "ResnetUpsampleBlock2D" or "AttnUpBlock2D", one per resolution from the lowest.
        block_out_channels: channels per resolution.
        layers_per_block: residual blocks per resolution on the way down; one more on the way up.
        downsample_type: "conv" or "resnet": how an "AttnDownBlock2D" halves the resolution.
        upsample_type: "conv" or "resnet": how an "AttnUpBlock2D" doubles it.
        attention_head_dim: channels per attention head; None for a single head.
        norm_num_groups: groups of every normalisation.
        attn_norm_num_groups: groups of the normalisation before the attention in the middle. None: as
            norm_num_groups with "default" time conditioning, and no normalisation at all with "scale_shift".
        norm_eps: epsilon of every normalisation.
        resnet_time_scale_shift: "default" adds the time embedding in a residual block, "scale_shift"
            modulates the second normalisation with it.
        num_class_embeds: number of classes; None for an unconditional model.
        flip_sin_to_cos: cosines before sines in the time embedding.
        freq_shift: of the time embedding's frequencies.
        time_scale: factor on the time before its embedding. cmjax's own: 1 is diffusers; 0.01 makes the
            embedding smooth in log sigma, which learns faster and suits forward-mode training.
        patch_size: the network works on patch_size x patch_size patches folded into channels. cmjax's own.
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
    flip_sin_to_cos: bool = True
    freq_shift: float = 0.0
    time_scale: float = 1.0
    patch_size: int = 1

    def __post_init__(self):
        self._check_types()
        for name, allowed in (("down_block_types", DOWN_BLOCKS), ("up_block_types", UP_BLOCKS)):
            value = getattr(self, name)
            if len(value) != len(self.block_out_channels) or not set(value) <= set(allowed):
                raise ValueError(
                    f"{name} must name one of {tuple(allowed)} per entry of block_out_channels "
                    f"{self.block_out_channels}, got {value}"
                )
        for channels in self.block_out_channels:
            if channels % self.norm_num_groups:
                raise ValueError(
                    f"norm_num_groups {self.norm_num_groups} does not divide {channels} channels"
                )
        last = self.block_out_channels[-1]
        if self.attn_norm_num_groups is not None and last % self.attn_norm_num_groups:
            raise ValueError(
                f"attn_norm_num_groups {self.attn_norm_num_groups} does not divide {last} channels"
            )
        if self.block_out_channels[0] < 2 or self.block_out_channels[0] // 2 == self.freq_shift:
            raise ValueError(
                f"freq_shift {self.freq_shift} leaves no frequencies for {self.block_out_channels[0]} channels"
            )
        stride = self.patch_size * 2 ** (len(self.block_out_channels) - 1)
        if self.sample_size % stride:
            raise ValueError(
                f"sample_size {self.sample_size} is not a multiple of {stride}, the network's total stride"
            )

    @property
    def num_blocks(self) -> int:
        """Residual blocks on the way down and up."""
        return len(self.block_out_channels) * (2 * self.layers_per_block + 1)

    @property
    def time_features(self) -> int:
        """Features of the embedding of time and class."""
        return 4 * self.block_out_channels[0]

    @property
    def mid_attention_groups(self) -> int | None:
        """Groups of the normalisation before the attention in the middle; None for no normalisation."""
        if self.attn_norm_num_groups is None and self.resnet_time_scale_shift == "default":
            return self.norm_num_groups
        return self.attn_norm_num_groups

    def _check_types(self):
        positive = (
            "sample_size",
            "in_channels",
            "out_channels",
            "layers_per_block",
            "norm_num_groups",
            "patch_size",
        )
        for name in positive:
            if not is_int(getattr(self, name), 1):
                raise ValueError(f"{name} must be a positive integer, got {getattr(self, name)!r}")
        for name in ("num_class_embeds", "attention_head_dim", "attn_norm_num_groups"):
            if getattr(self, name) is not None and not is_int(getattr(self, name), 1):
                raise ValueError(
                    f"{name} must be a positive integer or null, got {getattr(self, name)!r}"
                )
        if self.layers_per_block > MOST_LAYERS:
            raise ValueError(
                f"layers_per_block must be at most {MOST_LAYERS}, got {self.layers_per_block}"
            )
        for name in ("norm_eps", "freq_shift", "time_scale"):
            if not is_finite(getattr(self, name)):
                raise ValueError(f"{name} must be a finite number, got {getattr(self, name)!r}")
        for name in ("flip_sin_to_cos", "center_input_sample"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, got {getattr(self, name)!r}")
        for name in ("downsample_type", "upsample_type"):
            if getattr(self, name) not in RESAMPLING:
                raise ValueError(f"{name} must be one of {RESAMPLING}, got {getattr(self, name)!r}")
        if self.resnet_time_scale_shift not in TIME_CONDITIONING:
            raise ValueError(
                f"resnet_time_scale_shift must be one of {TIME_CONDITIONING}, got {self.resnet_time_scale_shift!r}"
            )
        for name in ("block_out_channels", "down_block_types", "up_block_types"):
            value, item = getattr(self, name), int if name == "block_out_channels" else str
            if not isinstance(value, tuple) or not value or not all(type(v) is item for v in value):
                raise ValueError(f"{name} must be a list of {item.__name__}, got {value!r}")
            if len(value) > MOST_LAYERS:
                raise ValueError(
                    f"{name} must have at most {MOST_LAYERS} entries, got {len(value)}"
                )
        if min(self.block_out_channels) < 1:
            raise ValueError(f"block_out_channels must be positive, got {self.block_out_channels}")


# The two architectures of the released models (openai/consistency_models, scripts/launch.sh).
PRESETS = {
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

"""The configuration of `DiT`, and the sizes of its paper (Peebles & Xie 2023, arXiv 2212.09748)."""

import dataclasses
from typing import Any

from cmjax.configs import LARGEST, check_options
from cmjax.labels import check_null_class
from cmjax.models.further_conditions import SECOND_TIMES


@dataclasses.dataclass(frozen=True)
class DiTConfig:
    """The configuration of a `DiT`; the defaults are DiT-S/2.

    Fields are named as in diffusers' `DiTTransformer2DModel`.

    Attributes:
        sample_size: height and width of the images.
        in_channels: channels of the input.
        out_channels: channels of the output.
        patch_size: height and width of the patches that are the tokens.
        num_layers: number of transformer blocks.
        num_attention_heads: attention heads of each block.
        attention_head_dim: channels per head; tokens have `num_attention_heads` times as many.
        mlp_ratio: width of the perceptrons' hidden layer, divided by that of the tokens.
        long_skips: whether every block of the second half also takes the output of its counterpart
            in the first half (Bao et al. 2023, U-ViT).
        num_class_embeds: number of classes; None for an unconditional model.
        null_class: whether there is one more class, the last, which stands for none of them, as
            classifier-free guidance needs it.
        time_scale: factor on the time before its embedding; with 0.01 the embedding is smooth in
            log sigma, as for `UNet2D`.
        second_time: what a flow map embeds of its second time r: "end" is r itself, "span" the
            length t - r, and "log_steps", of shortcut models, the whole part of log2(1 / (t - r)),
            0 to 7, of times up to 1; null for a network that takes one time. Both times are
            scaled by `time_scale`.
        guidance_embeds: whether the network takes a guidance scale as well.
    """

    sample_size: int = 32
    in_channels: int = 3
    out_channels: int = 3
    patch_size: int = 2
    num_layers: int = 12
    num_attention_heads: int = 6
    attention_head_dim: int = 64
    mlp_ratio: float = 4.0
    long_skips: bool = False
    num_class_embeds: int | None = None
    null_class: bool = False
    time_scale: float = 0.01
    second_time: str | None = None
    guidance_embeds: bool = False

    _domains = {
        "sample_size": (1, 65536),
        "in_channels": (1, 65536),
        "out_channels": (1, 65536),
        "patch_size": (1, 65536),
        "num_layers": (1, 512),
        "num_attention_heads": (1, 1024),
        "attention_head_dim": (1, 65536),
        "mlp_ratio": (0.01, 1000.0),
        "num_class_embeds": (1, LARGEST),
        "time_scale": (0.0, 1e6),
        "second_time": SECOND_TIMES,
    }

    def __post_init__(self):
        check_options(self)
        check_null_class(self.null_class, self.num_class_embeds)
        check_tokens(self)

    @property
    def width(self) -> int:
        """Number of channels of a token."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def num_blocks(self) -> int:
        """Number of transformer blocks."""
        return self.num_layers


def check_tokens(config: Any) -> None:
    """Raises ValueError unless images can be cut into tokens whose positions can be embedded."""
    # The image is cut into whole patches.
    if config.sample_size % config.patch_size:
        raise ValueError(
            f"patch_size {config.patch_size} does not divide sample_size {config.sample_size}"
        )

    # A quarter of the channels each for sines and cosines of columns and of rows.
    if config.width % 4:
        raise ValueError(
            f"num_attention_heads {config.num_attention_heads} x attention_head_dim "
            f"{config.attention_head_dim} must be a multiple of 4, for the embedding of positions"
        )


# Peebles & Xie 2023, table 1; patch_size and sample_size are yours to choose.
DIT_SIZES = {
    "S": {"num_layers": 12, "num_attention_heads": 6, "attention_head_dim": 64},
    "B": {"num_layers": 12, "num_attention_heads": 12, "attention_head_dim": 64},
    "L": {"num_layers": 24, "num_attention_heads": 16, "attention_head_dim": 64},
    "XL": {"num_layers": 28, "num_attention_heads": 16, "attention_head_dim": 72},
}

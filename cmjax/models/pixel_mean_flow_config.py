"""The configuration of a `PixelMeanFlow`, and those of the released models."""

import dataclasses

from cmjax.configs import check_options
from cmjax.models.context_config import CONTEXT_DOMAINS, ContextConfig


@dataclasses.dataclass(frozen=True)
class PixelMeanFlowConfig(ContextConfig):
    """The configuration of a `PixelMeanFlow`; the defaults are pMF-B/16.

    Fields are named as in `DiTConfig`, where it has them.

    Attributes:
        sample_size: height and width of the images.
        in_channels: channels of the images.
        patch_size: height and width of the patches that are the tokens.
        bottleneck_channels: channels that a patch passes through before it is a token.
        num_layers: number of transformer blocks.
        num_attention_heads: attention heads of each block.
        attention_head_dim: channels per head, a multiple of 4; tokens have `num_attention_heads`
            times as many.
        mlp_channels: channels inside of the perceptrons.
        num_class_embeds: number of classes; the label of that number stands for none.
        context_tokens: numbers of tokens for the class, the guidance scale, the start and the end
            of its interval, and the time.
        noise_scale: standard deviation of the noise that the model was trained to start from, which
            its scheduler has too.
        guidance_scale: what the network takes where none is given.
        guidance_interval: likewise, the lowest and highest time that guidance acts at, 0 to 1.
        time_scale: factor on the times; they were 0 to 1 in training, and are 0 to 1000 for the
            schedulers.
        second_head_layers: blocks of a second head, which branches off before as many of the last
            blocks and returns the velocity at t; 0 for none. Only training uses it.
    """

    sample_size: int = 256
    in_channels: int = 3
    patch_size: int = 16
    bottleneck_channels: int = 128
    num_layers: int = 16
    num_attention_heads: int = 12
    attention_head_dim: int = 64
    mlp_channels: int = 2048
    num_class_embeds: int = 1000
    context_tokens: tuple[int, ...] = (8, 4, 2, 2, 4)
    noise_scale: float = 1.0
    guidance_scale: float = 8.5
    guidance_interval: tuple[float, ...] = (0.1, 0.7)
    time_scale: float = 0.001
    second_head_layers: int = 0

    _domains = {
        **CONTEXT_DOMAINS,
        "bottleneck_channels": (1, 65536),
        "noise_scale": (1e-3, 1e3),
    }

    @property
    def shortest_time(self) -> float:
        """The time below which x - x0 is divided by this one; the loss must do the same."""
        return 0.05

    def __post_init__(self):
        check_options(self)
        if self.attention_head_dim % 4:
            raise ValueError(
                f"attention_head_dim {self.attention_head_dim} must be a multiple of 4, for the "
                "angles of rows and columns"
            )
        self.check_context()


# The released models of Lyy-iiis/pMF: sizes as in its code, scales and intervals as its
# configurations recommend for each file.
_LARGE = {
    "num_layers": 32,
    "num_attention_heads": 16,
    "attention_head_dim": 64,
    "mlp_channels": 2730,
}
_HUGE = {
    "num_layers": 48,
    "num_attention_heads": 16,
    "attention_head_dim": 80,
    "mlp_channels": 3416,
    "bottleneck_channels": 256,
}
_PIXELS_512 = {"sample_size": 512, "patch_size": 32}


def _preset(*, scale, interval, noise_scale, **sizes):
    return PixelMeanFlowConfig(
        guidance_scale=scale, guidance_interval=interval, noise_scale=noise_scale, **sizes
    )


PIXEL_MEAN_FLOWS = {
    "pMF-B/16": _preset(scale=8.5, interval=(0.1, 0.7), noise_scale=1.0),
    "pMF-L/16": _preset(scale=7.0, interval=(0.2, 0.7), noise_scale=1.0, **_LARGE),
    "pMF-H/16": _preset(scale=7.0, interval=(0.2, 0.6), noise_scale=2.0, **_HUGE),
    "pMF-B/32": _preset(scale=6.5, interval=(0.1, 0.7), noise_scale=2.0, **_PIXELS_512),
    "pMF-L/32": _preset(
        scale=7.5, interval=(0.2, 0.6), noise_scale=4.0, **_LARGE, **_PIXELS_512
    ),
    "pMF-H/32": _preset(
        scale=5.5, interval=(0.1, 0.6), noise_scale=4.0, **_HUGE, **_PIXELS_512
    ),
}

"""The configuration of an `ImprovedMeanFlow`, and those of the released models."""

import dataclasses

from cmjax.configs import check_options
from cmjax.models.context_config import CONTEXT_DOMAINS, ContextConfig


@dataclasses.dataclass(frozen=True)
class ImprovedMeanFlowConfig(ContextConfig):
    """The configuration of an `ImprovedMeanFlow`; the defaults are iMF-B/2.

    Fields are named as in `DiTConfig`, where it has them.

    Attributes:
        sample_size: height and width of the latents.
        in_channels: channels of the latents.
        patch_size: height and width of the patches that are the tokens.
        num_layers: number of transformer blocks.
        num_attention_heads: attention heads of each block.
        attention_head_dim: channels per head, an even number; tokens have `num_attention_heads`
            times as many.
        mlp_channels: channels inside of the perceptrons.
        num_class_embeds: number of classes; the label of that number stands for none.
        context_tokens: numbers of tokens for the class, the guidance scale, the start and the end
            of its interval, and the time.
        guidance_scale: what the network takes where none is given.
        guidance_interval: likewise, the lowest and highest time that guidance acts at, 0 to 1.
        time_scale: factor on the times; they were 0 to 1 in training, and are 0 to 1000 for the
            schedulers.
        second_head_layers: blocks of a second head, which branches off before as many of the last
            blocks and returns the velocity at t; 0 for none. Only training uses it.
    """

    sample_size: int = 32
    in_channels: int = 4
    patch_size: int = 2
    num_layers: int = 12
    num_attention_heads: int = 12
    attention_head_dim: int = 64
    mlp_channels: int = 2048
    num_class_embeds: int = 1000
    context_tokens: tuple[int, ...] = (8, 4, 2, 2, 4)
    guidance_scale: float = 8.0
    guidance_interval: tuple[float, ...] = (0.4, 0.65)
    time_scale: float = 0.001
    second_head_layers: int = 0

    _domains = CONTEXT_DOMAINS

    def __post_init__(self):
        check_options(self)
        if self.attention_head_dim % 2:
            raise ValueError(
                f"attention_head_dim {self.attention_head_dim} must be even, for the angles of "
                "positions"
            )
        self.check_context()


# The released models of Lyy-iiis/imeanflow: sizes as in its code, scales and intervals as its
# configuration recommends for one call.
_LARGE = {"num_attention_heads": 16, "mlp_channels": 2730}


def _preset(*, scale, interval, num_layers, **sizes):
    return ImprovedMeanFlowConfig(
        guidance_scale=scale, guidance_interval=interval, num_layers=num_layers, **sizes
    )


IMPROVED_MEAN_FLOWS = {
    "iMF-B/2": _preset(scale=8.0, interval=(0.4, 0.65), num_layers=12),
    "iMF-M/2": _preset(scale=10.5, interval=(0.4, 0.6), num_layers=24),
    "iMF-L/2": _preset(scale=10.5, interval=(0.4, 0.6), num_layers=32, **_LARGE),
    "iMF-XL/2": _preset(scale=8.0, interval=(0.42, 0.62), num_layers=48, **_LARGE),
}

"""The configuration of `DiTTransformer2D`."""

import dataclasses

from cmjax.configs import LARGEST, check_options
from cmjax.models.dit_config import check_tokens


@dataclasses.dataclass(frozen=True)
class DiTTransformer2DConfig:
    """The configuration of a `DiTTransformer2D`; the defaults are DiT-XL/2 on latents of 32x32.

    Fields are named as in diffusers.

    Attributes:
        sample_size: height and width of the samples, which are latents in the released models.
        in_channels: channels of the samples.
        out_channels: channels of the last layer: those of the samples, or twice as many for a
            network that also predicts a variance.
        keep_variance: whether the predicted variance is returned too, as `variance_type` "learned"
            and "learned_range" want it; otherwise it is dropped, as in diffusers' pipeline.
        patch_size: height and width of the patches that are the tokens.
        num_layers: number of transformer blocks.
        num_attention_heads: attention heads of each block.
        attention_head_dim: channels per head; tokens have `num_attention_heads` times as many.
        num_embeds_ada_norm: number of classes. The class after the last, of that number, is the
            one for no class, which guidance needs.
        attention_bias: whether queries, keys and values have a bias.
        norm_eps: epsilon of the normalisations ahead of the perceptrons.
    """

    sample_size: int = 32
    in_channels: int = 4
    out_channels: int = 8
    keep_variance: bool = False
    patch_size: int = 2
    num_layers: int = 28
    num_attention_heads: int = 16
    attention_head_dim: int = 72
    num_embeds_ada_norm: int = 1000
    attention_bias: bool = True
    norm_eps: float = 1e-5

    _domains = {
        "sample_size": (1, 65536),
        "in_channels": (1, 65536),
        "out_channels": (1, 131072),
        "patch_size": (1, 65536),
        "num_layers": (1, 512),
        "num_attention_heads": (1, 1024),
        "attention_head_dim": (1, 65536),
        "num_embeds_ada_norm": (1, LARGEST - 1),
        "norm_eps": (0.0, 1.0),
    }

    def __post_init__(self):
        check_options(self)
        check_tokens(self)
        if self.out_channels not in (self.in_channels, 2 * self.in_channels):
            raise ValueError(
                f"out_channels {self.out_channels} must be in_channels {self.in_channels}, or "
                "twice that for a network that predicts a variance"
            )

    @property
    def width(self) -> int:
        """Number of channels of a token."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def num_blocks(self) -> int:
        """Number of transformer blocks."""
        return self.num_layers

    @property
    def num_class_embeds(self) -> int:
        """Number of classes."""
        return self.num_embeds_ada_norm

    @property
    def null_class(self) -> bool:
        """Whether the label after the last class stands for no class: it does."""
        return True

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """Shape of one sample, `(H, W, C)`."""
        return (self.sample_size, self.sample_size, self.in_channels)

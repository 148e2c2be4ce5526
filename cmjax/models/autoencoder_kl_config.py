"""The configuration of an `AutoencoderKL`."""

import dataclasses

from cmjax.configs import check_options
from cmjax.models.latent_scaling import LARGEST_FACTOR, SMALLEST_FACTOR, check_factors
from cmjax.models.unet_config import MOST_LAYERS, check_groups, check_resolutions

# Name of a block -> whether attention follows each of its residual blocks.
DOWN_BLOCKS = {"DownEncoderBlock2D": False, "AttnDownEncoderBlock2D": True}
UP_BLOCKS = {"UpDecoderBlock2D": False, "AttnUpDecoderBlock2D": True}


@dataclasses.dataclass(frozen=True)
class AutoencoderKLConfig:
    """The configuration of an `AutoencoderKL`; fields and defaults are those of diffusers.

    The defaults of `down_block_types`, `up_block_types` and `block_out_channels` are not: they are
    those of Stable Diffusion, the autoencoder of which has a stride of 8 pixels.

    Attributes:
        in_channels: channels of the images that are encoded.
        out_channels: channels of the images that are decoded.
        down_block_types: "DownEncoderBlock2D" or "AttnDownEncoderBlock2D" (with attention), one per
            resolution.
        up_block_types: "UpDecoderBlock2D" or "AttnUpDecoderBlock2D", one per resolution, from the
            lowest one up.
        block_out_channels: channels at each resolution, from the highest one down.
        layers_per_block: residual blocks per resolution of the encoder; the decoder has one more.
        latent_channels: channels of the latents.
        norm_num_groups: groups of every normalisation.
        sample_size: height and width of the images of the training; others are encoded too.
        scaling_factor: what samplers see is `(latents - mean) * scaling_factor / latents_std`.
        shift_factor: the mean, the same for all channels; None is 0.
        latents_mean: the mean of each channel, in place of `shift_factor`; None leaves it to that.
        latents_std: the standard deviation of each channel; None is 1.
        force_upcast: whether values leave the range of float16, in which it is not computed then
            but in float32.
        use_quant_conv: whether a 1x1 convolution follows the encoder.
        use_post_quant_conv: whether a 1x1 convolution is ahead of the decoder.
        mid_block_add_attention: whether there is attention at the lowest resolution.
    """

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",) * 4
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",) * 4
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    latent_channels: int = 4
    norm_num_groups: int = 32
    sample_size: int = 512
    scaling_factor: float = 0.18215
    shift_factor: float | None = None
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None
    force_upcast: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True

    _domains = {
        "in_channels": (1, 65536),
        "out_channels": (1, 65536),
        "down_block_types": tuple(DOWN_BLOCKS),
        "up_block_types": tuple(UP_BLOCKS),
        "block_out_channels": (1, 65536),
        "layers_per_block": (1, MOST_LAYERS),
        "latent_channels": (1, 65536),
        "norm_num_groups": (1, 65536),
        "sample_size": (1, 65536),
        "scaling_factor": (SMALLEST_FACTOR, LARGEST_FACTOR),
        "shift_factor": (-LARGEST_FACTOR, LARGEST_FACTOR),
        "latents_mean": (-LARGEST_FACTOR, LARGEST_FACTOR),
        "latents_std": (SMALLEST_FACTOR, LARGEST_FACTOR),
    }

    def __post_init__(self):
        check_options(self)
        check_factors(self)

        check_resolutions(self, "down_block_types", "up_block_types")
        check_groups(self)

    @property
    def stride(self) -> int:
        """Pixels of an image per pixel of its latents, in height and in width."""
        return 2 ** (len(self.block_out_channels) - 1)

    @property
    def num_blocks(self) -> int:
        """Number of residual blocks of the encoder and the decoder."""
        return len(self.block_out_channels) * (2 * self.layers_per_block + 1)

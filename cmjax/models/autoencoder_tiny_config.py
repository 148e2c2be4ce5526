"""The configuration of `AutoencoderTiny`."""

import dataclasses

from cmjax.configs import check_options
from cmjax.models.latent_scaling import LARGEST_FACTOR, SMALLEST_FACTOR, check_factors


@dataclasses.dataclass(frozen=True)
class AutoencoderTinyConfig:
    """The configuration of an `AutoencoderTiny`; fields and defaults are those of diffusers.

    Attributes:
        in_channels: channels of the images that are encoded.
        out_channels: channels of the images that are decoded.
        encoder_block_out_channels: channels at each resolution of the encoder, all the same.
        decoder_block_out_channels: channels at each resolution of the decoder, all the same.
        latent_channels: channels of the latents.
        num_encoder_blocks: residual blocks at each resolution of the encoder, the highest first.
        num_decoder_blocks: residual blocks at each resolution of the decoder, the lowest first.
        latent_magnitude: with `latent_shift`, how latents are stored as bytes; not used here.
        latent_shift: see `latent_magnitude`.
        scaling_factor: what samplers see is `(latents - shift_factor) * scaling_factor`.
        shift_factor: see `scaling_factor`.
        force_upcast: whether float16 is computed in float32.
    """

    in_channels: int = 3
    out_channels: int = 3
    encoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    decoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    latent_channels: int = 4
    num_encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
    num_decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)
    latent_magnitude: float = 3.0
    latent_shift: float = 0.5
    scaling_factor: float = 1.0
    shift_factor: float = 0.0
    force_upcast: bool = False

    _domains = {
        "in_channels": (1, 65536),
        "out_channels": (1, 65536),
        "encoder_block_out_channels": (1, 65536),
        "decoder_block_out_channels": (1, 65536),
        "latent_channels": (1, 65536),
        "num_encoder_blocks": (0, 64),
        "num_decoder_blocks": (0, 64),
        "latent_magnitude": (-LARGEST_FACTOR, LARGEST_FACTOR),
        "latent_shift": (-LARGEST_FACTOR, LARGEST_FACTOR),
        "scaling_factor": (SMALLEST_FACTOR, LARGEST_FACTOR),
        "shift_factor": (-LARGEST_FACTOR, LARGEST_FACTOR),
    }

    def __post_init__(self):
        check_options(self)
        check_factors(self)
        for part in ("encoder", "decoder"):
            widths = getattr(self, f"{part}_block_out_channels")
            blocks = getattr(self, f"num_{part}_blocks")
            if not 1 <= len(widths) == len(blocks) <= 64:
                raise ValueError(
                    f"{part}_block_out_channels and num_{part}_blocks must have one entry per "
                    f"resolution, 1 to 64, got {len(widths)} and {len(blocks)}"
                )

            # diffusers' network takes one number of channels only: no layer would change it.
            if len(set(widths)) > 1:
                raise ValueError(
                    f"{part}_block_out_channels must be all the same, got {widths}"
                )
        if len(self.num_encoder_blocks) != len(self.num_decoder_blocks):
            raise ValueError(
                f"num_encoder_blocks and num_decoder_blocks must be of the same length, got "
                f"{len(self.num_encoder_blocks)} and {len(self.num_decoder_blocks)}"
            )

    @property
    def stride(self) -> int:
        """Pixels of an image per pixel of its latents, in height and in width."""
        return 2 ** (len(self.num_encoder_blocks) - 1)

    @property
    def num_blocks(self) -> int:
        """Number of residual blocks of the encoder and the decoder."""
        return sum(self.num_encoder_blocks) + sum(self.num_decoder_blocks)

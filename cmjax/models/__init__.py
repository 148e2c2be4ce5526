"""Networks, and adapters for networks of your own."""

from cmjax.arrays import ApplyFn
from cmjax.models.adapters import compute_in, from_linen, from_nnx
from cmjax.models.autoencoder_kl import AutoencoderKL
from cmjax.models.autoencoder_kl_config import AutoencoderKLConfig
from cmjax.models.autoencoder_tiny import AutoencoderTiny
from cmjax.models.autoencoder_tiny_config import AutoencoderTinyConfig
from cmjax.models.dit import DiT
from cmjax.models.dit_config import DIT_SIZES, DiTConfig
from cmjax.models.dit_presets import MEAN_FLOWS, SHORTCUTS
from cmjax.models.dit_transformer import DiTTransformer2D
from cmjax.models.dit_transformer_config import DiTTransformer2DConfig
from cmjax.models.extension import extend
from cmjax.models.improved_mean_flow import ImprovedMeanFlow
from cmjax.models.improved_mean_flow_config import (
    IMPROVED_MEAN_FLOWS,
    ImprovedMeanFlowConfig,
)
from cmjax.models.ncsnpp import NCSNpp
from cmjax.models.ncsnpp_config import NCSNPP_PRESETS, NCSNppConfig
from cmjax.models.pixel_mean_flow import PixelMeanFlow
from cmjax.models.pixel_mean_flow_config import PIXEL_MEAN_FLOWS, PixelMeanFlowConfig
from cmjax.models.unet import UNet2D
from cmjax.models.unet_config import PRESETS, UNet2DConfig

__all__ = [
    "DIT_SIZES",
    "IMPROVED_MEAN_FLOWS",
    "MEAN_FLOWS",
    "NCSNPP_PRESETS",
    "PIXEL_MEAN_FLOWS",
    "PRESETS",
    "SHORTCUTS",
    "ApplyFn",
    "AutoencoderKL",
    "AutoencoderKLConfig",
    "AutoencoderTiny",
    "AutoencoderTinyConfig",
    "DiT",
    "DiTConfig",
    "DiTTransformer2D",
    "DiTTransformer2DConfig",
    "ImprovedMeanFlow",
    "ImprovedMeanFlowConfig",
    "NCSNpp",
    "NCSNppConfig",
    "PixelMeanFlow",
    "PixelMeanFlowConfig",
    "UNet2D",
    "UNet2DConfig",
    "compute_in",
    "extend",
    "from_linen",
    "from_nnx",
]

"""Networks, and adapters for networks of your own."""

from cmjax.arrays import ApplyFn
from cmjax.models.adapters import compute_in, from_linen, from_nnx
from cmjax.models.dit import DIT_SIZES, DiT, DiTConfig
from cmjax.models.pixel_mean_flow import PixelMeanFlow
from cmjax.models.pixel_mean_flow_config import PIXEL_MEAN_FLOWS, PixelMeanFlowConfig
from cmjax.models.unet import UNet2D
from cmjax.models.unet_config import PRESETS, UNet2DConfig

__all__ = [
    "DIT_SIZES",
    "PIXEL_MEAN_FLOWS",
    "PRESETS",
    "ApplyFn",
    "DiT",
    "DiTConfig",
    "PixelMeanFlow",
    "PixelMeanFlowConfig",
    "UNet2D",
    "UNet2DConfig",
    "compute_in",
    "from_linen",
    "from_nnx",
]

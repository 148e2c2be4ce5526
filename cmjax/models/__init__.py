"""Networks, and adapters for networks of your own."""

from cmjax.arrays import ApplyFn
from cmjax.models.adapters import compute_in, from_linen, from_nnx
from cmjax.models.dit import DIT_SIZES, DiT, DiTConfig
from cmjax.models.extension import extend
from cmjax.models.unet import UNet2D
from cmjax.models.unet_config import PRESETS, UNet2DConfig

__all__ = [
    "DIT_SIZES",
    "PRESETS",
    "ApplyFn",
    "DiT",
    "DiTConfig",
    "UNet2D",
    "UNet2DConfig",
    "compute_in",
    "extend",
    "from_linen",
    "from_nnx",
]

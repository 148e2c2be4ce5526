"""The networks that cmjax reads, writes and trains, by name."""

from typing import Any

from cmjax.models.dit import DiT, DiTConfig
from cmjax.models.unet import UNet2D
from cmjax.models.unet_config import UNet2DConfig

ARCHITECTURES = {"UNet2D": (UNet2D, UNet2DConfig), "DiT": (DiT, DiTConfig)}


def network_name(config: Any) -> str:
    """Returns the name of the network that `config` describes.

    Raises:
        ValueError: if it is not one of cmjax's own.
    """
    name = next((name for name, (_, kind) in ARCHITECTURES.items() if type(config) is kind), None)
    if name is None:
        raise ValueError(
            f"model.config must be the config of one of {list(ARCHITECTURES)}, got {config!r}"
        )
    return name

"""Models in a single file of PyTorch, which names no network: its tensors tell which one it is."""

from pathlib import Path
from typing import Any, TypeVar

from cmjax.checkpoints import openai, pixel_mean_flow
from cmjax.checkpoints.checkpoint import Checkpoint
from cmjax.checkpoints.torch_file import open_torch
from cmjax.configs import shown
from cmjax.models import NCSNppConfig, PixelMeanFlowConfig, UNet2DConfig

# The config of a network that a caller may give, in place of what the tensors tell.
Config = UNet2DConfig | NCSNppConfig | PixelMeanFlowConfig | str | None
Kind = TypeVar("Kind", UNet2DConfig, NCSNppConfig, PixelMeanFlowConfig)


def open_file(path: Path, config: Config = None) -> Checkpoint:
    """Opens a `.pt` file of OpenAI's consistency models or of Pixel MeanFlow.

    Args:
        path: the file.
        config: config of its network, or the name of a preset; None infers it from the tensors.

    Raises:
        ValueError: if the file is damaged or of another network.
    """
    tensors = open_torch(path)
    if openai.FIRST in tensors:
        return openai.from_tensors(path, tensors, of_kind(UNet2DConfig, path, config))
    if pixel_mean_flow.prefix_of(tensors) is not None:
        given = of_kind(PixelMeanFlowConfig, path, config)
        return pixel_mean_flow.from_tensors(path, tensors, given)
    first = pixel_mean_flow.PREFIXES[0] + pixel_mean_flow.FIRST
    raise ValueError(
        f"{path} is not a checkpoint of a network that cmjax reads: it has neither the tensor "
        f"{openai.FIRST} (OpenAI's consistency models) nor {first} (Pixel MeanFlow)"
    )


def of_kind(kind: type[Kind], path: Path, config: Any) -> Kind | str | None:
    """Returns the config that a caller gave.

    Args:
        kind: the class of the configs of the file's network.
        path: the file.
        config: what was given: a config, the name of a preset, or None.

    Raises:
        ValueError: if it is the config of another network.
    """
    if config is not None and not isinstance(config, kind | str):
        raise ValueError(
            f"config of {path} must be a {kind.__name__} or the name of a preset, "
            f"got {shown(config)}"
        )
    return config

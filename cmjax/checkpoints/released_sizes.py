"""What the readers of released models share: presets by name, blocks and heads."""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from cmjax.configs import shown
from cmjax.models.dit_config import DIT_SIZES

Config = TypeVar("Config")


def preset_of(
    config: Config | str | None, presets: Mapping[str, Config], network: str
) -> Config | None:
    """Returns the config that a caller gave, itself or by the name of a preset.

    Args:
        config: a config, the name of a preset, or None.
        presets: the configs by name.
        network: what the network is called, for the error.

    Raises:
        ValueError: for another name.
    """
    if not isinstance(config, str):
        return config
    if config not in presets:
        raise ValueError(
            f"config {shown(config)} is not a preset of {network}; presets are "
            f"{', '.join(presets)}"
        )
    return presets[config]


def name_of_size(
    config: Any, presets: Mapping[str, Any], unknown: Mapping[str, Any]
) -> str:
    """Returns the name of the released model that has the size of a network, or "".

    Args:
        config: of the network.
        presets: the configs of released models by name.
        unknown: options that its tensors do not tell, with values to set in both configs.
    """
    size = dataclasses.replace(config, **unknown)
    for name, preset in presets.items():
        if dataclasses.replace(preset, **unknown) == size:
            return name
    return ""


def num_blocks(names: Iterable[str], beginning: str) -> int:
    """Returns the number of blocks of a network, the last of which has the highest number.

    Args:
        names: of all tensors.
        beginning: what the names of tensors of blocks begin with, ahead of the block's number and a
            dot, such as "blocks.".
    """
    pattern = re.compile(rf"{re.escape(beginning)}([0-9]{{1,4}})\.")
    found = (pattern.match(name) for name in names)
    numbers = [int(match[1]) for match in found if match]
    return max(numbers, default=-1) + 1


def heads_of(width: int) -> tuple[int, int]:
    """Returns the number of heads and the channels of each, of a DiT of one of the paper's widths.

    Shapes alone do not tell: the sizes differ in the channels of a head.

    Raises:
        ValueError: for another width.
    """
    for size in DIT_SIZES.values():
        heads = size["num_attention_heads"], size["attention_head_dim"]
        if heads[0] * heads[1] == width:
            return heads
    raise ValueError(
        f"the number of heads of a network of width {width} is not known; pass its config"
    )

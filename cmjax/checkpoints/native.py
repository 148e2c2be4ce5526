"""cmjax's own checkpoint folder: `config.json`, `scheduler_config.json`, `model.safetensors`.

`class_names.json` is there too where the classes have names.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cmjax.checkpoints.checkpoint import Checkpoint, flatten_named
from cmjax.checkpoints.json_files import (
    read_class_names,
    read_config,
    read_scheduler,
    write_class_names,
    write_json,
)
from cmjax.checkpoints.tensors import open_safetensors, write_safetensors
from cmjax.configs import from_json
from cmjax.model import Model
from cmjax.models.registry import network_class, network_name
from cmjax.registry import scheduler_to_config

CONFIG = "config.json"
SCHEDULER_CONFIG = "scheduler_config.json"
WEIGHTS = "model.safetensors"


def open_folder(path: Path, *, trust: bool = False) -> Checkpoint:
    """Opens a cmjax folder; `trust` allows it to name classes that are imported."""
    config = read_config(path / CONFIG, lambda content: _config(content, trust))
    weights = path / WEIGHTS
    return Checkpoint(
        kind="cmjax folder",
        files=(weights,),
        config=config,
        scheduler=read_scheduler(path / SCHEDULER_CONFIG, trust=trust),
        tensors=open_safetensors(weights),
        layout=_layout,
        class_names=read_class_names(path, getattr(config, "num_class_embeds", None)),
    )


def write(folder: Path, model: Model) -> None:
    """Writes a model's files into a folder."""
    config = {"_class_name": network_name(model.config), **dataclasses.asdict(model.config)}
    write_json(folder / CONFIG, config)
    write_json(folder / SCHEDULER_CONFIG, scheduler_to_config(model.scheduler))
    write_class_names(folder, model)
    tensors = {name: np.asarray(value) for name, value in flatten_named(model.params).items()}
    write_safetensors(folder / WEIGHTS, tensors)


def _layout(name: str, ndim: int) -> tuple[str, tuple[int, ...]]:
    """Names and axes are stored as the network has them."""
    return name, tuple(range(ndim))


def _config(content: Mapping[str, Any], trust: bool) -> Any:
    values = dict(content)
    _, config = network_class(values.pop("_class_name", None), trust=trust)
    return from_json(config, values)

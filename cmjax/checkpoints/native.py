"""cmjax's own checkpoint folder: `config.json`, `scheduler_config.json`, `model.safetensors`."""

import dataclasses
from pathlib import Path

import numpy as np

from cmjax.checkpoints import checkpoint as models
from cmjax.checkpoints.checkpoint import Checkpoint
from cmjax.checkpoints.tensors import open_safetensors, write_safetensors
from cmjax.configs import did_you_mean, from_json
from cmjax.model import Model
from cmjax.models.registry import ARCHITECTURES, network_name

CONFIG, SCHEDULER_CONFIG, WEIGHTS = "config.json", "scheduler_config.json", "model.safetensors"


def open_folder(path: Path) -> Checkpoint:
    """Opens a cmjax folder."""
    config = models.read_config(path / CONFIG, _config)
    scheduler = models.read_scheduler(path / SCHEDULER_CONFIG)
    weights = path / WEIGHTS
    return Checkpoint(
        "cmjax folder", (weights,), config, scheduler, open_safetensors(weights), _layout
    )


def write(folder: Path, model: Model) -> None:
    """Writes a model's files into a folder."""
    config = {"_class_name": network_name(model.config), **dataclasses.asdict(model.config)}
    models.write_json(folder / CONFIG, config)
    models.write_json(folder / SCHEDULER_CONFIG, model.scheduler.to_config())
    tensors = {name: np.asarray(value) for name, value in models.flat(model.params).items()}
    write_safetensors(folder / WEIGHTS, tensors)


def _layout(name: str, ndim: int) -> tuple[str, tuple[int, ...]]:
    return name, tuple(range(ndim))


def _config(content):
    name = content.pop("_class_name", None)
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise ValueError(f"_class_name is {name!r}{did_you_mean(name, list(ARCHITECTURES))}")
    return from_json(ARCHITECTURES[name][1], content)

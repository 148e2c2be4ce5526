"""cmjax's own checkpoint folder: `config.json`, `scheduler_config.json`, `model.safetensors`.

`class_names.json` is there too if the classes have names.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cmjax.checkpoints.checkpoint import Checkpoint, stored_alike, stored_arrays
from cmjax.checkpoints.json_files import (
    CLASS_NAMES,
    read_class_names,
    read_config,
    read_json,
    read_scheduler,
    write_class_names,
    write_json,
)
from cmjax.checkpoints.tensors import open_safetensors, write_safetensors
from cmjax.configs import from_json
from cmjax.model import Model
from cmjax.models.registry import architecture, network_name
from cmjax.registry import scheduler_to_config

CONFIG = "config.json"
SCHEDULER_CONFIG = "scheduler_config.json"
WEIGHTS = "model.safetensors"  # names as in the network's own tree, such as "blocks.0.to_out.bias"
PARTS = (CONFIG, SCHEDULER_CONFIG, WEIGHTS, CLASS_NAMES)  # all that `write` makes


def open_folder(path: Path, *, trust: bool = False) -> Checkpoint:
    """Opens a cmjax folder.

    Args:
        path: the folder.
        trust: whether its configs may name classes to import, which runs their modules.

    Raises:
        ValueError: if a file is missing or damaged, or names a class that is not known.
    """
    config = read_config(path / CONFIG, lambda content: _config(content, trust))
    weights = path / WEIGHTS
    return Checkpoint(
        kind="cmjax folder",
        files=(weights,),
        config=config,
        scheduler=read_scheduler(path / SCHEDULER_CONFIG, trust=trust),
        tensors=open_safetensors(weights),
        layout=stored_alike,
        # A network of the user's need not have classes.
        class_names=read_class_names(path, getattr(config, "num_class_embeds", None)),
    )


def write(folder: Path, model: Model) -> None:
    """Writes a model's files into an empty folder."""
    # `_class_name` is how diffusers' configs name their network too, so a reader of either kind of
    # folder knows which one it has.
    config = {"_class_name": network_name(model.config), **dataclasses.asdict(model.config)}
    write_json(folder / CONFIG, config)
    write_json(folder / SCHEDULER_CONFIG, scheduler_to_config(model.scheduler))
    write_class_names(folder, model)

    write_safetensors(folder / WEIGHTS, stored_arrays(model))


def is_written(folder: Path) -> bool:
    """Returns whether `write` may have made the files of a folder, by what they say."""
    try:
        configs = [read_json(folder / name) for name in (CONFIG, SCHEDULER_CONFIG)]
    except ValueError:
        return False
    names = [config.get("_class_name") for config in configs]
    return all(isinstance(name, str) for name in names) and (folder / WEIGHTS).is_file()


def _config(content: Mapping[str, Any], trust: bool) -> Any:
    """Returns the config of the network that `_class_name` names; the rest are its fields."""
    values = dict(content)
    _, config = architecture(values.pop("_class_name", None), trust=trust)
    return from_json(config, values)

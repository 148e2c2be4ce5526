"""Folders of diffusers: pipelines of a `UNet2DModel`, or the network alone."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cmjax.checkpoints import diffusers_weights
from cmjax.checkpoints.autoencoder_config_files import autoencoder_in_index
from cmjax.checkpoints.checkpoint import Checkpoint, stored_arrays
from cmjax.checkpoints.json_files import (
    CLASS_NAMES,
    read_class_names,
    read_config,
    read_json,
    read_scheduler,
    write_class_names,
    write_json,
)
from cmjax.checkpoints.unet_config_files import (
    NETWORK,
    VERSION,
    config_from_diffusers,
    config_to_diffusers,
)
from cmjax.checkpoints.weight_files import only_variant
from cmjax.configs import shown
from cmjax.model import Model
from cmjax.models import UNet2DConfig
from cmjax.models.registry import network_name
from cmjax.schedulers import (
    SCHEDULERS,
    CMStochasticIterativeScheduler,
    DDIMScheduler,
    DDPMScheduler,
    Scheduler,
)
from cmjax.schedulers.diffusers_names import CALL_OPTIONS
from cmjax.schedulers.registry import registered_name

# Names of diffusers' files, and of the classes that these are for.
INDEX = "model_index.json"
CONFIG = "config.json"
SCHEDULER_CONFIG = "scheduler_config.json"
PIPELINES = {  # those that are written, by their schedulers
    CMStochasticIterativeScheduler: "ConsistencyModelPipeline",
    DDPMScheduler: "DDPMPipeline",
    DDIMScheduler: "DDIMPipeline",
}
PARTS = (  # all that `write` makes
    INDEX,
    CLASS_NAMES,
    "unet",
    f"unet/{CONFIG}",
    f"unet/{diffusers_weights.SAFETENSORS}",
    "scheduler",
    f"scheduler/{SCHEDULER_CONFIG}",
)


def open_pipeline(path: Path) -> Checkpoint:
    """Opens a pipeline folder: `model_index.json`, `unet/`, `scheduler/`.

    Raises:
        ValueError: if a file is missing or damaged, or the network is not a `UNet2DModel`.
    """
    # The index lists each part as [library, class].
    parts = read_json(path / INDEX)
    unet = parts.get("unet")
    if not isinstance(unet, list) or unet[-1:] != [NETWORK]:
        raise ValueError(
            f"{path / INDEX}: the unet must be a {NETWORK}, got {shown(unet)}; cmjax reads no "
            "other network"
        )

    # The network's folder, with the scheduler that only the pipeline knows.
    checkpoint = open_unet(path / "unet")
    return dataclasses.replace(
        checkpoint,
        kind="diffusers pipeline",
        scheduler=scheduler_of_pipeline(path, parts),
        note=pipeline_note(path, parts, "unet"),
        class_names=read_class_names(path, checkpoint.config.num_class_embeds),
    )


def scheduler_of_pipeline(path: Path, index: Mapping[str, Any]) -> Scheduler:
    """Reads the scheduler of a pipeline folder, of the class that its index names.

    As in diffusers, where the scheduler's own file may name another class: the one that its options
    were first written for.

    Args:
        path: the folder.
        index: the content of its `model_index.json`.

    Raises:
        ValueError: if the file is missing or damaged, or the class is not known.
    """
    file = path / "scheduler" / SCHEDULER_CONFIG

    # The index lists each part as [library, class]; what is no such pair names no class.
    named = index.get("scheduler")
    if not isinstance(named, list) or len(named) != 2 or not isinstance(named[1], str):
        return read_scheduler(file)
    name = named[1]

    # They nearly always agree; and a file that names no class is no scheduler's.
    if read_json(file).get("_class_name") in (name, None):
        return read_scheduler(file)
    try:
        kind = SCHEDULERS[registered_name(name)]
    except ValueError as error:
        raise ValueError(f"{path / INDEX}: {error}") from None
    return read_config(file, kind.from_config)


def open_unet(path: Path) -> Checkpoint:
    """Opens the folder of a network alone.

    It names no scheduler, so that of the released models, with 40 levels, is assumed.

    Raises:
        ValueError: if a file is missing or damaged, or the network is not a `UNet2DModel`.
    """
    config = read_config(path / CONFIG, config_from_diffusers)
    variant = only_variant(path)
    files, tensors = diffusers_weights.stored_weights(path, variant)
    notes = (
        "the folder names no scheduler: the default one, with 40 levels, is assumed",
        diffusers_weights.variant_note(variant),
    )
    return Checkpoint(
        kind="diffusers UNet",
        files=files,
        config=config,
        scheduler=CMStochasticIterativeScheduler(timestep_spacing="leading"),
        tensors=tensors,
        layout=diffusers_weights.layout,
        note="; ".join(filter(None, notes)),
    )


def write(folder: Path, model: Model) -> None:
    """Writes a pipeline's files into a folder.

    Args:
        folder: an empty folder.
        model: the model.

    Raises:
        ValueError: if diffusers has no pipeline for the network and the scheduler, or not all of
            their options.
    """
    # What diffusers cannot open is refused before anything is written.
    check_exportable(model)
    scheduler = type(model.scheduler)

    # The index, and the configs of both parts.
    (folder / "unet").mkdir()
    (folder / "scheduler").mkdir()
    parts = {
        "scheduler": ["diffusers", scheduler.__name__],
        "unet": ["diffusers", NETWORK],
        **autoencoder_in_index(model),
    }
    head = {"_class_name": PIPELINES[scheduler], "_diffusers_version": VERSION}
    write_json(folder / INDEX, {**head, **parts})
    write_class_names(folder, model)
    write_json(folder / "unet" / CONFIG, config_to_diffusers(model.config))
    write_scheduler(folder / "scheduler" / SCHEDULER_CONFIG, model.scheduler)
    weights = folder / "unet" / diffusers_weights.SAFETENSORS
    diffusers_weights.write_weights(weights, stored_arrays(model))


def write_scheduler(path: Path, scheduler: Scheduler) -> None:
    """Writes the config of a scheduler for diffusers' class of its name."""
    config = scheduler.to_config()

    # diffusers' class has a single spacing, and all other options.
    if isinstance(scheduler, CMStochasticIterativeScheduler):
        del config["timestep_spacing"]
        write_json(path, config)
        return

    # Its other classes take eta and the like as arguments of their calls, and warn of them in a
    # file. They are left out where they have their defaults, with which cmjax reads the file again.
    for field in dataclasses.fields(scheduler):  # type: ignore[arg-type]
        if field.name in CALL_OPTIONS and config[field.name] == field.default:
            del config[field.name]
    write_json(path, config)


def check_exportable(model: Model) -> None:
    """Checks that a model can be written for diffusers.

    Raises:
        ValueError: if diffusers has no pipeline for the network and the scheduler, or not all of
            their options.
    """
    if not isinstance(model.config, UNet2DConfig):
        raise ValueError(
            f"diffusers has no pipeline for a {network_name(model.config)}; save the model as a "
            "cmjax folder"
        )
    scheduler = type(model.scheduler)
    if scheduler not in PIPELINES:
        taken = ", ".join(kind.__name__ for kind in PIPELINES)
        raise ValueError(
            f"diffusers' pipelines of a {NETWORK} take {taken}, got {scheduler.__name__}; save the "
            "model as a cmjax folder"
        )

    # Only consistency models are drawn by class there.
    pipeline = PIPELINES[scheduler]
    num_classes = model.config.num_class_embeds
    if num_classes is not None and pipeline != "ConsistencyModelPipeline":
        raise ValueError(
            f"a {pipeline} draws from networks without classes, and this one has {num_classes}; "
            "save the model as a cmjax folder"
        )
    config_to_diffusers(model.config)


def pipeline_note(path: Path, parts: Mapping[str, Any], network: str) -> str:
    """Says what of a pipeline is not as its user may expect, or "".

    Args:
        path: its folder.
        parts: its index.
        network: the name of its network's folder.
    """
    # Another model than these, such as an autoencoder of another name, is not read.
    others = []
    for name, value in parts.items():
        is_model = isinstance(value, list) and value and value[0] is not None
        if is_model and name not in (network, "scheduler", "vae"):
            others.append(name)
    unread = ""
    if others:
        names = ", ".join(others)
        unread = (
            f"{names} of the pipeline is not read: samples are what the {network} makes"
        )
    variant = diffusers_weights.variant_note(only_variant(path / network))
    return "; ".join(filter(None, [variant, unread]))

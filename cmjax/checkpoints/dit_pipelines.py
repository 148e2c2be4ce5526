"""Folders of diffusers: a `DiTPipeline`, or its transformer alone."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cmjax.checkpoints import diffusers, diffusers_weights
from cmjax.checkpoints.autoencoder_config_files import autoencoder_in_index
from cmjax.checkpoints.checkpoint import Checkpoint, stored_arrays
from cmjax.checkpoints.dit_config_files import (
    NETWORK,
    OLD_NETWORK,
    VERSION,
    config_from_diffusers,
    config_to_diffusers,
)
from cmjax.checkpoints.json_files import (
    read_class_names,
    read_config,
    write_class_names,
    write_json,
)
from cmjax.checkpoints.weight_files import only_variant
from cmjax.configs import shown
from cmjax.model import Model
from cmjax.schedulers import DDIMScheduler
from cmjax.schedulers.diffusers_names import SCHEDULERS

PART = "transformer"
PIPELINE = "DiTPipeline"
NETWORKS = (NETWORK, OLD_NETWORK)
PARTS = (  # what `write` makes besides the parts of other pipelines
    PART,
    f"{PART}/{diffusers.CONFIG}",
    f"{PART}/{diffusers_weights.SAFETENSORS}",
)


def open_pipeline(path: Path, index: Mapping[str, Any]) -> Checkpoint:
    """Opens a pipeline folder: `model_index.json`, `transformer/`, `scheduler/`.

    Args:
        path: the folder.
        index: the content of its `model_index.json`.

    Raises:
        ValueError: if a file is missing or damaged, or the network is no class-conditional
            transformer.
    """
    named = index[PART]
    if not isinstance(named, list) or named[-1:] not in ([name] for name in NETWORKS):
        raise ValueError(
            f"{path / diffusers.INDEX}: the {PART} must be a {NETWORK}, got {shown(named)}; cmjax "
            "reads no other transformer"
        )

    # The names of the classes are in the pipeline's index, or in a file of cmjax's own.
    checkpoint = open_transformer(path / PART)
    class_names = read_class_names(path, checkpoint.config.num_class_embeds)
    if class_names is None:
        class_names = _names_in_index(index, checkpoint.config.num_embeds_ada_norm)
    scheduler = diffusers.scheduler_of_pipeline(path, index)
    return dataclasses.replace(
        checkpoint,
        kind="diffusers pipeline",
        scheduler=scheduler,
        note=diffusers.pipeline_note(path, index, PART),
        class_names=class_names,
    )


def open_transformer(path: Path) -> Checkpoint:
    """Opens the folder of a network alone.

    It names no scheduler, so that DDIM with the linear betas of the released models is assumed.

    Raises:
        ValueError: if a file is missing or damaged, or it is another network.
    """
    config = read_config(path / diffusers.CONFIG, config_from_diffusers)
    variant = only_variant(path)
    files, tensors = diffusers_weights.stored_weights(path, variant)
    notes = (
        "the folder names no scheduler: DDIM with linear betas is assumed",
        diffusers_weights.variant_note(variant),
    )
    return Checkpoint(
        kind="diffusers transformer",
        files=files,
        config=config,
        scheduler=DDIMScheduler(clip_sample=False),
        tensors=tensors,
        layout=diffusers_weights.layout,
        note="; ".join(filter(None, notes)),
    )


def _names_in_index(index, num_classes):
    """The names in `id2label` of a pipeline's index; None without them."""
    labels = index.get("id2label")
    if not isinstance(labels, dict):
        return None
    names = [labels.get(str(i)) for i in range(num_classes)]
    if len(labels) != num_classes or not all(isinstance(name, str) for name in names):
        return None

    # Names must be distinct, and ImageNet has two kinds of crane.
    for i, name in enumerate(names):
        if name in names[:i]:
            names[i] = f"{name} ({i})"
    return tuple(names)


def check_exportable(model: Model) -> None:
    """Checks that a model whose network is a `DiTTransformer2D` can be written for diffusers.

    Raises:
        ValueError: if diffusers does not have the scheduler.
    """
    name = type(model.scheduler).__name__
    if name not in SCHEDULERS:
        raise ValueError(
            f"a {PIPELINE} takes a scheduler of diffusers, which has no {name}; save the model as "
            "a cmjax folder"
        )


def write(folder: Path, model: Model) -> None:
    """Writes the transformer and the scheduler of a pipeline into a folder.

    `DiTTransformer2DModel` opens the transformer, and `DiTPipeline.from_pretrained(folder)` all of
    it; a model without an autoencoder needs one there, by `vae=`.

    Args:
        folder: an empty folder.
        model: a model whose network is a `DiTTransformer2D`.

    Raises:
        ValueError: if diffusers does not have the scheduler.
    """
    # What diffusers cannot open is refused before anything is written.
    check_exportable(model)
    (folder / PART).mkdir()
    (folder / "scheduler").mkdir()
    parts = {
        "scheduler": ["diffusers", type(model.scheduler).__name__],
        PART: ["diffusers", NETWORK],
    }
    parts |= autoencoder_in_index(model)
    head = {"_class_name": PIPELINE, "_diffusers_version": VERSION}
    names = {}
    if model.class_names is not None:
        names["id2label"] = {str(i): name for i, name in enumerate(model.class_names)}
    write_json(folder / diffusers.INDEX, {**head, **parts, **names})
    write_class_names(folder, model)
    write_json(folder / PART / diffusers.CONFIG, config_to_diffusers(model.config))
    scheduler_config = folder / "scheduler" / diffusers.SCHEDULER_CONFIG
    diffusers.write_scheduler(scheduler_config, model.scheduler)
    weights = folder / PART / diffusers_weights.SAFETENSORS
    diffusers_weights.write_weights(weights, stored_arrays(model))

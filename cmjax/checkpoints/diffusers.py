"""Folders of diffusers: pipelines of a `UNet2DModel`, or the network alone."""

import dataclasses
import itertools
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

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
from cmjax.checkpoints.tensors import (
    StoredTensor,
    by_name,
    open_safetensors,
    read_metadata,
    write_safetensors,
)
from cmjax.checkpoints.torch_file import open_torch
from cmjax.checkpoints.unet_config_files import (
    NETWORK,
    VERSION,
    config_from_diffusers,
    config_to_diffusers,
)
from cmjax.checkpoints.weight_files import only_variant, weight_names
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
from cmjax.version import __version__

# Names of diffusers' files, and of the classes that these are for.
INDEX = "model_index.json"
CONFIG = "config.json"
SCHEDULER_CONFIG = "scheduler_config.json"
SAFETENSORS = weight_names().safetensors
TORCH = weight_names().torch
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
    f"unet/{SAFETENSORS}",
    "scheduler",
    f"scheduler/{SCHEDULER_CONFIG}",
)

# Names of attention's layers before diffusers 0.17, and since.
OLD_NAMES = {
    "query": "to_q",
    "key": "to_k",
    "value": "to_v",
    "proj_attn": "to_out.0",
}


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
    files, tensors = stored_weights(path, variant)
    notes = (
        "the folder names no scheduler: the default one, with 40 levels, is assumed",
        variant_note(variant),
    )
    return Checkpoint(
        kind="diffusers UNet",
        files=files,
        config=config,
        scheduler=CMStochasticIterativeScheduler(timestep_spacing="leading"),
        tensors=tensors,
        layout=layout,
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
    write_weights(folder / "unet" / SAFETENSORS, stored_arrays(model))


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


def write_weights(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes parameters by their dotted names as diffusers' safetensors file."""
    # PyTorch's names and order of axes; "pt" in the metadata tells diffusers so, and the version
    # tells `is_written` that diffusers did not make the file.
    tensors = {}
    for name, value in arrays.items():
        stored_name, axes = layout(name, value.ndim)
        tensors[stored_name] = np.ascontiguousarray(value.transpose(axes))
    metadata = {"format": "pt", "cmjax": __version__}
    write_safetensors(path, tensors, metadata)


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


def is_written(folder: Path, part: str = "unet") -> bool:
    """Returns whether `write_weights` made the weights of a part of a pipeline's folder."""
    try:
        return "cmjax" in read_metadata(folder / part / SAFETENSORS)
    except ValueError:
        return False


def layout(name: str, ndim: int) -> tuple[str, tuple[int, ...]]:
    """Returns PyTorch's name of a parameter, and the order of its axes there."""
    axes = tuple(range(ndim))
    if name.endswith("kernel") and ndim == 4:
        axes = (3, 2, 0, 1)  # convolutions are stored [out, in, height, width]
    elif name.endswith("kernel") and ndim == 2:
        axes = (1, 0)  # dense layers are stored [out, in]
    return re.sub(r"(kernel|scale|embedding)$", "weight", name), axes


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
    variant = variant_note(only_variant(path / network))
    return "; ".join(filter(None, [variant, unread]))


def variant_note(variant: str) -> str:
    """Says that a folder holds a variant of the weights only, or ""."""
    if not variant:
        return ""
    return f"the folder holds only the variant {variant!r} of its weights, which is read"


def stored_weights(
    path: Path, variant: str
) -> tuple[tuple[Path, ...], dict[str, StoredTensor]]:
    """Lists the files and the tensors of a folder, the latter by the names of diffusers today.

    They are in one safetensors file, else in the shards that an index lists, else in a `.bin` file.

    Args:
        path: the folder.
        variant: the variant of the weights, such as "fp16"; "" for the weights themselves.

    Raises:
        ValueError: if there are none, or the index is damaged.
    """
    files, tensors = _weights(path, variant)
    renamed_tensors = ((renamed(name), tensor) for name, tensor in tensors.items())
    return files, by_name(path, renamed_tensors)


def _weights(path: Path, variant: str) -> tuple[tuple[Path, ...], dict[str, StoredTensor]]:
    """Lists the files and the tensors of a folder, as the files name them."""
    names = weight_names(variant)
    single = path / names.safetensors
    if os.path.lexists(single):
        return (single,), open_weights(single)

    # The index maps each tensor to its shard.
    indices = [path / name for name in names.indices if os.path.lexists(path / name)]
    if indices:
        index = indices[0]
        shards = read_json(index).get("weight_map")
        # A name with a folder in it could lead to any file of the machine.
        if not isinstance(shards, dict) or not all(map(_is_file_name, shards.values())):
            raise ValueError(
                f"{index}: weight_map must map names of tensors to names of files in the folder"
            )
        if not shards:
            raise ValueError(f"{index}: weight_map must name at least one tensor")
        files = tuple(path / name for name in sorted(set(shards.values())))
        opened = (open_weights(file).items() for file in files)
        return files, by_name(path, itertools.chain.from_iterable(opened))

    # A pickle comes last: the files of many repositories hold the same weights twice.
    pickled = path / names.torch
    if os.path.lexists(pickled):
        return (pickled,), open_weights(pickled)
    raise ValueError(f"{path} has no {SAFETENSORS}, nor {TORCH}")


def _is_file_name(name: Any) -> bool:
    """Returns whether a value is the name of a file, without any folder."""
    return isinstance(name, str) and Path(name).name == name and name not in ("", "..")


def open_weights(file: Path) -> dict[str, StoredTensor]:
    """Lists the tensors of a file of either kind."""
    if file.suffix == ".bin":
        return open_torch(file)
    return open_safetensors(file)


def renamed(name: str) -> str:
    """Returns the name that diffusers 0.17 and later have for a tensor.

    For example, "mid_block.attentions.0.query.weight" becomes "mid_block.attentions.0.to_q.weight".
    """
    module, _, leaf = name.rpartition(".")
    parent, _, last = module.rpartition(".")
    if "attentions." in parent and last in OLD_NAMES:
        return f"{parent}.{OLD_NAMES[last]}.{leaf}"
    return name

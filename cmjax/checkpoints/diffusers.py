"""Folders of diffusers: a `ConsistencyModelPipeline`, or its `UNet2DModel` alone."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

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
from cmjax.configs import from_json
from cmjax.model import Model
from cmjax.models import UNet2DConfig
from cmjax.models.registry import network_name
from cmjax.schedulers import CMStochasticIterativeScheduler
from cmjax.version import __version__

# Names of diffusers' files, and of the classes that these are for.
INDEX = "model_index.json"
CONFIG = "config.json"
SCHEDULER_CONFIG = "scheduler_config.json"
SAFETENSORS = "diffusion_pytorch_model.safetensors"
TORCH = "diffusion_pytorch_model.bin"
NETWORK = "UNet2DModel"
PIPELINE = "ConsistencyModelPipeline"
VERSION = "0.36.0"  # of diffusers, whose files these are
PARTS = (  # all that `write` makes
    INDEX,
    CLASS_NAMES,
    "unet",
    f"unet/{CONFIG}",
    f"unet/{SAFETENSORS}",
    "scheduler",
    f"scheduler/{SCHEDULER_CONFIG}",
)

# Defaults of options that a file leaves out (diffusers 0.36, UNet2DModel); sample_size has none.
DEFAULTS = {
    "down_block_types": ["DownBlock2D"] + ["AttnDownBlock2D"] * 3,
    "up_block_types": ["AttnUpBlock2D"] * 3 + ["UpBlock2D"],
    "block_out_channels": [224, 448, 672, 896],
    "attention_head_dim": 8,
}
# Options that cmjax's network does not have, and the only values with which they change nothing.
FIXED = {
    "time_embedding_type": ("positional",),
    "time_embedding_dim": (None,),
    "mid_block_type": ("UNetMidBlock2D",),
    "mid_block_scale_factor": (1,),
    "downsample_padding": (1,),
    "dropout": (0,),
    "act_fn": ("silu", "swish"),
    "add_attention": (True,),
    "class_embed_type": (None,),
    "num_train_timesteps": (None,),
}
# Options that diffusers does not have, and the values with which they change nothing.
OWN_OPTIONS = {"time_scale": 1.0, "patch_size": 1}
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
            f"{path / INDEX}: the unet must be a {NETWORK}, got {unet!r:.200}; cmjax reads no "
            "other network"
        )

    # The network's folder, with the scheduler that only the pipeline knows.
    checkpoint = open_unet(path / "unet")
    return dataclasses.replace(
        checkpoint,
        kind="diffusers pipeline",
        scheduler=read_scheduler(path / "scheduler" / SCHEDULER_CONFIG),
        note="",
        class_names=read_class_names(path, checkpoint.config.num_class_embeds),
    )


def open_unet(path: Path) -> Checkpoint:
    """Opens the folder of a network alone.

    It names no scheduler, so that of the released models, with 40 levels, is assumed.

    Raises:
        ValueError: if a file is missing or damaged, or the network is not a `UNet2DModel`.
    """
    config = read_config(path / CONFIG, config_from_diffusers)
    files, tensors = _weights(path)
    return Checkpoint(
        kind="diffusers UNet",
        files=files,
        config=config,
        scheduler=CMStochasticIterativeScheduler(timestep_spacing="leading"),
        tensors=by_name(
            path, ((_renamed(name), tensor) for name, tensor in tensors.items())
        ),
        layout=layout,
        note="the folder names no scheduler: the default one, with 40 levels, is assumed",
    )


def write(folder: Path, model: Model) -> None:
    """Writes a pipeline's files into a folder.

    Args:
        folder: an empty folder.
        model: the model.

    Raises:
        ValueError: if the network or the scheduler is of another kind than the pipeline's, or has
            options that diffusers does not have.
    """
    # What diffusers cannot open is refused before anything is written.
    if not isinstance(model.config, UNet2DConfig):
        name = network_name(model.config)
        raise ValueError(
            f"a {PIPELINE} takes a {NETWORK}, which a {name} cannot be written as; save it as a "
            "cmjax folder"
        )
    scheduler = model.scheduler
    if type(scheduler) is not CMStochasticIterativeScheduler:
        raise ValueError(
            f"a {PIPELINE} takes a CMStochasticIterativeScheduler, got {type(scheduler).__name__}"
        )

    # The index, and the configs of both parts.
    (folder / "unet").mkdir()
    (folder / "scheduler").mkdir()
    parts = {
        "scheduler": ["diffusers", type(scheduler).__name__],
        "unet": ["diffusers", NETWORK],
    }
    write_json(
        folder / INDEX, {"_class_name": PIPELINE, "_diffusers_version": VERSION, **parts}
    )
    write_class_names(folder, model)
    write_json(folder / "unet" / CONFIG, config_to_diffusers(model.config))
    config = scheduler.to_config()
    del config["timestep_spacing"]  # diffusers' scheduler has a single spacing
    write_json(folder / "scheduler" / SCHEDULER_CONFIG, config)

    # The tensors, with PyTorch's names and order of axes; "pt" in the metadata tells diffusers so,
    # and the version tells `is_written` that diffusers did not make the file.
    tensors = {}
    for name, value in stored_arrays(model).items():
        stored_name, axes = layout(name, value.ndim)
        tensors[stored_name] = np.ascontiguousarray(value.transpose(axes))
    metadata = {"format": "pt", "cmjax": __version__}
    write_safetensors(folder / "unet" / SAFETENSORS, tensors, metadata)


def is_written(folder: Path) -> bool:
    """Returns whether `write` made the weights of a pipeline's folder."""
    try:
        return "cmjax" in read_metadata(folder / "unet" / SAFETENSORS)
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


def config_from_diffusers(content: Mapping[str, Any]) -> UNet2DConfig:
    """Reads the content of a `UNet2DModel`'s `config.json`.

    Raises:
        ValueError: naming an option that is unknown, or has a value that `UNet2D` does not support.
    """
    if content.get("_class_name") != NETWORK:
        raise ValueError(
            f"_class_name is {content.get('_class_name')!r}; cmjax reads a {NETWORK}"
        )

    # Options that the file leaves out have diffusers' defaults, not those of `UNet2DConfig`.
    values = dict(DEFAULTS)
    values.update(
        (name, value) for name, value in content.items() if not name.startswith("_")
    )

    # Options without a counterpart must have the value that `UNet2D` implements.
    for name, supported in FIXED.items():
        value = values.pop(name, supported[0])
        # In Python True == 1, but in JSON true is not 1.
        if not any(
            value == one and isinstance(value, bool) == isinstance(one, bool)
            for one in supported
        ):
            hint = ""
            if name == "dropout":
                hint = "; for sampling set it to 0: only training uses it"
            raise ValueError(
                f"{name} {value!r} is not supported, only {supported[0]!r}{hint}"
            )

    # Those that only cmjax has are not to be read from a file of diffusers.
    for name in OWN_OPTIONS:
        if name in values:
            raise ValueError(f"{NETWORK} has no option {name!r}")

    # diffusers also takes [height, width].
    size = values.get("sample_size")
    if isinstance(size, list) and len(set(map(str, size))) == 1:
        values["sample_size"] = size[0]
    elif isinstance(size, list):
        raise ValueError(f"sample_size {size} is not supported, only squares")
    elif size is None:
        raise ValueError(
            "sample_size is missing; write the images' height and width into the file"
        )
    return from_json(UNet2DConfig, values)


def config_to_diffusers(config: UNet2DConfig) -> dict[str, Any]:
    """Returns the content of a `UNet2DModel`'s `config.json`.

    Raises:
        ValueError: naming an option that diffusers does not have.
    """
    # cmjax's own options are left out where they change nothing, and cannot be written elsewhere.
    values = dataclasses.asdict(config)
    for name, neutral in OWN_OPTIONS.items():
        if values.pop(name) != neutral:
            raise ValueError(
                f"{name} {getattr(config, name)} is cmjax's own; diffusers has {neutral} only"
            )

    # The values that `UNet2D` implements are written down: diffusers' defaults may change.
    fixed = {name: supported[0] for name, supported in FIXED.items()}
    return {"_class_name": NETWORK, "_diffusers_version": VERSION, **values, **fixed}


def _weights(path: Path) -> tuple[tuple[Path, ...], dict[str, StoredTensor]]:
    """Lists the files and the tensors of a folder.

    They are in one safetensors file, else in the shards that an index lists, else in a `.bin` file.

    Raises:
        ValueError: if there are none, or the index is damaged.
    """
    index = path / f"{SAFETENSORS}.index.json"
    if (path / SAFETENSORS).exists():
        return (path / SAFETENSORS,), open_safetensors(path / SAFETENSORS)

    # The index maps each tensor to its shard.
    if index.exists():
        shards = read_json(index).get("weight_map")
        # A name with a folder in it could lead to any file of the machine.
        if not isinstance(shards, dict) or not all(map(_is_file_name, shards.values())):
            raise ValueError(
                f"{index}: weight_map must map names of tensors to names of files in the folder"
            )
        if not shards:
            raise ValueError(f"{index}: weight_map must name at least one tensor")
        files = tuple(path / name for name in sorted(set(shards.values())))
        return files, by_name(
            path, (item for file in files for item in open_safetensors(file).items())
        )

    # A pickle comes last: the files of many repositories hold the same weights twice.
    if (path / TORCH).exists():
        return (path / TORCH,), open_torch(path / TORCH)
    raise ValueError(f"{path} has no {SAFETENSORS}, nor {TORCH}")


def _is_file_name(name: Any) -> bool:
    """Returns whether a value is the name of a file, without any folder."""
    return isinstance(name, str) and Path(name).name == name and name not in ("", "..")


def _renamed(name: str) -> str:
    """Returns the name that diffusers 0.17 and later have for a tensor.

    For example, "mid_block.attentions.0.query.weight" becomes "mid_block.attentions.0.to_q.weight".
    """
    module, _, leaf = name.rpartition(".")
    parent, _, last = module.rpartition(".")
    if "attentions." in parent and last in OLD_NAMES:
        return f"{parent}.{OLD_NAMES[last]}.{leaf}"
    return name

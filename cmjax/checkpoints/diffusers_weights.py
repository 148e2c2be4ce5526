"""Weights in diffusers' files: their names, the order of their axes, shards and variants."""

import itertools
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cmjax.checkpoints.json_files import read_json
from cmjax.checkpoints.tensors import (
    StoredTensor,
    by_name,
    open_safetensors,
    read_metadata,
    write_safetensors,
)
from cmjax.checkpoints.torch_file import open_torch
from cmjax.checkpoints.weight_files import weight_names
from cmjax.version import __version__

SAFETENSORS = weight_names().safetensors
TORCH = weight_names().torch

# Names of attention's layers before diffusers 0.17, and since.
OLD_NAMES = {
    "query": "to_q",
    "key": "to_k",
    "value": "to_v",
    "proj_attn": "to_out.0",
}


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

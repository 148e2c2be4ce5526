"""Released models whose files name no network: names and shapes of the tensors tell which it is.

They are files of PyTorch, files and folders of Flax, zip archives of such folders, and pickles of
training states.
"""

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from cmjax.checkpoints import (
    improved_mean_flow,
    mean_flow,
    ncsnpp,
    openai,
    pixel_mean_flow,
    shortcut,
)
from cmjax.checkpoints.archives import BoundedReads, Unpacked
from cmjax.checkpoints.checkpoint import Checkpoint
from cmjax.checkpoints.flax_msgpack import open_msgpack
from cmjax.checkpoints.flax_names import as_torch, used_parameters
from cmjax.checkpoints.numpy_pickle import open_pickle
from cmjax.checkpoints.orbax_folder import find_checkpoint, open_orbax
from cmjax.checkpoints.tensors import StoredTensor, of_wrapper
from cmjax.checkpoints.torch_file import ZIP_MAGIC, open_torch
from cmjax.configs import shown
from cmjax.files import open_regular
from cmjax.models import (
    DiTConfig,
    ImprovedMeanFlowConfig,
    NCSNppConfig,
    PixelMeanFlowConfig,
    UNet2DConfig,
)
from cmjax.printing import one_line

# The config of a network that a caller may give, in place of what the tensors tell.
Config = (
    UNet2DConfig
    | NCSNppConfig
    | PixelMeanFlowConfig
    | ImprovedMeanFlowConfig
    | DiTConfig
    | str
    | None
)
Kind = TypeVar("Kind")

PICKLE = 0x80  # the first byte of a pickle, ahead of the version of its protocol
OF_TORCH = 2  # the protocol of PyTorch's pickles before 1.6, which are no pickles of arrays


def open_file(path: Path, config: Config = None) -> Checkpoint:
    """Opens a file of PyTorch or Flax, a pickle, or a zip archive of a folder of Flax.

    Args:
        path: the file.
        config: config of its network, or the name of a preset; None infers it from the tensors.

    Raises:
        ValueError: if the file is damaged or of another network.
    """
    with open_regular(path) as file:
        start = file.read(len(ZIP_MAGIC))
    if start == ZIP_MAGIC and _holds_folder(path):
        unpacked = Unpacked(path)
        folder = find_checkpoint(unpacked.folder)
        if folder is None:
            raise ValueError(f"{path} holds no checkpoint of PyTorch or Orbax")
        with unpacked.named():
            tensors = unpacked.keep_for(open_orbax(folder))
        return _of_flax(path, tensors, config)

    # Maps of MessagePack, as Flax writes them, begin with one of these bytes.
    first, second = (*start[:2], 0, 0)[:2]
    if PICKLE < first < PICKLE + 16 or first in (0xDE, 0xDF):
        return _of_flax(path, open_msgpack(path), config)
    if first == PICKLE and second > OF_TORCH:
        return _of_flax(path, open_pickle(path), config)
    return _recognised(path, open_torch(path), config)


def open_folder(path: Path, config: Config = None) -> Checkpoint | None:
    """Opens a folder of Flax's training states; None if it is none.

    Arguments and errors are those of `open_file`.
    """
    folder = find_checkpoint(path)
    if folder is None:
        return None
    return _of_flax(folder, open_orbax(folder), config)


def _holds_folder(path: Path) -> bool:
    """Whether a zip archive is of a folder, and not one of PyTorch's; damaged ones are not."""
    try:
        with open_regular(path) as file, zipfile.ZipFile(BoundedReads(file)) as archive:
            names = archive.namelist()
    # `zipfile` raises errors of many kinds; the reader of PyTorch's files says what is wrong.
    except Exception:
        return False
    return not any(name.endswith("/data.pkl") for name in names) and any(
        os.path.basename(name) in ("_METADATA", "manifest.ocdbt", "checkpoint")
        for name in names
    )


def _of_flax(path: Path, tensors: Mapping[str, StoredTensor], config: Config) -> Checkpoint:
    """Opens a training state of Flax."""
    used, note = used_parameters(tensors)
    if shortcut.FIRST in used:
        given = _of_kind(DiTConfig, path, config)
        return shortcut.from_tensors(path, used, given, note)
    if ncsnpp.FIRST in used:
        given = _of_kind(NCSNppConfig, path, config)
        return ncsnpp.from_tensors(path, used, given, note, tensors)
    return _recognised(path, as_torch(path, used), config, note)


def _recognised(
    path: Path, tensors: Mapping[str, StoredTensor], config: Config, note: str = ""
) -> Checkpoint:
    """Opens tensors of the network that their names tell.

    Raises:
        ValueError: if it is none that cmjax reads.
    """
    if openai.FIRST in tensors:
        return openai.from_tensors(path, tensors, _of_kind(UNet2DConfig, path, config))
    if pixel_mean_flow.prefix_of(tensors) is not None:
        given = _of_kind(PixelMeanFlowConfig, path, config)
        return pixel_mean_flow.from_tensors(path, tensors, given, note)
    if improved_mean_flow.prefix_of(tensors) is not None:
        given = _of_kind(ImprovedMeanFlowConfig, path, config)
        return improved_mean_flow.from_tensors(path, tensors, given, note)
    if mean_flow.prefix_of(tensors) is not None:
        given = _of_kind(DiTConfig, path, config)
        return mean_flow.from_tensors(path, tensors, given, note)
    first = pixel_mean_flow.PREFIXES[0] + pixel_mean_flow.FIRST
    raise ValueError(
        f"{path} is not a checkpoint of a network that cmjax reads: it has neither the tensor "
        f"{openai.FIRST} (OpenAI's consistency models) nor {ncsnpp.FIRST} (those of CIFAR-10) "
        f"nor {first} (Pixel MeanFlow) nor "
        f"net.{mean_flow.FIRST} (MeanFlow and improved MeanFlow); {_what_it_has(tensors)}"
    )


def _what_it_has(tensors: Mapping[str, StoredTensor]) -> str:
    """Says what the tensors of an unknown network are called."""
    wrapped = of_wrapper(tensors, [openai.FIRST])
    if wrapped:
        return wrapped
    first = next(iter(tensors), None)
    return "it has none" if first is None else f"its first is {one_line(first)}"


def _of_kind(kind: type[Kind], path: Path, config: Any) -> Kind | str | None:
    """Returns the config; raises ValueError if it is not of the kind of the file's network."""
    if config is not None and not isinstance(config, (kind, str)):
        raise ValueError(
            f"config of {path} must be a {kind.__name__} or the name of a preset, "
            f"got {shown(config)}"
        )
    return config

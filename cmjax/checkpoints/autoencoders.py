"""Autoencoders on disk, as diffusers writes them for PyTorch, and wrote them for Flax."""

import os
import re
from pathlib import Path
from typing import Any

from jax.typing import DTypeLike

from cmjax.autoencoder import Autoencoder
from cmjax.checkpoints import diffusers, diffusers_weights, hub
from cmjax.checkpoints.autoencoder_config_files import (
    FLAX_PREFIX,
    PART,
    config_from_diffusers,
    config_to_diffusers,
)
from cmjax.checkpoints.checkpoint import StoredNetwork, stored_alike, stored_arrays
from cmjax.checkpoints.flax_msgpack import open_msgpack
from cmjax.checkpoints.json_files import read_config, write_json
from cmjax.checkpoints.tensors import by_name
from cmjax.checkpoints.weight_files import FLAX, has_weights, only_variant
from cmjax.configs import shown
from cmjax.files import (
    as_path,
    check_content,
    check_no_link,
    check_regular,
    replacing_folder,
)
from cmjax.models.registry import AUTOENCODERS

PARTS = (
    diffusers.CONFIG,
    diffusers_weights.SAFETENSORS,
)  # all that `save_autoencoder` writes
NETWORKS = (*AUTOENCODERS, *(f"{FLAX_PREFIX}{name}" for name in AUTOENCODERS))


def load_autoencoder(source: str | Path, *, dtype: DTypeLike | None = None) -> Autoencoder:
    """Loads an autoencoder of diffusers, an `AutoencoderKL` or `AutoencoderTiny`.

    Example:
        >>> import cmjax, tempfile
        >>> from flax import nnx
        >>> from cmjax.models import AutoencoderTiny, AutoencoderTinyConfig
        >>> config = AutoencoderTinyConfig()
        >>> network = AutoencoderTiny(config, rngs=nnx.Rngs(0))
        >>> folder = tempfile.mkdtemp()
        >>> cmjax.save_autoencoder(
        ...     folder, cmjax.Autoencoder(config, nnx.state(network, nnx.Param))
        ... )
        >>> cmjax.load_autoencoder(folder)
        Autoencoder(AutoencoderTiny, 2,445,063 parameters, float32, 4 latent channels, stride 8)

    Args:
        source: the folder of an autoencoder (`config.json` and its weights: safetensors, whole, in
            shards or a variant such as fp16; `.bin`; or the `diffusion_flax_model.msgpack` of
            diffusers' Flax classes); the folder of a pipeline, or of a latent model that
            `cmjax.save` wrote, with the autoencoder in `vae/`; one of these files of weights, with
            the config next to it; or the id of such a folder on the Hugging Face hub, `owner/name`
            or `owner/name@revision`.
        dtype: dtype of the parameters; None is float32. The network computes in the dtype of its
            input, whatever this is.

    Returns:
        The autoencoder, whose latents are scaled as samplers want them.

    Raises:
        ValueError: if there is no such autoencoder, or it is not one that cmjax reads.
    """
    stored = open_autoencoder(source)
    _, params = stored.read(dtype=dtype)
    return Autoencoder(stored.config, params)


def open_autoencoder(source: str | Path) -> StoredNetwork:
    """Opens an autoencoder without reading its tensors; errors are those of `load_autoencoder`."""
    path = as_path("source", source, hub.SOURCES)
    if os.path.exists(path) and not os.path.isdir(path):
        check_regular(path)
        return _open_file(path)

    # What is not on disk may be on the hub. A pipeline has the autoencoder in a folder of its own.
    if not os.path.exists(path):
        path = hub.download(str(source), (PART,), NETWORKS, (FLAX,), ())
    # So has a model that `cmjax.save` wrote, next to the config of its network.
    if (path / diffusers.INDEX).exists() or (path / PART).is_dir():
        path = path / PART
    return open_folder(path)


def open_folder(path: Path) -> StoredNetwork:
    """Opens the folder of an autoencoder alone; errors are those of `load_autoencoder`."""
    # Flax's file comes last: repositories that have several hold the same weights in each.
    config = read_config(path / diffusers.CONFIG, config_from_diffusers)
    variant = only_variant(path)
    if not has_weights(path, variant) and (path / FLAX).exists():
        return _open_flax(path / FLAX, config)
    files, tensors = diffusers_weights.stored_weights(path, variant)
    return StoredNetwork(
        kind="diffusers autoencoder",
        files=files,
        config=config,
        tensors=tensors,
        layout=diffusers_weights.layout,
        note=diffusers_weights.variant_note(variant),
    )


def _open_file(path: Path) -> StoredNetwork:
    """Opens a file of weights, with the config that lies next to it."""
    config_path = path.parent / diffusers.CONFIG
    if not config_path.exists():
        raise ValueError(
            f"{path} has no {diffusers.CONFIG} next to it, which says what network it is for; put "
            "the one of its autoencoder there"
        )
    config = read_config(config_path, config_from_diffusers)
    if path.suffix == ".msgpack":
        return _open_flax(path, config)
    tensors = diffusers_weights.open_weights(path)
    return StoredNetwork(
        kind="diffusers autoencoder",
        files=(path,),
        config=config,
        tensors=by_name(
            path,
            ((diffusers_weights.renamed(name), tensor) for name, tensor in tensors.items()),
        ),
        layout=diffusers_weights.layout,
    )


def _open_flax(path: Path, config: Any) -> StoredNetwork:
    """Opens a file of diffusers' Flax classes."""
    # A training state may hold the parameters under that name.
    tensors = open_msgpack(path)
    if all(name.startswith("params.") for name in tensors):
        tensors = {name.removeprefix("params."): value for name, value in tensors.items()}
    return StoredNetwork(
        kind="Flax autoencoder",
        files=(path,),
        config=config,
        tensors=by_name(path, ((_own_name(name), x) for name, x in tensors.items())),
        layout=stored_alike,
    )


def _own_name(name: str) -> str:
    """Returns our name of a parameter of diffusers' Flax classes.

    For example, "encoder.mid_block.attentions_0.query.kernel" becomes
    "encoder.mid_block.attentions.0.to_q.kernel".
    """
    return diffusers_weights.renamed(re.sub(r"_(\d+)\.", r".\1.", name))


def save_autoencoder(path: str | Path, autoencoder: Autoencoder) -> None:
    """Writes an autoencoder's folder, which diffusers' `from_pretrained` opens too.

    A crash leaves the folder that was there before or the new one, and never half of one.

    Args:
        path: the folder. It is made if there is none, and replaced if it holds an autoencoder that
            this function wrote.
        autoencoder: the autoencoder.

    Raises:
        ValueError: if `path` is a symbolic link or holds other files, or if what was written cannot
            be loaded again: the folder is then left as it was.
    """
    check_autoencoder(autoencoder)

    # Names alone prove little: diffusers writes files of the same names.
    path = as_path("path", path)
    check_no_link(path)
    if path.is_dir():
        check_content(path, PARTS.__contains__)
        if any(path.iterdir()) and not diffusers_weights.is_written(path, ""):
            raise ValueError(
                f"{path} holds files that cmjax did not write; move them away, or give another name"
            )
    with replacing_folder(path, PARTS.__contains__) as folder:
        write_autoencoder(folder, autoencoder)
        try:
            open_autoencoder(folder).read(keep_dtypes=True)
        except ValueError as error:
            message = str(error).replace(str(folder), str(path))
            raise ValueError(f"autoencoder could not be loaded again: {message}") from None


def check_autoencoder(autoencoder: Any) -> None:
    """Raises ValueError unless this is an autoencoder."""
    if not isinstance(autoencoder, Autoencoder):
        raise ValueError(
            f"autoencoder must be a cmjax.Autoencoder, got {shown(autoencoder)}; open one by "
            "cmjax.load_autoencoder"
        )


def write_autoencoder(folder: Path, autoencoder: Autoencoder) -> None:
    """Writes an autoencoder's files into an empty folder."""
    write_json(folder / diffusers.CONFIG, config_to_diffusers(autoencoder.config))
    arrays = stored_arrays(autoencoder, "autoencoder")
    diffusers_weights.write_weights(folder / diffusers_weights.SAFETENSORS, arrays)

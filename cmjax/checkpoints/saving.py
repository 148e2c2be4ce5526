"""Saving models."""

import os
from pathlib import Path
from typing import Literal

from cmjax.checkpoints import (
    autoencoders,
    diffusers,
    diffusers_weights,
    dit_pipelines,
    native,
)
from cmjax.checkpoints.loading import open_checkpoint
from cmjax.configs import shown
from cmjax.files import as_path, check_content, check_no_link, replacing_folder
from cmjax.model import Model
from cmjax.models import DiTTransformer2DConfig

# Names of all files and folders that `save` writes; it replaces no folder that holds others.
PARTS = (
    *native.PARTS,
    *diffusers.PARTS,
    *dit_pipelines.PARTS,
    autoencoders.PART,
    *(f"{autoencoders.PART}/{name}" for name in autoencoders.PARTS),
)
WRITERS = ("cmjax", "diffusers")


def save(
    path: str | Path, model: Model, *, to: Literal["cmjax", "diffusers"] = "cmjax"
) -> None:
    """Writes a model's folder.

    A crash leaves the folder that was there before or the new one, and never half of one.

    Example:
        >>> import cmjax, tempfile
        >>> folder = tempfile.mkdtemp()
        >>> cmjax.save(folder, cmjax.load())
        >>> cmjax.load(folder).config == cmjax.load().config
        True

    Args:
        path: the folder. It is made if there is none, and replaced if it holds a model that
            `save` wrote.
        model: a model whose network is one of cmjax's own, or registered (`cmjax.register`).
        to: "cmjax", or "diffusers" for a folder that diffusers opens as a
            `ConsistencyModelPipeline`, `DDPMPipeline`, `DDIMPipeline` or `DiTPipeline`, by the
            network and the scheduler. Both hold the autoencoder of a latent model.

    Raises:
        ValueError: if the network is not known; for "diffusers" if diffusers does not have it, its
            options or the scheduler; if `path` is a symbolic link or holds other files, if the
            network is adapted to another scheduler, or if what was written cannot be loaded again:
            the folder is then left as it was.
    """
    if to not in WRITERS:
        raise ValueError(f"to must be one of {list(WRITERS)}, got {shown(to)}")
    if not isinstance(model, Model):
        raise ValueError(f"model must be a cmjax.Model, got {shown(model)}")
    if model.autoencoder is not None:
        autoencoders.check_autoencoder(model.autoencoder)

    # `apply_fn` translates between two schedulers then, of which a file could only name one.
    if model.trained_for is not None:
        adapted = type(model.scheduler).__name__
        own = type(model.trained_for).__name__
        raise ValueError(
            f"model is adapted to {adapted}, which files do not store; save the {own} model that "
            "it was made of, and call with_scheduler after loading it"
        )

    # What cannot be loaded again does not take the place of what could.
    path = as_path("path", path)
    check_destination(path)
    with replacing_folder(path, PARTS.__contains__) as folder:
        _write(folder, model, to)
        try:
            open_checkpoint(folder, trust=True).load(keep_dtypes=True)
        except ValueError as error:
            message = str(error).replace(str(folder), str(path))
            raise ValueError(f"model could not be loaded again: {message}") from None


def _write(folder: Path, model: Model, to: str) -> None:
    """Writes a model in one of the layouts; diffusers has a pipeline for each network."""
    if to == "cmjax":
        native.write(folder, model)
    elif isinstance(model.config, DiTTransformer2DConfig):
        dit_pipelines.write(folder, model)
    else:
        diffusers.write(folder, model)

    # In a folder of its own, in the layout of diffusers' pipelines.
    if model.autoencoder is not None:
        (folder / autoencoders.PART).mkdir()
        autoencoders.write_autoencoder(folder / autoencoders.PART, model.autoencoder)


def check_exportable(model: Model) -> None:
    """Checks that `save` can write a model for diffusers, by its network and its scheduler.

    Raises:
        ValueError: saying what diffusers does not have.
    """
    if isinstance(model.config, DiTTransformer2DConfig):
        dit_pipelines.check_exportable(model)
    else:
        diffusers.check_exportable(model)


def check_destination(path: str | Path) -> None:
    """Checks that `save` may write to a folder: it is new, empty, or holds a model of `save`.

    The folder is later replaced as a whole, so it must not hold anything of somebody else's.

    Raises:
        ValueError: naming what else is there.
        OSError: if the folder cannot be listed.
    """
    path = Path(path)
    check_no_link(path)
    if not path.is_dir():
        return
    check_content(path, PARTS.__contains__)

    # Names alone prove little: any program may have a config.json, and diffusers has our names.
    if (path / diffusers.INDEX).exists():
        parts = ("unet", dit_pipelines.PART)
        is_ours = any(diffusers_weights.is_written(path, part) for part in parts)
    else:
        is_ours = native.is_written(path)
    if any(path.iterdir()) and not is_ours:
        raise ValueError(
            f"{path} holds files that cmjax did not write; move them away, or give another name"
        )

    # An autoencoder may have been added to a folder of ours.
    part = autoencoders.PART
    if os.path.lexists(path / part) and not diffusers_weights.is_written(path, part):
        raise ValueError(
            f"{path} holds {part}, which cmjax did not write; move it away, or give another name"
        )

"""Loading models of any kind."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from jax.typing import DTypeLike

from cmjax.checkpoints import (
    autoencoders,
    diffusers,
    dit_pipelines,
    hub,
    native,
    released,
)
from cmjax.checkpoints.checkpoint import AutoencoderAlone, Checkpoint
from cmjax.checkpoints.json_files import read_json
from cmjax.configs import did_you_mean, shown
from cmjax.files import (
    MANIFEST,
    as_path,
    check_regular,
    identity,
)
from cmjax.model import Model
from cmjax.models.registry import ARCHITECTURES, autoencoder_name

BUNDLED = Path(__file__).parent.parent / "assets" / "digits"
RUN_MODEL = "model"  # folder of the model in the folder of a training run
ATTEMPTS = 3  # at reading a model that is replaced meanwhile

Result = TypeVar("Result")


def load(
    source: str | Path | None = None,
    *,
    dtype: DTypeLike | None = None,
    config: released.Config = None,
    trust: bool = False,
    autoencoder: str | Path | None = None,
) -> Model:
    """Loads a model, detecting its format.

    Example:
        >>> import cmjax
        >>> model = cmjax.load()
        >>> model.sample_shape, model.num_classes
        ((28, 28, 1), 10)

    Args:
        source: a cmjax folder, the folder of a training run, a folder of a diffusers pipeline or of
            its network, a file or folder of a released model (the docs' page "Released models" has
            all), or the id of a pipeline or cmjax folder on the Hugging Face hub (`owner/name`,
            optionally `owner/name@revision`); None is the bundled digits model.
        dtype: dtype of the parameters; None is float32. The network computes in the dtype of its
            input, whatever this is.
        config: the network of a file of a released model, or the name of a preset; None infers it
            from the tensors. Other formats name their network themselves.
        trust: whether a cmjax folder may name a network or scheduler that is neither part of cmjax
            nor registered (`cmjax.register`); it is then imported, which runs its module.
        autoencoder: the autoencoder of a latent model that comes without one, as for
            `cmjax.load_autoencoder`; None keeps what is there.

    Returns:
        The model: `apply_fn`, `params`, `scheduler`, `config` and `class_names`.

    Raises:
        ValueError: if there is no such model, or it is not one that cmjax reads.
    """

    def read():
        checkpoint = open_checkpoint(
            source, config=config, trust=trust, autoencoder=autoencoder
        )
        return checkpoint.load(dtype=dtype)

    return read_unreplaced(source, read)


def read_unreplaced(source: str | Path | None, read: Callable[[], Result]) -> Result:
    """Returns what `read` returns of a model, all of it of the same one.

    A model that is saved again replaces its folder as a whole. Where that happens while it is read,
    files of both would be mixed, so it is read once more.

    Args:
        source: the model, as for `load`.
        read: opens and reads it.

    Raises:
        ValueError: of `read`, or if the model is replaced again and again.
    """
    for _ in range(ATTEMPTS):
        before = _identity(source)
        try:
            result = read()
        except ValueError:
            if _identity(source) == before:
                raise
            continue
        if _identity(source) == before:
            return result
    raise ValueError(f"{source} was replaced while it was read; load it again")


def _identity(source: str | Path | None) -> tuple[int, ...] | None:
    """Returns what tells a model's file or folder from one in its place; None if there is none."""
    try:
        path = Path(source or BUNDLED)
        inner = path / RUN_MODEL
        return identity(inner if inner.is_dir() else path)
    except (OSError, TypeError, ValueError):
        return None


def open_checkpoint(
    source: str | Path | None = None,
    *,
    config: released.Config = None,
    trust: bool = False,
    autoencoder: str | Path | None = None,
) -> Checkpoint:
    """Opens a model without reading its tensors; arguments and errors are those of `load`."""
    checkpoint = _open(source, config, trust)
    if autoencoder is not None:
        return _with_given_autoencoder(checkpoint, autoencoder)
    if checkpoint.latents is None:
        return checkpoint
    return _noted(
        checkpoint,
        f"its samples are latents of {checkpoint.latents.autoencoder}: --vae, or autoencoder= of "
        "cmjax.load, makes pictures of them",
    )


def _with_given_autoencoder(checkpoint: Checkpoint, source: str | Path) -> Checkpoint:
    """Adds an autoencoder to a model, with the statistics of the model's latents."""
    try:
        stored = autoencoders.open_autoencoder(source)
    except ValueError as error:
        raise ValueError(f"autoencoder: {error}") from None
    latents = checkpoint.latents
    if latents is not None:
        # Not all autoencoders have fields for statistics, which is a TypeError.
        try:
            config = dataclasses.replace(stored.config, **latents.changes)
        except TypeError:
            raise ValueError(
                f"autoencoder {source} is a {autoencoder_name(stored.config)}, the latents of "
                f"which have no statistics; give {latents.autoencoder}"
            ) from None
        stored = dataclasses.replace(stored, config=config)
    return dataclasses.replace(checkpoint, autoencoder=stored, latents=None)


def _names_its_network(folder: Path) -> bool:
    """Whether a folder has one of the configs by which a model says what it is."""
    names = (diffusers.INDEX, native.CONFIG)
    return any(os.path.lexists(folder / name) for name in names)


def _open(source: str | Path | None, config: released.Config, trust: bool) -> Checkpoint:
    """Opens a model as it is on disk."""
    path = BUNDLED if source is None else as_path("source", source, hub.SOURCES)

    # A file is a released model: all other formats are folders. For a name that is too long,
    # os.path returns False where Path raises an error.
    if os.path.exists(path) and not os.path.isdir(path):
        check_regular(path)
        _check_whole_model(path)
        return released.open_file(path, config)
    if os.path.isdir(path) and not _names_its_network(path):
        _check_no_state(path)
        found = released.open_folder(path, config)
        if found is not None:
            return found
    if config is not None:
        raise ValueError(
            f"config is for models whose files do not name their network; {path} does"
        )

    # What is not on disk may be on the hub, of which only folders are read.
    if not os.path.exists(path):
        path = hub.download(str(source))
    if os.path.lexists(path / diffusers.INDEX):
        return _open_pipeline(path)
    return _open_by_config(path, trust)


def _open_by_config(path: Path, trust: bool) -> Checkpoint:
    """Opens a folder by the network that its `config.json` names, or that of a training run."""
    # A folder of `cmjax encode` has an autoencoder beside the latents, but no network.
    part = path / autoencoders.PART
    if part.is_dir() and (path / MANIFEST).exists():
        raise ValueError(
            f"{path} holds latents of cmjax encode and no model; their autoencoder is {part}"
        )

    # A cmjax folder, a diffusers UNet and a training run all have a `config.json`; the first two
    # say there what they are, and a run's model is in a folder of its own.
    content = read_json(path / native.CONFIG)
    name = content.get("_class_name")
    if name is None and (path / RUN_MODEL).is_dir():
        path = path / RUN_MODEL
        name = read_json(path / native.CONFIG).get("_class_name")
    elif name is None and {"run", "loss"} <= content.keys():
        raise ValueError(f"{path} is a training run that has not saved its first model yet")

    # "package.module:Name" is a class of the user's; whether it may be imported is decided later.
    if name == diffusers.NETWORK:
        return diffusers.open_unet(path)
    if name in dit_pipelines.NETWORKS:
        return dit_pipelines.open_transformer(path)
    if isinstance(name, str) and (name in ARCHITECTURES or ":" in name):
        checkpoint = _with_autoencoder(native.open_folder(path, trust=trust), path)
        return dataclasses.replace(checkpoint, is_denoiser=_is_of_denoising(path))
    if name in autoencoders.NETWORKS:
        raise _autoencoder_alone(path)
    hint = did_you_mean(name, [*ARCHITECTURES, diffusers.NETWORK])
    raise ValueError(f"{path / native.CONFIG}: _class_name is {shown(name)}{hint}")


def _check_no_state(path: Path) -> None:
    """Raises ValueError for the checkpoints of a training run, whose model is not in them."""
    for folder in (path, *path.parents[:2]):
        run = folder.parent
        if folder.name == "checkpoints" and _is_run(run):
            raise ValueError(
                f"{path} holds the state of a training, to resume it; give the folder of the run, "
                f"{run}"
            )


def _is_run(folder: Path) -> bool:
    """Whether a folder is that of a training run, by its configuration."""
    return bool(_config_of_run(folder))


def _config_of_run(folder: Path) -> dict[str, Any]:
    """Returns the configuration of the training run in a folder; empty if there is none."""
    try:
        content = read_json(folder / native.CONFIG)
    except (OSError, ValueError):
        return {}
    return content if {"run", "loss"} <= content.keys() else {}


def _is_of_denoising(folder: Path) -> bool:
    """Whether the model in a folder is that of a run which trained a denoiser."""
    loss = _config_of_run(folder.absolute().parent).get("loss")
    return isinstance(loss, dict) and loss.get("name") == "denoising"


def _open_pipeline(path: Path) -> Checkpoint:
    """Opens a pipeline folder of diffusers, with its autoencoder if it has one.

    Raises:
        ValueError: if a file is missing or damaged, or a part is not one that cmjax reads.
    """
    index = read_json(path / diffusers.INDEX)
    if dit_pipelines.PART in index:
        checkpoint = dit_pipelines.open_pipeline(path, index)
    else:
        checkpoint = diffusers.open_pipeline(path)

    # A pipeline without one says nothing, or [null, null].
    named = index.get(autoencoders.PART)
    if not named or named == [None, None]:
        return _with_autoencoder(checkpoint, path)
    if not isinstance(named, list) or named[-1] not in autoencoders.NETWORKS:
        raise ValueError(
            f"{path / diffusers.INDEX}: the {autoencoders.PART} must be an AutoencoderKL or "
            f"AutoencoderTiny, got {shown(named)}; the folder of the network alone opens without it"
        )
    return _attached(checkpoint, path)


def _with_autoencoder(checkpoint: Checkpoint, path: Path) -> Checkpoint:
    """Adds the autoencoder in a model's folder, if there is one."""
    if not os.path.lexists(path / autoencoders.PART / diffusers.CONFIG):
        return checkpoint
    return _attached(checkpoint, path)


def _attached(checkpoint: Checkpoint, path: Path) -> Checkpoint:
    """Adds the autoencoder that must be in a model's folder."""
    stored = autoencoders.open_folder(path / autoencoders.PART)
    checkpoint = dataclasses.replace(checkpoint, autoencoder=stored)
    return _noted(checkpoint, stored.note and f"{autoencoders.PART}: {stored.note}")


def _noted(checkpoint: Checkpoint, note: str) -> Checkpoint:
    """Adds to the note of a checkpoint."""
    notes = filter(None, (checkpoint.note, note))
    return dataclasses.replace(checkpoint, note="; ".join(notes))


def _autoencoder_alone(path: Path) -> AutoencoderAlone:
    """The error for an autoencoder in place of a model."""
    return AutoencoderAlone(
        f"{path} is an autoencoder, which samples nothing; open it by cmjax.load_autoencoder"
    )


def _check_whole_model(path: Path) -> None:
    """Raises ValueError for a file out of a folder, naming the folder to give."""
    has_config = (path.parent / diffusers.CONFIG).exists()
    if has_config and path.suffix in (".safetensors", ".bin", ".msgpack"):
        content = read_json(path.parent / diffusers.CONFIG)
        if content.get("_class_name") in autoencoders.NETWORKS:
            raise _autoencoder_alone(path)
    if path.suffix in (".safetensors", ".json") or (path.suffix == ".bin" and has_config):
        # The network of a pipeline is in a folder of the pipeline's.
        folder = path.parent
        if (folder.parent / diffusers.INDEX).exists():
            folder = folder.parent
        raise ValueError(
            f"{path} is one file of a model; give the folder it lies in, {folder}"
        )
    if path.suffix.lower() == ".toml":
        raise ValueError(
            f"{path} is the configuration of a training; give the folder of its run, such as "
            f"{Path('runs') / path.stem}"
        )

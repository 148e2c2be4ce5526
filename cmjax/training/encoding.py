"""Encoding of a data set: the moments of every picture's latents, computed once for a training."""

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from cmjax.arrays import floating_dtype
from cmjax.autoencoder import Autoencoder
from cmjax.checkpoints.autoencoders import load_autoencoder, save_autoencoder
from cmjax.configs import shown
from cmjax.generation.filling import Outcome, Work, fill_folder
from cmjax.generation.folder_settings import MAX_NUM, SHARD_SIZE, machine
from cmjax.generation.manifest import check_folder
from cmjax.generation.request import as_integer
from cmjax.generation.settings import autoencoder_digest
from cmjax.generation.shards import Shards
from cmjax.interrupts import delivering
from cmjax.processes import run_on_all_processes
from cmjax.training.data import collate
from cmjax.training.encoder import Encoder
from cmjax.training.moments import DECODER, MomentsSettings
from cmjax.training.sources import check_outside


def encode_until_stopped(
    folder: str | Path,
    autoencoder: Autoencoder,
    source: Any,
    *,
    batch_size: int = 8,
    shard_size: int | None = None,
    dtype: DTypeLike = jnp.float32,
    flip: bool = False,
    name: str = "",
    progress: bool = False,
    report: Callable[[str], None] = warnings.warn,
) -> Outcome:
    """Encodes a data set into a folder, on all devices of all processes.

    The folder holds mean and standard deviation of the latents of every picture, its label, and the
    autoencoder; `cmjax.training.sources.open_source` opens it as training data. Called again after
    an interruption of any kind, it resumes: what is there is checked, and only what is missing or
    damaged is made. Signals are as of `cmjax.generation.generate_until_stopped`.

    Args:
        folder: a new folder, or that of the same run; the same for all processes.
        autoencoder: from `cmjax.load_autoencoder`.
        source: pictures with a `fingerprint`, as `open_source` returns them: u8[H, W, C] or floats
            in [-1, 1], all of one size. Gray ones become those of a colour autoencoder.
        batch_size: number of pictures that each device encodes at a time.
        shard_size: number of pictures in a file; None for that of the folder, or 100 in a new one.
        dtype: what the network computes in; the moments are stored in float32.
        flip: whether each picture is followed by its mirror image: a mirrored latent is not the
            latent of a mirrored picture.
        name: what the autoencoder was loaded from, which the manifest notes without absolute paths.
        progress: whether to show a progress bar on stderr.
        report: called with the names of files that are damaged and moved to a folder `.removed`.

    Returns:
        What was made, and where it is.

    Raises:
        ValueError: for arguments out of range, pictures that the autoencoder does not take, if the
            folder holds something else or is inside the pictures, or if moments are not finite.
        OSError: if something cannot be written. What was written before remains.
    """
    folder = Path(folder)

    def prepare():
        as_integer("batch_size", batch_size, 1, MAX_NUM)
        if shard_size is not None:
            as_integer("shard_size", shard_size, 1, MAX_NUM)
        computed_in = floating_dtype("dtype", dtype)
        _check_arguments(autoencoder, source, flip)
        settings = _settings(autoencoder, source, computed_in, flip)
        check_outside(source, folder)
        if jax.process_index() == 0:
            check_folder(folder, MomentsSettings)
        return settings

    # All arguments are checked before the folder is touched.
    settings = run_on_all_processes(prepare)
    decoder = folder / DECODER

    def check(shards: Shards) -> None:
        if os.path.lexists(decoder) and not _is_whole(decoder, settings.autoencoder):
            raise ValueError(
                f"{decoder} is there, but is not the autoencoder of this run; move it away"
            )

    def make() -> Encoder:
        return Encoder(autoencoder, source, settings, batch_size=batch_size)

    # The moments are of no use without their decoder.
    def finish(shards: Shards, stopping: Callable[[], bool]) -> list[Path]:
        if not decoder.exists():
            save_autoencoder(decoder, autoencoder)
        return [folder]

    return fill_folder(
        folder,
        settings,
        settings.num,
        Work("encoding", "picture", check, make, finish),
        source=name,
        shard_size=shard_size,
        progress=progress,
        report=report,
    )


encode_folder = delivering(encode_until_stopped)


def _check_arguments(autoencoder, source, flip):
    """Raises ValueError for arguments of `encode_until_stopped` of other kinds."""
    if not isinstance(autoencoder, Autoencoder):
        raise ValueError(
            f"autoencoder must be a cmjax.Autoencoder, got {shown(autoencoder)}; open one by "
            "cmjax.load_autoencoder"
        )
    if not hasattr(source, "fingerprint"):
        raise ValueError(
            f"source must have a fingerprint, as what open_source returns, got {shown(source)}"
        )
    if not isinstance(flip, bool):
        raise ValueError(f"flip must be True or False, got {shown(flip)}")


def _settings(autoencoder, source, dtype, flip):
    """Returns what the moments depend on, in a new folder.

    Raises:
        ValueError: if the first picture cannot be encoded.
    """
    # The shapes and kinds of all records are those of the first. Gray pictures get the channels of
    # the autoencoder.
    first = collate([source[0]], [0])
    picture_shape = list(first["data"].shape[1:])
    if len(picture_shape) == 3 and picture_shape[2] == 1:
        picture_shape[2] = autoencoder.config.in_channels
    picture = jax.ShapeDtypeStruct((1, *picture_shape), dtype)
    mean, std = jax.eval_shape(autoencoder.moments, picture)

    # A picture is followed by its mirror image.
    records_per_picture = 2 if flip else 1
    return MomentsSettings(
        data=source.fingerprint(),
        num=len(source) * records_per_picture,
        flip=flip,
        picture_shape=picture_shape,
        shape=list(mean.shape[1:]),
        is_random=std is not None,
        has_labels="class_labels" in first,
        class_names=list(getattr(source, "classes", ())),
        autoencoder=autoencoder_digest(autoencoder),
        dtype=str(np.dtype(dtype)),
        shard_size=SHARD_SIZE,
        **machine(),
    )


def _is_whole(path, digest):
    """Whether the autoencoder of this digest is in a folder."""
    try:
        return autoencoder_digest(load_autoencoder(path)) == digest
    except (ValueError, OSError):
        return False

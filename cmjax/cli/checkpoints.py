"""`cmjax convert` and `cmjax info`."""

import collections
import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cmjax.cli import opening, option_types, options, terminal
from cmjax.printing import printable

if TYPE_CHECKING:
    from cmjax.checkpoints import Checkpoint
    from cmjax.checkpoints.checkpoint import StoredNetwork


# Dtypes that PyTorch and JAX have in common, and a network can compute in.
DTYPES = ["float32", "bfloat16", "float16"]
PRESET = click.option(
    "--config",
    metavar="PRESET",
    help="Network of a released model's file: imagenet64, lsun256 or cifar10 (OpenAI), or such as "
    "pMF-B/16 or MF-B/4.  [default: inferred from its tensors]",
)


@click.command()
@click.argument("source", metavar="SRC", shell_complete=option_types.complete_path)
@click.argument("destination", metavar="DST", type=option_types.Location())
@click.option(
    "--to",
    type=click.Choice(["cmjax", "diffusers"]),
    default="cmjax",
    show_default=True,
    help="Kind of folder to write.",
)
@click.option(
    "--dtype", type=click.Choice(DTYPES), help="Dtype of the tensors.  [default: as in SRC]"
)
@PRESET
@options.trust
@options.vae
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
def convert(
    source: str,
    destination: Path,
    to: str,
    dtype: str | None,
    config: str | None,
    quiet: bool,
) -> None:
    """Converts the model SRC, writing it to the folder DST.

    SRC is a cmjax folder, a diffusers pipeline or UNet folder, the file or folder of a released
    model, or a hub id owner/name.

    \b
    Examples:
      cmjax convert cd_imagenet64_lpips.pt cd_imagenet64
                                            OpenAI's file for cmjax
      cmjax convert runs/digits/model mine --to diffusers
                                            your model for diffusers
      cmjax convert openai/diffusers-cd_cat256_l2 cat --dtype float16
                                            half the size
    """  # noqa: D301
    from cmjax.checkpoints import save
    from cmjax.checkpoints.loading import read_unreplaced

    # Without --dtype every tensor keeps its own, so that a conversion there and back is exact.
    def read():
        checkpoint = opening.open_checkpoint(source, config)
        return checkpoint, checkpoint.load(dtype=dtype, keep_dtypes=dtype is None)

    checkpoint, model = read_unreplaced(source, read)
    save(destination, model, to=to)  # type: ignore[arg-type]
    if not quiet:
        if checkpoint.note:
            terminal.echo(f"Note: {checkpoint.note}", err=True)
        terminal.echo(
            f"{destination}: {_parameters(checkpoint)}, from {checkpoint.kind} {source}"
        )


@click.command()
@click.argument(
    "source", metavar="[SRC]", required=False, shell_complete=option_types.complete_path
)
@PRESET
@options.trust
@options.vae
@options.as_json
def info(source: str | None, config: str | None, as_json: bool) -> None:
    """Describes the model SRC, without reading its tensors.

    SRC is as for cmjax convert, or the folder or file of an autoencoder, or its hub id. Without it,
    the bundled model is described.

    \b
    Examples:
      cmjax info                                the bundled digits
      cmjax info cd_imagenet64_lpips.pt         one of OpenAI's files
      cmjax info openai/diffusers-cd_cat256_l2  one on the Hugging Face hub
      cmjax info stabilityai/sd-vae-ft-mse      an autoencoder
      cmjax info runs/mine --json               the same for programs
    """  # noqa: D301
    from cmjax.checkpoints.autoencoders import open_autoencoder
    from cmjax.checkpoints.checkpoint import AutoencoderAlone

    # An autoencoder alone is no model, but can be described.
    try:
        checkpoint: Any = opening.open_checkpoint(source, config)
        described = _described
        in_rows = _rows
    except AutoencoderAlone:
        checkpoint = open_autoencoder(str(source))
        described = _autoencoder_alone_described
        in_rows = _autoencoder_rows
    checkpoint.check()
    if as_json:
        terminal.echo(json.dumps(described(checkpoint), indent=2, default=str))
        return

    # Two columns, the first as wide as its longest name.
    rows = in_rows(checkpoint)
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        if isinstance(value, tuple):
            value = ", ".join(map(str, value))

        # Escaped here too, so that a name with line breaks cannot pass for further rows.
        terminal.echo(printable(f"{name:{width}}  {value}"))


def _rows(checkpoint: "Checkpoint") -> list[tuple[str, Any]]:
    """Returns names and values in the order in which they are printed; options are indented."""
    from cmjax.autoencoder import picture_shape
    from cmjax.labels import describe_classes
    from cmjax.models.registry import (
        autoencoder_name,
        network_name,
        preset_name,
        sample_shape,
    )
    from cmjax.registry import scheduler_to_config

    # What a user asks first: what it is, what it makes, how large it is.
    config = checkpoint.config
    shape = "x".join(map(str, sample_shape(config)))
    num_classes = getattr(config, "num_class_embeds", None)
    classes = describe_classes(num_classes, checkpoint.class_names)
    rows: list[tuple[str, Any]] = [
        ("kind", checkpoint.kind),
        ("samples", f"{shape}, {classes}"),
        ("tensors", _parameters(checkpoint)),
        ("dtypes", _dtypes(checkpoint)),
        ("network", network_name(config)),
    ]
    if preset_name(config):
        rows.append(("preset", preset_name(config)))

    # Every option of the network and of the scheduler, defaults included.
    rows += _option_rows(_fields(config))
    scheduler = scheduler_to_config(checkpoint.scheduler)
    rows.append(("scheduler", scheduler["_class_name"]))
    own_options = {name: value for name, value in scheduler.items() if name[0] != "_"}
    rows += _option_rows(own_options)

    # What makes pictures of the samples of a latent model.
    autoencoder = checkpoint.autoencoder
    if autoencoder is not None:
        pictures = picture_shape(config, autoencoder.config)
        rows += [
            ("autoencoder", autoencoder_name(autoencoder.config)),
            ("  pictures", "x".join(map(str, pictures))),
            ("  tensors", _parameters(autoencoder)),
            ("  dtypes", _dtypes(autoencoder)),
        ]
        rows += _option_rows(_fields(autoencoder.config))

    rows += _last_rows(_files(checkpoint), checkpoint.note)
    return rows


def _autoencoder_rows(stored: "StoredNetwork") -> list[tuple[str, Any]]:
    """Returns what `_rows` does for an autoencoder alone."""
    from cmjax.models.registry import autoencoder_name

    # What a user asks first: what it is, what its latents are, how large it is.
    config = stored.config
    latents = (
        f"{config.latent_channels} channels, 1/{config.stride} of the height and width, "
        f"scaled by {config.scaling_factor:g}"
    )
    rows: list[tuple[str, Any]] = [
        ("kind", stored.kind),
        ("pictures", f"{config.in_channels} channels"),
        ("latents", latents),
        ("tensors", _parameters(stored)),
        ("dtypes", _dtypes(stored)),
        ("autoencoder", autoencoder_name(config)),
    ]
    rows += _option_rows(_fields(config))
    rows += _last_rows(list(stored.files), stored.note)
    return rows


def _option_rows(values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Returns a row for each option by its name, indented below what it is an option of."""
    return [(f"  {name}", value) for name, value in values.items()]


def _last_rows(files: list[Path], note: str) -> list[tuple[str, Any]]:
    """Returns the files, and what a user should know: the rows at the end."""
    rows: list[tuple[str, Any]] = []
    for file in files:
        rows.append(("file", f"{file} ({_size(file.stat().st_size)})"))
    if note:
        rows.append(("note", note))
    return rows


def _described(checkpoint: "Checkpoint") -> dict[str, Any]:
    """Returns what `_rows` says, as values of JSON."""
    from cmjax.autoencoder import picture_shape
    from cmjax.models.registry import network_name, preset_name, sample_shape
    from cmjax.registry import scheduler_to_config

    config = checkpoint.config
    autoencoder = checkpoint.autoencoder
    decoder = None if autoencoder is None else autoencoder.config
    return {
        "kind": checkpoint.kind,
        "sample_shape": list(sample_shape(config)),
        "picture_shape": list(picture_shape(config, decoder)),
        "num_classes": getattr(config, "num_class_embeds", None),
        "class_names": checkpoint.class_names,
        **_tensors_described(checkpoint),
        "network": {"class": network_name(config), **dataclasses.asdict(config)},
        "preset": preset_name(config),
        "scheduler": scheduler_to_config(checkpoint.scheduler),
        "autoencoder": _autoencoder_described(autoencoder),
        "files": _sizes(_files(checkpoint)),
        "note": checkpoint.note,
    }


def _autoencoder_alone_described(stored: "StoredNetwork") -> dict[str, Any]:
    """Returns what `_autoencoder_rows` says, as values of JSON."""
    return {
        "kind": stored.kind,
        "stride": stored.config.stride,
        "autoencoder": _autoencoder_described(stored),
        "files": _sizes(list(stored.files)),
        "note": stored.note,
    }


def _sizes(files: list[Path]) -> list[dict[str, Any]]:
    """Returns the paths of files, and their sizes in bytes."""
    return [{"path": str(file), "bytes": file.stat().st_size} for file in files]


def _autoencoder_described(autoencoder: "StoredNetwork | None") -> dict[str, Any] | None:
    """Returns what `_rows` says of the autoencoder, as values of JSON; None without one."""
    from cmjax.models.registry import autoencoder_name

    if autoencoder is None:
        return None
    return {
        "class": autoencoder_name(autoencoder.config),
        **dataclasses.asdict(autoencoder.config),
        **_tensors_described(autoencoder),
    }


def _tensors_described(stored: "StoredNetwork") -> dict[str, Any]:
    """Returns how much a network holds, as values of JSON."""
    return {
        "num_parameters": _num_parameters(stored),
        "num_tensors": len(stored.tensors),
        "dtypes": _tensors_by_dtype(stored),
    }


def _fields(config: Any) -> dict[str, Any]:
    """Returns the options of a network, defaults included."""
    names = [field.name for field in dataclasses.fields(config)]
    return {name: getattr(config, name) for name in names}


def _files(checkpoint: "Checkpoint") -> list[Path]:
    """Returns the files of all of a model's tensors."""
    files = list(checkpoint.files)
    if checkpoint.autoencoder is not None:
        files += checkpoint.autoencoder.files
    return files


def _parameters(stored: "StoredNetwork") -> str:
    """Returns the numbers of parameters and of tensors, as words."""
    return f"{_num_parameters(stored):,} parameters in {len(stored.tensors)} tensors"


def _dtypes(stored: "StoredNetwork") -> str:
    """Returns how many tensors have each dtype, in words, the most frequent one first."""
    counts = _tensors_by_dtype(stored).most_common()
    return ", ".join(f"{count} x {dtype}" for dtype, count in counts)


def _num_parameters(stored: "StoredNetwork") -> int:
    """Returns the number of values in all tensors."""
    return sum(math.prod(tensor.shape) for tensor in stored.tensors.values())


def _tensors_by_dtype(stored: "StoredNetwork") -> collections.Counter[str]:
    """Returns the number of tensors of each dtype."""
    return collections.Counter(str(tensor.dtype) for tensor in stored.tensors.values())


def _size(count: float) -> str:
    """Returns a number of bytes in the unit that makes it short."""
    # Powers of 1000, as drives and download pages count.
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.4g} {unit}"
        count /= 1000
    return f"{count:.4g} GB"

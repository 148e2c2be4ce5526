"""`cmjax convert` and `cmjax info`."""

import dataclasses
import gc
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from cmjax.checkpoints import Checkpoint

DTYPES = ["float32", "bfloat16", "float16"]
PRESET = click.option(
    "--config",
    metavar="PRESET",
    help="Network of an OpenAI file: imagenet64 or lsun256.  [default: inferred from its tensors]",
)


@click.command()
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="DST", type=click.Path(path_type=Path))
@click.option(
    "--to",
    type=click.Choice(["cmjax", "diffusers"]),
    default="cmjax",
    show_default=True,
    help="Kind of folder to write.",
)
@click.option("--dtype", type=click.Choice(DTYPES), help="Of the tensors.  [default: as they are]")
@PRESET
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
def convert(
    source: str, destination: Path, to: str, dtype: str | None, config: str | None, quiet: bool
) -> None:
    """Writes the model SRC as the folder DST.

    SRC is a cmjax folder, a diffusers pipeline or UNet folder, an OpenAI .pt file, or a hub id owner/name.

    \b
    Examples:
      cmjax convert cd_imagenet64_lpips.pt cd_imagenet64               OpenAI's file for cmjax
      cmjax convert runs/digits/model mine --to diffusers              your model for diffusers
      cmjax convert openai/diffusers-cd_cat256_l2 cat --dtype float16  half the size
    """  # noqa: D301
    from cmjax.checkpoints import open_checkpoint, save

    checkpoint = open_checkpoint(source, config=config)
    save(destination, checkpoint.load(dtype=dtype, keep_dtypes=dtype is None), to=to)  # type: ignore[arg-type]
    if not quiet:
        if checkpoint.note:
            click.echo(f"Note: {checkpoint.note}", err=True)
        click.echo(f"{destination}: {_parameters(checkpoint)}, from {checkpoint.kind} {source}")


@click.command()
@click.argument("source", metavar="[SRC]", required=False)
@PRESET
def info(source: str | None, config: str | None) -> None:
    """Says what the model SRC is.

    Its tensors are not read. SRC is as for `cmjax convert`; left out, it is the bundled model.

    \b
    Examples:
      cmjax info                                the bundled digits
      cmjax info cd_imagenet64_lpips.pt         one of OpenAI's files
      cmjax info openai/diffusers-cd_cat256_l2  one on the Hugging Face hub
    """  # noqa: D301
    from cmjax.checkpoints import open_checkpoint

    gc.disable()  # a fifth of the time, for a process that ends before there is garbage
    checkpoint = open_checkpoint(source, config=config)
    checkpoint.check()
    network, scheduler = checkpoint.config, checkpoint.scheduler
    shape = f"{network.sample_size}x{network.sample_size}x{network.out_channels}"
    rows = [
        ("kind", checkpoint.kind),
        (
            "samples",
            f"{shape}, {f'{network.num_class_embeds} classes' if network.num_class_embeds else 'no classes'}",
        ),
        ("tensors", _parameters(checkpoint)),
        ("dtypes", _dtypes(checkpoint)),
        *[
            (f"  {field.name}", getattr(network, field.name))
            for field in dataclasses.fields(network)
        ],
        ("scheduler", type(scheduler).__name__),
        *[
            (f"  {name}", value)
            for name, value in scheduler.to_config().items()
            if not name.startswith("_")
        ],
        *[("file", f"{file} ({_size(file.stat().st_size)})") for file in checkpoint.files],
    ]
    rows.insert(4, ("network", "UNet2D"))
    if checkpoint.note:
        rows.append(("note", checkpoint.note))
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        value = ", ".join(map(str, value)) if isinstance(value, tuple) else value
        click.echo(f"{name:{width}}  {value}")


def _parameters(checkpoint: "Checkpoint") -> str:
    import math

    count = sum(math.prod(tensor.shape) for tensor in checkpoint.tensors.values())
    return f"{count:,} parameters in {len(checkpoint.tensors)} tensors"


def _dtypes(checkpoint: "Checkpoint") -> str:
    import collections

    return ", ".join(
        f"{n} x {dtype}"
        for dtype, n in collections.Counter(
            str(tensor.dtype) for tensor in checkpoint.tensors.values()
        ).most_common()
    )


def _size(count: int) -> str:
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.4g} {unit}"
        count /= 1000  # type: ignore[assignment]
    return f"{count:.4g} GB"

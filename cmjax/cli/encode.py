"""`cmjax encode`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cmjax.cli import compilation, distributed, option_types, terminal, wording

if TYPE_CHECKING:
    from cmjax.generation import Outcome


@click.command()
@click.argument("data", metavar="DATA", shell_complete=option_types.complete_path)
@click.argument("out", metavar="OUT", type=option_types.Location())
@click.option(
    "--vae",
    metavar="SRC",
    required=True,
    shell_complete=option_types.complete_path,
    help="The autoencoder: a folder or a file of diffusers' AutoencoderKL or AutoencoderTiny, a "
    "pipeline with one, or a hub id owner/name.",
)
@click.option(
    "--size",
    type=click.IntRange(1),
    metavar="N",
    help="Height and width, which the middle square of each picture of a folder is scaled to.",
)
@click.option(
    "--flip",
    is_flag=True,
    help="Encode the mirror image of each picture, too: twice as many latents.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16"]),
    default="float32",
    show_default=True,
    help="Dtype to compute in; latents are stored in float32.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    metavar="N",
    default=8,
    show_default=True,
    help="Number of pictures that each device encodes at a time.",
)
@click.option(
    "--shard-size",
    type=click.IntRange(1),
    metavar="N",
    help="Number of pictures per file. A process that is killed loses three files' worth of "
    "pictures and the batches under way at most.  [default: 100]",
)
@compilation.cache_option
@click.option(
    "--quiet",
    is_flag=True,
    help="Print nothing but errors, and which files were moved out of the way.",
)
@distributed.process_options
def encode(
    data: str,
    out: Path,
    vae: str,
    size: int | None,
    flip: bool,
    dtype: str,
    batch_size: int,
    shard_size: int | None,
    compilation_cache: str | None,
    quiet: bool,
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    coordinator_timeout: int,
) -> None:
    """Encodes DATA to latents in the folder OUT, to train a latent model on.

    DATA is what cmjax train takes: an .npz, an IDX file or a folder of pictures, whose subfolders
    are the classes. OUT holds the mean and the standard deviation of the latents of every picture,
    the labels, and the autoencoder, which a model that is trained on OUT will have. Run the same
    command again after any interruption: it resumes. Once more, it checks that all files are
    whole.

    \b
    Examples:
      cmjax encode photos latents --vae stabilityai/sd-vae-ft-mse --size 256
      cmjax encode cifar10.npz latents --vae madebyollin/taesd
      cmjax train my.toml --data latents
    """  # noqa: D301
    # The cache must be set before anything compiles, and processes join before anything asks JAX
    # for its devices.
    compilation.keep_compiled(compilation_cache)
    distributed.initialize(coordinator, num_processes, process_id, coordinator_timeout)

    from cmjax.checkpoints import load_autoencoder
    from cmjax.processes import run_on_all_processes
    from cmjax.training.encoding import encode_until_stopped
    from cmjax.training.sources import open_source

    # If one process failed here, the others would wait for it in vain: all of them fail together.
    def prepare():
        try:
            with compilation.on_host():
                autoencoder = load_autoencoder(vae)
        except ValueError as error:
            raise ValueError(f"--vae: {error}") from None
        stride = autoencoder.stride
        if size is not None and size % stride:
            raise ValueError(
                f"--size must be a multiple of {stride}, the pixels of a latent's side, got {size}"
            )
        channels = autoencoder.config.in_channels
        return autoencoder, open_source(data, size, channels)

    autoencoder, source = run_on_all_processes(prepare)

    # With --quiet too: files that were moved out of the way are no matter of progress.
    def report(text):
        terminal.echo(text, err=True)

    outcome = encode_until_stopped(
        out,
        autoencoder,
        source,
        batch_size=batch_size,
        shard_size=shard_size,
        dtype=dtype,
        flip=flip,
        name=vae,
        progress=not quiet,
        report=report,
    )
    _report(outcome, out, quiet)


def _report(outcome: "Outcome", out: Path, quiet: bool) -> None:
    """Prints what was encoded, or that the run was stopped, which is exit code 130."""
    done = wording.counted(outcome.num_done, "picture")
    if outcome.stopped:
        terminal.echo(
            f"Stopped: {done} in {out}; the same command resumes from there.", err=True
        )
        click.get_current_context().exit(130)
    if not outcome.paths or quiet:
        return

    rate = wording.rate(outcome)
    terminal.echo(f"{done} in {out}{rate}; cmjax train takes it as --data {out}")

"""`cmjax train`."""

from pathlib import Path
from typing import Any

import click

from cmjax.cli import distributed, options, terminal


@click.command()
@click.argument("config", metavar="CONFIG")
@click.option(
    "--out",
    "-o",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder of the run.  [default: runs/NAME, of CONFIG without its suffix]",
)
@click.option(
    "--set",
    "settings",
    type=options.Setting(),
    multiple=True,
    help="Value in place of that in CONFIG, as section.key=value; may be repeated.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Print the shapes, the number of parameters, the memory and the operations that a step "
    "needs, and train nothing.",
)
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
@distributed.process_options
def train(
    config: str,
    out: Path | None,
    settings: tuple[tuple[str, Any], ...],
    dry_run: bool,
    quiet: bool,
    **processes: Any,
) -> None:
    """Trains the model described by CONFIG, a .toml file or a preset.

    Run the same command again after any interruption: it resumes, and the losses are those of an
    uninterrupted run. docs/training.md describes the sections and keys of the file.

    Presets are the papers' configurations, for many accelerators: cifar10_cd, cifar10_ct,
    cifar10_ict, imagenet64_cd, imagenet64_ct, imagenet64_ict, lsun256_cd, lsun256_ct.

    \b
    Examples:
      cmjax train examples/digits_denoiser.toml --set data.source=mnist.npz
      cmjax train examples/digits.toml --set data.source=mnist.npz --out runs/digits
      cmjax train cifar10_ict --set data.source=cifar10.npz --dry-run
    """  # noqa: D301
    # Processes join before anything asks JAX for its devices; a dry run needs no others.
    if not dry_run:
        distributed.initialize(**processes)
    # Imported late: `cmjax --help` must not wait for JAX.
    from cmjax.training import reports, run
    from cmjax.training.config import read_config

    # Errors of the configuration name its file.
    try:
        train_config = read_config(config, settings)
    except ValueError as error:
        # Some do already, as those of a file that cannot be read.
        message = str(error)
        if not message.startswith(config):
            message = f"{config}: {message}"
        raise ValueError(message) from None
    if dry_run:
        terminal.echo(reports.describe(train_config))
        return

    # The same name every time, so that the same command finds its run again.
    out = out or Path("runs") / Path(config).stem

    def report(text):
        terminal.echo(text, err=True)

    trained = run.train_until_stopped(train_config, out, quiet=quiet, report=report)
    # An interrupted run has saved its state: the exit code says that it is not done yet.
    if not trained.is_finished:
        click.get_current_context().exit(130)
    if not quiet:
        terminal.echo(f"model in {out / 'model'}: cmjax sample --model {out / 'model'}")

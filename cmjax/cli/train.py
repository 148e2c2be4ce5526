"""`cmjax train`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cmjax import system
from cmjax.cli import distributed, option_types, terminal

if TYPE_CHECKING:
    from cmjax.training.config import TrainConfig


@click.command()
@click.argument(
    "config",
    metavar="[CONFIG]",
    required=False,
    shell_complete=option_types.complete_config,
)
@click.option(
    "--init",
    "prints",
    is_flag=True,
    help="Print the preset CONFIG as a file with comments, to be changed, and train nothing.  "
    "[default: pictures]",
)
@click.option(
    "--data",
    metavar="PATH",
    shell_complete=option_types.complete_path,
    help="Data in place of CONFIG's: an .npz, an IDX file, a folder of pictures, or one of "
    "cmjax encode.",
)
@click.option(
    "--out",
    "-o",
    type=option_types.Location(),
    metavar="DIR",
    help="Folder of the run.  [default: runs/NAME, NAME being CONFIG's without .toml]",
)
@click.option(
    "--set",
    "settings",
    type=option_types.Setting(),
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
    config: str | None,
    prints: bool,
    data: str | None,
    out: Path | None,
    settings: tuple[tuple[str, Any], ...],
    dry_run: bool,
    quiet: bool,
    **processes: Any,
) -> None:
    """Trains a model, as CONFIG describes it.

    CONFIG is a .toml file or a preset. Run the same command again after any interruption: it
    resumes, and the losses are those of an uninterrupted run. Paths in a file are relative to its
    folder. The documentation's page "Runs of cmjax train" describes the sections and keys.

    Small presets are digits (then digits_distilled), digits_mean_flow, digits_pixel_mean_flow,
    pictures, and pictures_diffusers, which diffusers can open. The others are the papers', for many
    accelerators: cifar10_cd, cifar10_ct, cifar10_ict, cifar10_mean_flow, imagenet64_cd,
    imagenet64_ct, imagenet64_ict, imagenet64_dmd, lsun256_cd, lsun256_ct,
    celebahq256_shortcut.

    \b
    Examples:
      cmjax train --init > my.toml         a configuration to begin with
      cmjax train my.toml --dry-run        what it needs
      cmjax train my.toml                  trains, or resumes
      cmjax train digits --data mnist.npz  a preset
      cmjax train cifar10_ict --data cifar10.npz --set run.batch_size=256
    """  # noqa: D301
    if prints:
        _print_preset(config or "pictures")
        return
    if config is None:
        raise ValueError(
            "give a CONFIG, a .toml file or a preset; cmjax train --init > my.toml writes a file"
        )

    # Before JAX starts threads. Processes join before anything asks JAX for its devices. A dry run
    # needs neither.
    if not dry_run:
        if system.computes_on_cpu():
            system.keep_memory()
        distributed.initialize(**processes)
    # Imported late: `cmjax --help` must not wait for JAX.
    from cmjax.training import reports, run

    train_config = _read(config, data, settings)
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
        model = out / "model"
        terminal.echo(
            f"model in {model}: cmjax sample --model {model}{_sampler(train_config)}"
        )


def _print_preset(name: str) -> None:
    """Prints a preset as a file."""
    from cmjax.training.presets import preset_text

    terminal.echo(preset_text(name).rstrip("\n"))


def _read(
    config: str, data: str | None, settings: tuple[tuple[str, Any], ...]
) -> "TrainConfig":
    """Reads the configuration; its errors name its file.

    Raises:
        ValueError: for a wrong key or value, or if there is no data to train on.
    """
    from cmjax.training.config import read_config
    from cmjax.training.presets import SMALL

    if data is not None:
        settings = (*settings, ("data.source", data))
    try:
        train_config = read_config(config, settings)
    except ValueError as error:
        # Some do already, as those of a file that cannot be read.
        message = str(error)
        if not message.startswith(config):
            message = f"{config}: {message}"
        raise ValueError(message) from None
    if not train_config.data.source:
        wanted = SMALL.get(config, "an .npz, an IDX file or a folder of pictures")
        raise ValueError(f"{config}: data.source is missing; give --data PATH, {wanted}")
    return train_config


def _sampler(config: "TrainConfig") -> str:
    """Returns the options of `cmjax sample` for a model of this run, each after a space."""
    # A denoiser's single calls are blurred means; it is sampled as in the pictures of the run.
    preview = config.make_loss(config.make_scheduler()).preview
    if preview.sigmas is not None:
        return f" --sigmas {','.join(f'{level:g}' for level in preview.sigmas)}"
    if preview.solver is None:
        return ""
    return (
        f" --scheduler {preview.solver.__name__} --steps {preview.num_inference_steps[-1]}"
    )

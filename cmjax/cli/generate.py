"""`cmjax generate`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from cmjax.cli import (
    checks,
    compilation,
    distributed,
    opening,
    option_types,
    options,
    terminal,
    wording,
)

if TYPE_CHECKING:
    from cmjax.generation import Outcome
    from cmjax.model import Model

# What goes with --verify; the folder's manifest says all else.
WITH_VERIFY = {
    "verify",
    "model",
    "trust",
    "vae",
    "batch_size",
    "shard_params",
    "compilation_cache",
    "quiet",
    # The processes of a run may all be given the same options; each checks by itself.
    "coordinator",
    "num_processes",
    "process_id",
    "coordinator_timeout",
}

ALIASES = {"num-samples": "num"}  # earlier names of options


@click.command(
    context_settings={"token_normalize_func": lambda name: ALIASES.get(name, name)}
)
@options.sampling()
@options.num(
    50_000,
    "Number of samples. A larger number than in an earlier run adds to its folder.",
)
@click.option(
    "--out",
    "-o",
    type=option_types.Location(),
    metavar="DIR",
    help="Folder of the run, the same for all processes.",
)
@click.option(
    "--format",
    "formats",
    type=click.Choice(["npz", "png", "array-record"]),
    multiple=True,
    default=["npz"],
    show_default=True,
    help="Format of the samples in the end; may be repeated.",
)
@options.batch_size("Number of samples that each device makes at a time.")
@click.option(
    "--shard-size",
    type=click.IntRange(1),
    metavar="N",
    help="Number of samples per file. A process that is killed loses the samples of three files "
    "and the batches under way at most.  [default: 100]",
)
@click.option(
    "--shard-params",
    is_flag=True,
    help="Divide the parameters among the devices, for a model too large for one of them.",
)
@click.option(
    "--verify",
    type=option_types.Location(),
    metavar="DIR",
    help="Check the samples in a folder instead of making any. Only a model on this machine is "
    "found by itself; name others by --model.",
)
@compilation.cache_option
@click.option(
    "--quiet",
    is_flag=True,
    help="Print nothing but errors, and which files were moved out of the way.",
)
@distributed.process_options
def generate(
    model: str | None,
    scheduler: str | None,
    settings: tuple[tuple[str, Any], ...],
    steps: int | None,
    timesteps: list[float] | None,
    sigmas: list[float] | None,
    labels: list[str] | None,
    guidance: float | None,
    guidance_interval: list[float] | None,
    seed: int,
    dtype: str,
    num: int,
    out: Path | None,
    formats: tuple[str, ...],
    batch_size: int,
    shard_size: int | None,
    shard_params: bool,
    verify: Path | None,
    compilation_cache: str | None,
    quiet: bool,
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    coordinator_timeout: int,
) -> None:
    """Makes many samples, in a folder, on all devices.

    Run the same command again after any interruption: it resumes. The samples are those that cmjax
    sample makes with the same options, up to rounding. In the end the folder holds
    samples_NxHxWxC.npz, with arr_0 and arr_1 as the evaluator of guided-diffusion reads them.
    The documentation's page "Many samples" describes runs on several machines.

    \b
    Examples:
      cmjax generate --num 1000 --out digits  a thousand of the bundled digits
      cmjax generate --model runs/mine --steps 2 --out mine
                                              50,000 of yours, in two steps
      cmjax generate --num 1000 --out digits --format png
                                              the same as pictures; none is
                                              sampled again
      cmjax generate --verify digits          checks that they are still as made
    """  # noqa: D301
    if (out is None) == (verify is None):
        raise ValueError(
            "--out DIR says where the samples go, --verify DIR checks some; give one of them"
        )
    schedule = checks.schedule(steps, timesteps, sigmas)

    # The cache must be set before anything compiles.
    compilation.keep_compiled(compilation_cache)
    if verify is not None:
        _check_with_verify(click.get_current_context())
        _verify(verify, model, batch_size, shard_params, quiet)
        return

    # Processes join before anything asks JAX for its devices.
    assert out is not None
    distributed.initialize(coordinator, num_processes, process_id, coordinator_timeout)

    from cmjax.generation import generate_until_stopped
    from cmjax.processes import run_on_all_processes

    # If one process failed to load the model, the others would wait for it in vain; here all of
    # them fail together.
    def prepare():
        loaded = _load(model, scheduler, settings, dtype, quiet)
        request, _ = opening.request_of(
            loaded,
            schedule,
            labels=labels,
            guidance=guidance,
            guidance_interval=guidance_interval,
            seed=seed,
            dtype=dtype,
        )
        return loaded, request

    loaded, request = run_on_all_processes(prepare)
    terminal.print_notes()
    outcome = generate_until_stopped(
        out,
        loaded,
        request,
        num,
        batch_size=batch_size,
        shard_size=shard_size,
        shard_params=shard_params,
        formats=formats,
        source=model or "",
        progress=not quiet,
        report=_warn,
    )
    _report(outcome, num, out, quiet)


def _check_with_verify(ctx: click.Context) -> None:
    """Raises ValueError for options that say what to sample, beside --verify."""
    for param in ctx.command.params:
        given = ctx.get_parameter_source(param.name or "") is ParameterSource.COMMANDLINE
        if given and param.name not in WITH_VERIFY:
            raise ValueError(
                f"{param.opts[0]} does not go with --verify, which checks the samples as the "
                "folder says they were made; leave it out"
            )


def _warn(text: str) -> None:
    """Prints what the user has to know, with --quiet too: it is no matter of progress."""
    terminal.echo(text, err=True)


def _report(outcome: "Outcome", num: int, out: Path, quiet: bool) -> None:
    """Prints what was made, or that the run was stopped, which is exit code 130."""
    if outcome.stopped:
        terminal.echo(
            f"Stopped: {outcome.num_done:,} of {num:,} samples are in {out}; "
            "the same command resumes from there.",
            err=True,
        )
        click.get_current_context().exit(130)

    # Only the process that writes the results has paths.
    if outcome.paths and not quiet:
        paths = ", ".join(map(str, outcome.paths))
        samples = wording.counted(num, "sample")
        terminal.echo(f"{samples} in {paths}{wording.rate(outcome)}")


def _verify(
    folder: Path, model: str | None, batch_size: int, shard_params: bool, quiet: bool
) -> None:
    """Checks a folder, with the model that it was made with unless another is named.

    That model is taken if it is the bundled one, or at the place on this machine that the folder's
    manifest names. A hub is not asked for it: the folder may be somebody else's, and the user's
    token goes with the request.

    Raises:
        ValueError: naming the files that are damaged, or saying by how much samples differ.
    """
    from cmjax.generation import verify
    from cmjax.generation.manifest import read_manifest

    # The dtype decides the values, so it is that of the run.
    manifest = read_manifest(folder)
    source = model or manifest.local_source(folder)
    if source is None and manifest.source:
        raise ValueError(
            f"{folder} was made with the model {manifest.source!r:.200}; give it as --model MODEL"
        )
    loaded = _load(source, None, (), str(manifest.settings.request.dtype), quiet)
    terminal.print_notes()
    verified = verify(folder, loaded, batch_size=batch_size, shard_params=shard_params)

    # Damage first: another run repairs it, and it may be all that is wrong.
    if verified.damaged:
        names = ", ".join(str(path.relative_to(folder)) for path in verified.damaged)
        raise ValueError(
            f"{folder}: damaged, missing or unknown: {names}; "
            "remove what is unknown, and run its generate_folder again to repair the rest"
        )
    if not verified.reproduced:
        raise ValueError(
            f"{folder}: samples made again differ by up to {verified.max_difference} of 255; "
            "they were altered, or this machine computes differently"
        )
    if quiet:
        return

    # Shards may be removed once the results are written; nothing is left to compare then.
    again = "none was made again"
    if verified.num_samples:
        again = "those made again are equal"
        if verified.max_difference:
            again = f"some made again differ by {verified.max_difference} of 255"
    samples = wording.counted(verified.num_samples, "sample")
    terminal.echo(f"{folder}: {samples} in shards, all files whole; {again}")


def _load(
    model: str | None,
    scheduler: str | None,
    settings: tuple[tuple[str, Any], ...],
    dtype: str,
    quiet: bool,
) -> "Model":
    """Loads a model into the host's memory: one device may have too little for all of it."""
    with compilation.on_host():
        return opening.open_model(model, scheduler, dict(settings), dtype, quiet)

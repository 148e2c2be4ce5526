"""`cmjax generate`."""

import contextlib
import os
from pathlib import Path
from typing import Any

import click

from cmjax.cli import options


@click.command()
@options.sampling
@click.option(
    "--num-samples",
    type=click.IntRange(1, 2**32),
    metavar="N",
    default=50_000,
    show_default=True,
    help="How many; a larger number than before adds to the folder.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
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
    help="What to make of the samples in the end; may be repeated.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    metavar="N",
    default=64,
    show_default=True,
    help="Samples at a time on each device.",
)
@click.option(
    "--shard-size",
    type=click.IntRange(1),
    metavar="N",
    help="Samples in a file; a kill loses three of them at most.  [default: 100]",
)
@click.option(
    "--shard-params",
    is_flag=True,
    help="Divide the parameters among devices, for models larger than one.",
)
@click.option(
    "--verify",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Check a folder instead, and end.",
)
@click.option(
    "--compilation-cache",
    metavar="DIR",
    help="Where compiled programs are kept; 'none' for nowhere.  [default: the user's cache folder]",
)
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
@options.distributed
def generate(
    model: str | None,
    scheduler: str | None,
    settings: tuple[tuple[str, Any], ...],
    steps: int | None,
    timesteps: list[float] | None,
    sigmas: list[float] | None,
    labels: list[int] | None,
    dtype: str,
    out: Path | None,
    num_samples: int,
    formats: tuple[str, ...],
    verify: Path | None,
    compilation_cache: str | None,
    quiet: bool,
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    **rest: Any,
) -> None:
    """Makes many samples into a folder, on all devices; run again after any interruption, it goes on.

    Sample number i depends on the seed, the levels and its class alone, and is that of cmjax sample. In the end the
    folder holds samples_NxHxWxC.npz, with arr_0 and arr_1 as the evaluator of guided-diffusion reads them.
    Several machines: docs/scaling.md.

    \b
    Examples:
      cmjax generate --num-samples 1000 --out digits             a thousand of the bundled digits
      cmjax generate --model runs/mine --steps 2 --out mine      50,000 of yours, in two steps
      cmjax generate --num-samples 1000 --out digits --format png
                                                                 the same as pictures; none is made again
      cmjax generate --verify digits                             are they as they were made?
    """  # noqa: D301
    if (out is None) == (verify is None):
        raise ValueError(
            "--out DIR says where the samples go, --verify DIR checks some; give one of them"
        )
    schedule = options.schedule(steps, timesteps, sigmas) or {"num_inference_steps": 1}
    if verify is None:
        options.initialize(coordinator, num_processes, process_id)
    _keep_compiled(compilation_cache)

    from cmjax.generation import generate_folder
    from cmjax.generation.processes import all_together

    if verify is not None:
        _verify(verify, model, rest["batch_size"], rest["shard_params"], quiet)
        return
    assert out is not None

    def prepare():
        with _on_the_host():
            loaded = options.open_model(model, scheduler, dict(settings), dtype, quiet)
        options.set_timesteps(loaded.scheduler, schedule)  # an error names the option
        return loaded, options.check_labels(labels, loaded.num_classes)

    loaded, classes = all_together(prepare)
    made = generate_folder(
        out,
        loaded,
        num_samples,
        **schedule,
        labels=classes,
        dtype=dtype,
        formats=formats,
        source=os.path.abspath(model) if model and os.path.exists(model) else model or "",
        progress=not quiet,
        say=(lambda text: None) if quiet else (lambda text: click.echo(text, err=True)),
        **rest,
    )
    if made.stopped:
        click.echo(
            f"Stopped: {made.done:,} of {num_samples:,} samples are in {out}; the same command goes on from there.",
            err=True,
        )
        click.get_current_context().exit(130)
    if made.paths and not quiet:
        rate = f", {made.made / made.seconds:,.1f} a second by this process" if made.made else ""
        click.echo(
            f"{options.counted(num_samples, 'sample')} in {', '.join(map(str, made.paths))}{rate}"
        )


def _verify(
    folder: Path, model: str | None, batch_size: int, shard_params: bool, quiet: bool
) -> None:
    from cmjax import generation
    from cmjax.generation.manifest import read_manifest

    manifest = read_manifest(folder)
    with _on_the_host():
        loaded = options.open_model(
            model or manifest["source"] or None, None, {}, manifest["settings"]["dtype"], quiet
        )
    checked = generation.verify(folder, loaded, batch_size=batch_size, shard_params=shard_params)
    if checked.damaged:
        raise ValueError(
            f"{folder}: damaged, missing or unknown: {', '.join(str(p.relative_to(folder)) for p in checked.damaged)}; "
            "remove what is unknown, and run its `cmjax generate` again to make the rest anew"
        )
    if not checked.same:
        raise ValueError(
            f"{folder}: samples made again differ by up to {checked.difference} of 255; this machine is another, "
            "or they were altered"
        )
    if not quiet:
        again = (
            f"some made again differ by {checked.difference} of 255"
            if checked.samples
            else "none was made again"
        )
        click.echo(
            f"{folder}: {options.counted(checked.samples, 'sample')} in shards, all files whole; {again}"
        )


def _keep_compiled(folder: str | None) -> None:
    """Keeps compiled programs, so that a run that goes on need not compile; JAX's own setting comes before ours."""
    import jax

    if folder is None and not getattr(jax.config, "jax_compilation_cache_dir", None):
        folder = os.path.join(
            os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "cmjax", "compiled"
        )
    if folder is not None:
        jax.config.update("jax_compilation_cache_dir", None if folder == "none" else folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _on_the_host():
    """Parameters are read into the host's memory: a device may have too little of it for all of them."""
    import jax

    with contextlib.suppress(RuntimeError):
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    return contextlib.nullcontext()

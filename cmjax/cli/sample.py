"""`cmjax sample`."""

import signal
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cmjax.cli import group, options

if TYPE_CHECKING:
    from cmjax.generation import Generated
    from cmjax.schedulers import Scheduler


@click.command()
@click.option(
    "--model",
    metavar="MODEL",
    help="A cmjax or diffusers folder, an OpenAI .pt file, or a hub id owner/name.  [default: bundled digits]",
)
@click.option("--scheduler", metavar="NAME", help="Another sampler than the model's own, such as EDMHeunScheduler.")
@click.option(
    "--set", "settings", type=options.Setting(), multiple=True, help="An option of the scheduler; may be repeated."
)
@click.option("--num", type=click.IntRange(1), metavar="N", default=64, show_default=True, help="Number of samples.")
@click.option("--steps", type=click.IntRange(1), metavar="N", help="Steps, of a network call each.  [default: 1]")
@click.option(
    "--timesteps",
    type=options.Numbers(options.whole_or_not, "22,0"),
    help="The steps as training times or indices, descending.",
)
@click.option("--sigmas", type=options.Numbers(float, "80,0.8"), help="The steps as noise levels, descending.")
@click.option(
    "--labels", type=options.Numbers(int, "3,1,4"), help="Classes to ask for, repeated in turn.  [default: all]"
)
@click.option(
    "--seed", type=options.SEED, metavar="N", default=0, show_default=True, help="Another seed, other samples."
)
@click.option(
    "--batch-size", type=click.IntRange(1), metavar="N", default=64, show_default=True, help="Samples at a time."
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16"]),
    default="float32",
    show_default=True,
    help="Of parameters and samples.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default="samples.png",
    show_default=True,
    metavar="FILE",
    help=".png draws a grid; .npz holds images u8[N,H,W,C] and, for a model with classes, labels i32[N].",
)
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
def sample(
    model: str | None,
    scheduler: str | None,
    settings: tuple[tuple[str, object], ...],
    num: int,
    steps: int | None,
    timesteps: list[float] | None,
    sigmas: list[float] | None,
    labels: list[int] | None,
    seed: int,
    batch_size: int,
    dtype: str,
    out: Path,
    quiet: bool,
) -> None:
    """Makes samples with a consistency model.

    Sample number i depends on the seed, the levels and its class alone: neither --num nor --batch-size changes it.

    \b
    Examples:
      cmjax sample                                   64 digits in samples.png, in one step
      cmjax sample --steps 2                         better ones, in two
      cmjax sample --timesteps 22,0                  two steps, at levels you choose from the
                                                     training grid (0 is the noisiest)
      cmjax sample --sigmas 80,0.8                   two steps, at noise levels you choose
      cmjax sample --scheduler EDMHeunScheduler --steps 9 --set s_churn=10
                                                     another sampler, for a denoiser
      cmjax sample --labels 7 --num 10 --seed 1      ten other sevens
      cmjax sample --num 50000 --batch-size 500 --out digits.npz
                                                     arrays for an evaluation
      cmjax sample --model runs/mine                 your own model, saved by cmjax.save
    """  # noqa: D301
    options.check_out(out, {".png": "a grid", ".npz": "arrays"})
    levels = {"steps": steps, "timesteps": timesteps, "sigmas": sigmas}
    given = {name: value for name, value in levels.items() if value is not None} or {"steps": 1}
    if len(given) > 1:
        raise ValueError(f"{' and '.join('--' + name for name in given)} exclude each other; give one of them")

    from cmjax.checkpoints import open_checkpoint
    from cmjax.generation import generate

    try:
        checkpoint = open_checkpoint(model)
        loaded = checkpoint.load(dtype=dtype)
    except (TypeError, ArithmeticError, RecursionError) as error:  # values in its files that only fail when used
        raise ValueError(f"model {model}: its files make no sense ({type(error).__name__}: {error})") from None
    if checkpoint.note and not quiet:
        click.echo(f"Note: {checkpoint.note}", err=True)
    if scheduler or settings:
        loaded = loaded.with_scheduler(_scheduler(loaded.scheduler, scheduler, dict(settings)))
    labels = _check_labels(labels, loaded.num_classes)
    channels = loaded.sample_shape[-1]
    if out.suffix.lower() == ".png" and channels not in (1, 3):
        raise ValueError(f"--out: a .png has 1 or 3 channels, but the model's samples have {channels}; use .npz")
    ((name, value),) = given.items()
    try:
        state = loaded.scheduler.set_timesteps(**{"num_inference_steps" if name == "steps" else name: value})
    except ValueError as error:
        raise ValueError(f"--{name}: {error}") from None
    made = generate(
        loaded, state, num, labels=labels, seed=seed, batch_size=batch_size, dtype=dtype, progress=not quiet
    )
    if signal.getsignal(signal.SIGINT) is group.leave:  # from here on there is a file to clear away
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        _write(out, made, period=len(labels or "-"))
    except OSError as error:
        raise ValueError(f"cannot write {out}: {error.strerror or error}") from None
    if not quiet:
        click.echo(
            f"{_count(num, 'sample')} in {out}: {_count(state.num_steps, 'network call')}, "
            f"compile {made.compile_seconds:.1f} s, run {made.run_seconds:.1f} s"
        )


def _scheduler(trained_for: "Scheduler", name: str | None, settings: dict[str, object]) -> "Scheduler":
    """Returns the scheduler of that name, with the noise levels that the model was trained for unless they are set."""
    from cmjax.configs import did_you_mean
    from cmjax.schedulers import SCHEDULERS, on_levels_of

    name = name or type(trained_for).__name__
    if name not in SCHEDULERS:
        raise ValueError(f"--scheduler: there is no {name!r}{did_you_mean(name, list(SCHEDULERS))}")
    try:
        return on_levels_of(trained_for, name, **settings)
    except ValueError as error:
        raise ValueError(f"--set: {error}") from None


def _check_labels(labels: list[int] | None, num_classes: int | None) -> list[int] | None:
    if num_classes is None:
        if labels is not None:
            raise ValueError("--labels: the model has no classes; leave the option out")
        return None
    for label in labels or ():
        if not 0 <= label < num_classes:
            raise ValueError(f"--labels: the model's classes are 0..{num_classes - 1}, got {label}")
    return labels or list(range(num_classes))


def _write(path: Path, made: "Generated", period: int) -> None:
    """Writes a grid, its labels repeating with `period`, or arrays."""
    import numpy as np

    from cmjax.files import replacing
    from cmjax.images import save_grid, tidy_columns

    if path.suffix.lower() == ".png":
        columns, scale = tidy_columns(len(made.images), period), max(1, 64 // made.images.shape[1])
        save_grid(path, made.images, columns=columns, labels=made.labels, scale=scale)
    else:
        with replacing(path) as file:
            arrays = {"images": made.images} if made.labels is None else {"images": made.images, "labels": made.labels}
            np.savez(file, allow_pickle=False, **arrays)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"

"""The command line: parses, calls the library, prints.

Heavy modules are imported where they are used, so that help and usage errors come at once.
"""

import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from cmjax import __version__

if TYPE_CHECKING:
    import numpy as np

    from cmjax import Model, SchedulerState


class _OneLineErrors(click.Group):
    """A group whose every failure is one line on stderr and exit code 2; 130 when interrupted."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # as a program; `main` serves those who embed it
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, _leave)
        return self.main(*args, **kwargs)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        kwargs["standalone_mode"] = False  # click would spread usage errors over several lines
        try:
            sys.exit(super().main(*args, **kwargs))
        except click.UsageError as error:
            hint = "" if isinstance(error, click.BadParameter) or error.ctx is None else error.ctx.command_path
            self._fail(error.format_message() + (hint and f" See {hint} --help."))
        except click.ClickException as error:
            self._fail(error.format_message())

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo(_INTERRUPTED, err=True)
            ctx.exit(130)
        except BrokenPipeError:
            raise
        except OSError as error:
            parts = [str(part) for part in (error.filename, error.strerror) if part]
            raise click.ClickException(": ".join(parts) or str(error)) from None
        except (ValueError, MemoryError) as error:
            raise click.ClickException(str(error) or "out of memory; --num is too large") from None

    @staticmethod
    def _fail(message: str) -> None:
        click.echo(f"Error: {' '.join(message.split())}", err=True)
        sys.exit(2)


_INTERRUPTED = "Interrupted; nothing was written."


def _leave(*_: Any) -> None:
    """Ends the process: an exception gets lost, or aborts, where libraries call back into Python."""
    os.write(2, ("\n" * sys.stderr.isatty() + _INTERRUPTED + "\n").encode())  # below the ^C and the bar
    os._exit(130)


class _Numbers(click.ParamType):
    """Numbers separated by commas."""

    def __init__(self, kind: type[int] | type[float], example: str):
        self.kind, self.name, self.example = kind, example, example

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[Any]:
        try:
            numbers = [self.kind(part) for part in value.split(",")]
        except ValueError:
            what = "integers" if self.kind is int else "numbers"
            self.fail(f"must be {what} separated by commas, such as {self.example}, got {value!r}.", param, ctx)
        if self.kind is int and not all(abs(number) < 2**31 for number in numbers):
            self.fail(f"{value} is too large.", param, ctx)
        return numbers


_SEED = click.IntRange(0, 2**32 - 1)  # keys are made of 32 bits: larger seeds would silently repeat


@click.group(
    cls=_OneLineErrors,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="cmjax")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Few-step generation with consistency models.

    \b
    Examples:
      cmjax sample                              64 digits in samples.png, one network call each
      cmjax sample --labels 3,1,4 --steps 2     threes, ones and fours, in two steps
      cmjax sample --help                       all there is to choose
    """  # noqa: D301 (click wants the backspace character itself)
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@main.command()
@click.option("--model", metavar="MODEL", help="A cmjax folder, or a hub id owner/name.  [default: bundled digits]")
@click.option("--num", type=click.IntRange(1), metavar="N", default=64, show_default=True, help="Number of samples.")
@click.option("--steps", type=click.IntRange(1), metavar="N", help="Network calls per sample.  [default: 1]")
@click.option("--timesteps", type=_Numbers(int, "22,0"), help="The steps as training indices, descending.")
@click.option("--sigmas", type=_Numbers(float, "80,0.8"), help="The steps as noise levels, descending.")
@click.option("--labels", type=_Numbers(int, "3,1,4"), help="Classes to ask for, repeated in turn.  [default: all]")
@click.option("--seed", type=_SEED, metavar="N", default=0, show_default=True, help="Another seed, other samples.")
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
    num: int,
    steps: int | None,
    timesteps: list[int] | None,
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
      cmjax sample --labels 7 --num 10 --seed 1      ten other sevens
      cmjax sample --num 50000 --batch-size 500 --out digits.npz
                                                     arrays for an evaluation
      cmjax sample --model runs/mine                 your own model, saved by cmjax.save
    """  # noqa: D301
    _check_out(out)
    levels = {"steps": steps, "timesteps": timesteps, "sigmas": sigmas}
    given = {name: value for name, value in levels.items() if value is not None} or {"steps": 1}
    if len(given) > 1:
        raise ValueError(f"{' and '.join('--' + name for name in given)} exclude each other; give one of them")

    import cmjax

    try:
        loaded = cmjax.load(model, dtype=dtype)
    except (TypeError, ArithmeticError, RecursionError) as error:  # values in its files that only fail when used
        raise ValueError(f"model {model}: its files make no sense ({type(error).__name__}: {error})") from None
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
    if signal.getsignal(signal.SIGINT) is _leave:  # from here on there is a file to clear away
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        _write(out, made, period=len(labels or "-"))
    except OSError as error:
        raise ValueError(f"cannot write {out}: {error.strerror or error}") from None
    if not quiet:
        click.echo(
            f"{_count(num, 'sample')} in {out}: {_count(state.num_steps, 'step')}, "
            f"compile {made.compile_seconds:.1f} s, run {made.run_seconds:.1f} s"
        )


class Generated(NamedTuple):
    """What `generate` returns: u8[N, H, W, C], i32[N] or None, and seconds."""

    images: "np.ndarray"
    labels: "np.ndarray | None"
    compile_seconds: float
    run_seconds: float


def generate(
    model: "Model",
    state: "SchedulerState",
    num: int,
    *,
    labels: Sequence[int] | None = None,
    seed: int = 0,
    batch_size: int = 64,
    dtype: str = "float32",
    progress: bool = False,
) -> Generated:
    """Makes samples batch by batch with one compilation; sample i depends on `seed` and i, not on `batch_size`.

    Args:
        model: from `cmjax.load`.
        state: the levels, from `model.scheduler.set_timesteps`.
        num: number of samples.
        labels: classes to ask for, repeated in turn; None for an unconditional model.
        seed: of the samples.
        batch_size: samples made at a time.
        dtype: of the samples.
        progress: show a bar on stderr.

    Raises:
        ValueError: if the device runs out of memory, or samples are not finite.
    """
    import jax
    import numpy as np
    from tqdm import tqdm

    import cmjax
    from cmjax.images import to_uint8

    size = min(num, batch_size)
    # The generator is named: under another default a seed would mean other samples.
    key = jax.random.key(seed, impl="threefry2x32")

    @jax.jit
    def draw(key, params, state, first, labels):
        cond = {} if labels is None else {"class_labels": labels}
        shape = (size, *model.sample_shape)
        return cmjax.sample(
            key, model.apply_fn, params, model.scheduler, shape, state=state, cond=cond, first_index=first, dtype=dtype
        )

    def classes(first, count):
        if labels is None:
            return None
        return np.asarray(labels, np.int32)[np.arange(first, first + count) % len(labels)]

    images = np.empty((num, *model.sample_shape), np.uint8)
    starts = range(0, num, size)
    # A single batch has no progress to log, but tells somebody who waits at a terminal what goes on.
    hidden = not progress or (len(starts) == 1 and not sys.stderr.isatty())
    try:
        with tqdm(total=len(starts), desc="compiling", unit="batch", leave=False, disable=hidden) as bar:
            begin = time.perf_counter()
            compiled = draw.lower(key, model.params, state, np.uint32(0), classes(0, size)).compile()
            ready = time.perf_counter()
            bar.reset()  # its rate is that of sampling
            bar.set_description("sampling")
            for first in starts:
                # The last batch may reach beyond num: its surplus is cut rather than compiled for.
                batch = compiled(key, model.params, state, np.uint32(first), classes(first, size))
                batch = np.asarray(batch, np.float32)[: num - first]
                if not np.isfinite(batch).all():
                    raise ValueError(f"samples from number {first} on are not finite; the model or its dtype is broken")
                images[first : first + size] = to_uint8(batch)
                bar.update()
            bar.leave = len(starts) > 1
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"{error}".splitlines()[0] + "; a smaller --batch-size needs less memory") from None
    return Generated(images, classes(0, num), ready - begin, time.perf_counter() - ready)


def _check_out(path: Path) -> None:
    """Finds out before sampling, not after it, whether `path` can be written."""
    if path.suffix.lower() not in (".png", ".npz"):
        raise ValueError(f"--out must end in .png (a grid) or .npz (arrays), got {str(path)!r}")
    if path.is_dir():
        raise ValueError(f"--out: {path} is a folder; give the name of a file")
    folder = Path(os.path.realpath(path)).parent
    if not folder.is_dir():
        raise ValueError(f"--out: there is no folder {path.parent}; make it first")
    try:
        tempfile.TemporaryFile(dir=folder).close()  # permission bits say too little: ask the file system
    except OSError as error:
        raise ValueError(f"--out: cannot write in {path.parent}: {error.strerror}; choose another folder") from None


def _check_labels(labels: list[int] | None, num_classes: int | None) -> list[int] | None:
    if num_classes is None:
        if labels is not None:
            raise ValueError("--labels: the model has no classes; leave the option out")
        return None
    for label in labels or ():
        if not 0 <= label < num_classes:
            raise ValueError(f"--labels: the model's classes are 0..{num_classes - 1}, got {label}")
    return labels or list(range(num_classes))


def _write(path: Path, made: Generated, period: int) -> None:
    """Writes a grid, its labels repeating with `period`, or arrays."""
    import numpy as np

    from cmjax.images import replacing, save_grid, tidy_columns

    if path.suffix.lower() == ".png":
        columns, scale = tidy_columns(len(made.images), period), max(1, 64 // made.images.shape[1])
        save_grid(path, made.images, columns=columns, labels=made.labels, scale=scale)
    else:
        with replacing(path) as file:
            arrays = {"images": made.images} if made.labels is None else {"images": made.images, "labels": made.labels}
            np.savez(file, allow_pickle=False, **arrays)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"

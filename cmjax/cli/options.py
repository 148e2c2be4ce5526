"""Options that several commands have, and what the library makes of their values."""

import json
import re
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from cmjax.cli import terminal
from cmjax.files import check_writable

if TYPE_CHECKING:
    from cmjax.arrays import ApplyFn
    from cmjax.checkpoints import Checkpoint
    from cmjax.model import Model
    from cmjax.schedulers import Scheduler, SchedulerState

# Keys are made of 32 bits of the seed: larger ones would silently repeat the samples of others.
SEED = click.IntRange(0, 2**32 - 1)

RANGE = re.compile("([0-9]{1,9})-([0-9]{1,9})")  # of classes, such as 0-9


class Numbers(click.ParamType):
    """Numbers separated by commas, as a list.

    Attributes:
        kind: reads one number, `int` or `float`.
        example: such a list, for the help and for errors.
        name: the example again, which click shows in the place of the value.
    """

    def __init__(self, kind: Callable[[str], int | float], example: str):
        self.kind = kind
        self.name = example
        self.example = example

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> list[Any]:
        try:
            numbers = [self.kind(part) for part in value.split(",")]
        except ValueError:
            what = "integers" if self.kind is int else "numbers"
            self.fail(
                f"must be {what} separated by commas, such as {self.example}, got {value!r}.",
                param,
                ctx,
            )

        # Larger ones would wrap around as the int32 of an index or a pixel.
        if any(isinstance(number, int) and abs(number) >= 2**31 for number in numbers):
            self.fail(f"{value} is too large.", param, ctx)
        return numbers


def int_or_float(text: str) -> int | float:
    """Reads an integer if the text is one, and another number otherwise.

    Training times are integers for most schedulers, and angles for TrigFlow's.
    """
    try:
        return int(text)
    except ValueError:
        return float(text)


class Labels(click.ParamType):
    """Classes separated by commas: their numbers or their names, or ranges of numbers."""

    name = "3,1,4"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> list[str]:
        # click also passes values that are converted already, such as defaults.
        if not isinstance(value, str):
            return value

        # A name of a class cannot be told from a number yet: that takes the model.
        parts = [part.strip() for part in value.split(",")]
        if not all(parts):
            self.fail(
                f"must be classes separated by commas, such as 3,1,4, got {value!r}.",
                param,
                ctx,
            )
        return parts


class Setting(click.ParamType):
    """An option and its value, `key=value`; the value is JSON, or else a string."""

    name = "key=value"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, Any]:
        # click also passes values that are converted already, such as defaults.
        if isinstance(value, tuple):
            return value

        key, separator, text = value.partition("=")
        if not key or not separator:
            self.fail(f"must be like eta=0.5, got {value!r}.", param, ctx)

        # JSON reads numbers, true, null and lists; a word such as linear is itself.
        try:
            return key, json.loads(text)
        except ValueError:
            return key, text
        except RecursionError:
            self.fail(f"{key} is nested too deep.", param, ctx)


def complete_path(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Leaves the completion of a model or a file to the shell."""
    return [CompletionItem(incomplete, type="file")]


def complete_scheduler(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Completes the name of a sampler."""
    from cmjax.schedulers import SCHEDULERS

    return [CompletionItem(name) for name in SCHEDULERS if name.startswith(incomplete)]


def group_of(
    *options: Callable[..., Any],
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Returns a decorator that adds options to a command; help lists them in this order."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        # Decorators apply from the innermost, so the last option comes first.
        for option in reversed(options):
            command = option(command)
        return command

    return add


as_json = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON, for programs to read."
)

# The value travels in the context, where `open_checkpoint` below finds it: every command that
# opens models has the option, and none has to pass it on.
trust = click.option(
    "--trust",
    is_flag=True,
    expose_value=False,
    callback=lambda ctx, param, value: ctx.meta.update({"cmjax.trust": value}),
    help="Import the network and scheduler classes that the model's files name, which runs their "
    "code.",
)

# Of `sampling` below, and of `cmjax edit`.
guiding = group_of(
    click.option(
        "--guidance",
        type=float,
        metavar="W",
        help="Scale of guidance, for a network with a null class or one that is told a scale; 1 is "
        "none.  [default: what the model recommends, or none]",
    ),
    click.option(
        "--guidance-interval",
        type=Numbers(float, "0.2,1.6"),
        help="The noise levels, lowest and highest, to guide at.  [default: all]",
    ),
)

# All that decides what a sample is; how many, and where they go, is left to the commands.
sampling = group_of(
    click.option(
        "--model",
        "-m",
        metavar="MODEL",
        shell_complete=complete_path,
        help="A cmjax or diffusers folder, an OpenAI or pMF .pt file, or a hub id owner/name.  "
        "[default: bundled digits]",
    ),
    trust,
    click.option(
        "--scheduler",
        metavar="NAME",
        shell_complete=complete_scheduler,
        help="Sampler in place of the model's own: a name that cmjax schedulers lists, or "
        "package.module:Name for a class of yours.",
    ),
    click.option(
        "--set",
        "settings",
        type=Setting(),
        multiple=True,
        help="Option of the scheduler, such as s_churn=10; may be repeated. "
        "cmjax schedulers NAME lists them.",
    ),
    click.option(
        "--steps",
        "-s",
        type=click.IntRange(1),
        metavar="N",
        help="Number of steps; each is one network call, or two with a sampler such as "
        "EDMHeunScheduler.  [default: 1]",
    ),
    click.option(
        "--timesteps",
        type=Numbers(int_or_float, "22,0"),
        help="Training times or indices to step through, descending, in place of --steps.",
    ),
    click.option(
        "--sigmas",
        type=Numbers(float, "80,0.8"),
        help="Noise levels to step through, descending, in place of --steps.",
    ),
    click.option(
        "--labels",
        "-l",
        type=Labels(),
        help="Classes to sample, by number or name, or a range such as 0-9, repeated in turn.  "
        "[default: all]",
    ),
    guiding,
    click.option(
        "--seed",
        type=SEED,
        metavar="N",
        default=0,
        show_default=True,
        help="Seed of the noise; another one makes other samples.",
    ),
    click.option(
        "--dtype",
        type=click.Choice(["float32", "bfloat16"]),
        default="float32",
        show_default=True,
        help="Dtype of parameters and samples.",
    ),
)


def check_out(path: Path, kinds: Mapping[str, str]) -> None:
    """Checks before sampling, which may take hours, that `path` can be written after it.

    Args:
        path: the file to write.
        kinds: what a file of each suffix holds, such as `{".png": "a picture"}`.

    Raises:
        ValueError: if the suffix is not one of these, or the folder is missing or read-only.
    """
    if path.suffix.lower() not in kinds:
        wanted = " or ".join(f"{suffix} ({what})" for suffix, what in kinds.items())
        raise ValueError(f"--out must end in {wanted}, got {str(path)!r}")
    if path.is_dir():
        raise ValueError(f"--out: {path} is a folder; give the name of a file")

    # As the writer will check it.
    try:
        check_writable(path)
    except ValueError as error:
        raise ValueError(f"--out: {error}") from None
    check_out_folder(path.parent)


def check_out_folder(folder: Path) -> None:
    """Checks that a folder is there and files can be written in it.

    Raises:
        ValueError: if it is missing or read-only.
    """
    if not folder.is_dir():
        raise ValueError(f"--out: there is no folder {folder}; make it first")
    try:
        # Permission bits do not show a file system that is read-only: make a file there.
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(
            f"--out: cannot write in {folder}: {error.strerror}; choose another folder"
        ) from None


def open_checkpoint(source: str | None, config: str | None = None) -> "Checkpoint":
    """Opens a model without reading its tensors, with the `--trust` of the command that runs.

    Args:
        source: as for `cmjax.load`; None is the bundled model.
        config: name of a preset, for a `.pt` file.

    Raises:
        ValueError: if there is no such model, or it is not one that cmjax reads.
    """
    from cmjax.checkpoints import loading

    # There is no context where a program calls this function without a command.
    ctx = click.get_current_context(silent=True)
    trusted = ctx is not None and ctx.meta.get("cmjax.trust", False)
    try:
        return loading.open_checkpoint(source, config=config, trust=trusted)

    # The library tells its user to pass trust=True; here that is an option.
    except ValueError as error:
        if "trust=True" not in str(error):
            raise
        raise ValueError(str(error).replace("trust=True", "--trust")) from None


def open_model(
    model: str | None,
    scheduler: str | None,
    settings: Mapping[str, Any],
    dtype: str,
    quiet: bool,
) -> "Model":
    """Loads a model, with another scheduler if one is asked for.

    Args:
        model: as for `cmjax.load`; None is the bundled one.
        scheduler: name of another scheduler; None keeps the model's own.
        settings: options of the scheduler, by name.
        dtype: dtype of the parameters.
        quiet: whether not to print the checkpoint's note.

    Raises:
        ValueError: if the model, the scheduler or its options are not valid.
    """
    try:
        checkpoint = open_checkpoint(model)
        loaded = checkpoint.load(dtype=dtype)
    # Some values of a damaged file fail only when they are used, with errors of any of these kinds.
    except (TypeError, ArithmeticError, RecursionError) as error:
        raise ValueError(
            f"model {model}: its files make no sense ({type(error).__name__}: {error})"
        ) from None

    if checkpoint.note and not quiet:
        note(f"Note: {checkpoint.note}")

    # Settings alone change the model's own scheduler.
    if scheduler or settings:
        loaded = loaded.with_scheduler(_scheduler(loaded.scheduler, scheduler, settings))
    return loaded


def note(text: str) -> None:
    """Keeps a message until `print_notes`: a command that fails prints its error and no more."""
    ctx = click.get_current_context(silent=True)
    if ctx is None:
        terminal.echo(text, err=True)
    else:
        ctx.meta.setdefault("cmjax.notes", []).append(text)


def print_notes() -> None:
    """Prints the notes, on stderr with the other messages that are not results."""
    ctx = click.get_current_context(silent=True)
    if ctx is not None:
        for text in ctx.meta.pop("cmjax.notes", []):
            terminal.echo(text, err=True)


def schedule(
    steps: int | None, timesteps: list[float] | None, sigmas: list[float] | None
) -> dict[str, Any]:
    """Returns --steps, --timesteps or --sigmas as an argument of `set_timesteps`; {} for none.

    Raises:
        ValueError: if more than one is given: each fixes the levels of the run.
    """
    # Only what was given is passed on, so that the scheduler's own defaults hold.
    levels = {"num_inference_steps": steps, "timesteps": timesteps, "sigmas": sigmas}
    given = {name: value for name, value in levels.items() if value is not None}
    if len(given) > 1:
        raise ValueError(
            f"{' and '.join(map(_option, given))} exclude each other; give one of them"
        )
    return given


def set_timesteps(scheduler: "Scheduler", schedule: Mapping[str, Any]) -> "SchedulerState":
    """Returns the scheduler's state for the argument in `schedule`; an error names its option."""
    try:
        return scheduler.set_timesteps(**schedule)
    except ValueError as error:
        raise ValueError(f"{_option(*schedule)}: {error}") from None


def check_guidance(
    model: "Model", guidance: float | None, interval: list[float] | None, num_steps: int
) -> "ApplyFn":
    """Returns the guided network of --guidance and --guidance-interval.

    A note says so where it is only an approximation.

    Raises:
        ValueError: if the network or its scheduler cannot be guided, or for values out of range.
    """
    from cmjax.sampling import check_guided

    if interval is not None and guidance in (None, 1):
        raise ValueError("--guidance-interval needs --guidance, the scale to guide with")

    # The library's words for the scale and the interval are shorter.
    try:
        guided = model.guided(guidance, interval)
    except ValueError as error:
        option = "--guidance"
        if str(error).startswith("interval"):
            option = "--guidance-interval"
        raise ValueError(f"{option}: {error}") from None
    try:
        warning = check_guided(guided, model.scheduler, num_steps)
    except ValueError as error:
        raise ValueError(f"--guidance: {_of_scheduler(error)}") from None
    if warning:
        note(f"Note: --guidance: {_of_scheduler(warning)}")
        warnings.filterwarnings("ignore", "apply_fn is guided")
    return guided


def _of_scheduler(message: Any) -> str:
    """What `check_guided` says, without the argument that the command line does not have."""
    return str(message).removeprefix("apply_fn is guided, but ")


def check_labels(
    labels: Sequence[int | str] | None,
    num_classes: int | None,
    class_names: Sequence[str] | None = None,
) -> list[int] | None:
    """Returns the numbers of the classes to sample; all classes if none are given.

    A text is a name if a class has it, and a number otherwise: the folders of classes may be named
    0, 1, 10, 2, in that order, and then class "10" is number 2. "0-9" is short for "0,1,...,9".

    Args:
        labels: numbers, names and ranges; None for all classes.
        num_classes: number of classes of the model; None for a model without classes.
        class_names: one per class, or None.

    Returns:
        The numbers, or None for a model without classes.

    Raises:
        ValueError: if the model has no such class.
    """
    from cmjax.labels import class_indices

    # Names first, so that a class called 10 can be asked for.
    names = class_names or ()
    given = None
    if labels is not None:
        given = []
        for label in _expanded(labels, names, num_classes):
            given.append(label if label in names else _int_or_str(label))

    # The library's errors begin with the argument: "labels: ...".
    try:
        return class_indices(given, num_classes, class_names)
    except ValueError as error:
        raise ValueError(f"--{error}") from None


def _expanded(
    labels: Sequence[int | str], names: Sequence[str], num_classes: int | None
) -> list[int | str]:
    """Returns the labels with each range replaced by the classes that it stands for.

    Raises:
        ValueError: if a range descends, or is longer than the list of the model's classes.
    """
    expanded: list[int | str] = []
    for label in labels:
        # A class may be called 0-9. Without classes, the error is that of any other label.
        found = RANGE.fullmatch(str(label))
        if found is None or label in names or num_classes is None:
            expanded.append(label)
            continue
        first, last = int(found[1]), int(found[2])
        if first > last:
            raise ValueError(f"--labels: a range ascends, such as 0-9, got {label}")

        # Before the list is made, which could be of any length.
        if last - first >= num_classes:
            raise ValueError(
                f"--labels: the model has classes 0..{num_classes - 1}, "
                f"fewer than the range {label}"
            )
        expanded += [str(number) for number in range(first, last + 1)]
    return expanded


def counted(number: int, noun: str) -> str:
    """Returns a number with its noun, such as '1 step' or '2,000 steps'."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _int_or_str(label: int | str) -> int | str:
    """Reads a number if the text is one; a name is kept, for an error that lists the classes."""
    try:
        return int(label)
    except ValueError:
        return label


def _option(name: str) -> str:
    """Returns the option that sets an argument of `set_timesteps`."""
    return "--steps" if name == "num_inference_steps" else f"--{name}"


def _scheduler(
    trained_for: "Scheduler", name: str | None, settings: Mapping[str, Any]
) -> "Scheduler":
    """Returns the scheduler of that name, with the model's noise levels unless they are set."""
    from cmjax.registry import scheduler_class, scheduler_name
    from cmjax.schedulers import scheduler_like

    # Two errors apart: a wrong name is the fault of one option, a wrong value that of another.
    name = name or scheduler_name(trained_for)
    try:
        scheduler_class(name)
    except ValueError as error:
        raise ValueError(f"--scheduler: {error}") from None

    # Noise levels, such as sigma_max, are those that the network was trained for.
    try:
        return scheduler_like(trained_for, name, **settings)
    except ValueError as error:
        raise ValueError(f"--set: {error}") from None

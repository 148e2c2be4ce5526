"""Checks of the values of options; errors name the option.

Paths and levels are checked before JAX is imported, which takes a second or two; guidance and
labels once the model is loaded, and before anything compiles.
"""

import re
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmjax.cli import terminal
from cmjax.files import check_writable

if TYPE_CHECKING:
    from cmjax.arrays import ApplyFn
    from cmjax.model import Model
    from cmjax.schedulers import Scheduler, SchedulerState

# A range of classes, such as 0-9.
RANGE = re.compile("([0-9]{1,9})-([0-9]{1,9})")


def check_out(path: Path, kinds: Mapping[str, str]) -> None:
    """Checks before sampling, which may take hours, that `path` can be written after it.

    Args:
        path: the file to write.
        kinds: what a file of each suffix holds, such as `{".png": "a picture"}`.

    Raises:
        ValueError: if the suffix is not one of these, or as `check_out_file`.
        OSError: as `check_out_file`.
    """
    if path.suffix.lower() not in kinds:
        wanted = " or ".join(f"{suffix} ({what})" for suffix, what in kinds.items())
        raise ValueError(f"--out must end in {wanted}, got {str(path)!r}")
    check_out_file(path)


def check_out_file(path: Path) -> None:
    """Checks that `path`, whatever its suffix, can be written as a file.

    Raises:
        ValueError: if it is a folder or a link, or its folder is missing or read-only.
        OSError: if no file can have that name.
    """
    if path.is_dir():
        raise ValueError(f"--out: {path} is a folder; give the name of a file")

    # The same check as that of the function that will write it.
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
        # Permissions do not show that a file system is read-only, so a file is made there.
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(
            f"--out: cannot write in {folder}: {error.strerror}; choose another folder"
        ) from None


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
    from cmjax.sampling_inputs import check_guided

    if interval is not None and guidance in (None, 1):
        raise ValueError("--guidance-interval needs --guidance, the scale to guide with")

    # Where the library says "scale" or "interval", the command line has an option.
    try:
        guided = model.guided(guidance, interval)
    except ValueError as error:
        option = "--guidance"
        if str(error).startswith("interval"):
            option = "--guidance-interval"
        raise ValueError(f"{option}: {error}") from None

    # In one step of a consistency function guidance is an error, and in several a note. The note
    # takes the place of the library's warning.
    warning = check_guided(guided, model.scheduler, num_steps, subject="--guidance:")
    if warning:
        terminal.note(f"Note: {warning}")
        warnings.filterwarnings("ignore", "apply_fn is guided")
    return guided


def check_labels(
    labels: Sequence[int | str] | None,
    num_classes: int | None,
    class_names: Sequence[str] | None = None,
) -> list[int] | None:
    """Returns the numbers of the classes to sample; all classes if none are given.

    A text is a name if a class has it, and a number otherwise; but not where classes are named by
    numbers: the folders of classes may be 1, 10, 2, in that order, and then class "10" is number 1,
    and there is no class "0". "0-9" is short for "0,1,...,9".

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
    are_numbers = any(name.isdecimal() for name in names)
    given = None
    if labels is not None:
        given = []
        for label in _expanded(labels, names, num_classes):
            is_name = label in names or are_numbers
            given.append(str(label) if is_name else _int_or_str(label))

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
        first = int(found[1])
        last = int(found[2])
        if first > last:
            raise ValueError(f"--labels: a range ascends, such as 0-9, got {label}")

        # Checked before the list is made: it could take all memory.
        if last - first >= num_classes:
            raise ValueError(
                f"--labels: the model has classes 0..{num_classes - 1}, "
                f"fewer than the range {label}"
            )
        expanded += [str(number) for number in range(first, last + 1)]
    return expanded


def _int_or_str(label: int | str) -> int | str:
    """Reads a number if the text is one; a name is kept, for an error that lists the classes."""
    try:
        return int(label)
    except ValueError:
        return label


def _option(name: str) -> str:
    """Returns the option that sets an argument of `set_timesteps`."""
    return "--steps" if name == "num_inference_steps" else f"--{name}"

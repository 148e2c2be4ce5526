"""Option values that commands share."""

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click


class Numbers(click.ParamType):
    """Numbers separated by commas."""

    def __init__(self, kind: Callable[[str], int | float], example: str):
        self.kind, self.name, self.example = kind, example, example

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[Any]:
        try:
            numbers = [self.kind(part) for part in value.split(",")]
        except ValueError:
            what = "integers" if self.kind is int else "numbers"
            self.fail(f"must be {what} separated by commas, such as {self.example}, got {value!r}.", param, ctx)
        if any(isinstance(number, int) and abs(number) >= 2**31 for number in numbers):
            self.fail(f"{value} is too large.", param, ctx)
        return numbers


def whole_or_not(text: str) -> int | float:
    """Reads an integer where the text is one: training times are counted, angles are not."""
    try:
        return int(text)
    except ValueError:
        return float(text)


class Setting(click.ParamType):
    """An option and its value, `key=value`; the value is JSON, or else a string."""

    name = "key=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Any]:
        if isinstance(value, tuple):
            return value
        key, separator, text = value.partition("=")
        if not key or not separator:
            self.fail(f"must be like eta=0.5, got {value!r}.", param, ctx)
        try:
            return key, json.loads(text)
        except ValueError:
            return key, text


SEED = click.IntRange(0, 2**32 - 1)  # keys are made of 32 bits: larger seeds would silently repeat


def check_out(path: Path, kinds: Mapping[str, str]) -> None:
    """Finds out before sampling, not after it, whether `path` can be written."""
    if path.suffix.lower() not in kinds:
        wanted = " or ".join(f"{suffix} ({what})" for suffix, what in kinds.items())
        raise ValueError(f"--out must end in {wanted}, got {str(path)!r}")
    if path.is_dir():
        raise ValueError(f"--out: {path} is a folder; give the name of a file")
    folder = Path(os.path.realpath(path)).parent
    if not folder.is_dir():
        raise ValueError(f"--out: there is no folder {path.parent}; make it first")
    try:
        tempfile.TemporaryFile(dir=folder).close()  # permission bits say too little: ask the file system
    except OSError as error:
        raise ValueError(f"--out: cannot write in {path.parent}: {error.strerror}; choose another folder") from None


def distributed(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options that join several processes into one run; `initialize` takes their values."""
    for option in (
        click.option("--process-id", type=click.IntRange(0), metavar="I", help="This process's number, from 0."),
        click.option("--num-processes", type=click.IntRange(1), metavar="N", help="How many processes there are."),
        click.option(
            "--coordinator",
            metavar="HOST:PORT",
            help="Join the processes that give the same address, which process 0 listens on; 'auto' on a TPU pod or "
            "under Slurm.",
        ),
    ):
        command = option(command)
    return command


def initialize(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Joins the other processes, if there are any, by JAX's own runtime; before any other use of JAX."""
    given = coordinator is not None, num_processes is not None, process_id is not None
    if not any(given):
        return
    if coordinator is None or (coordinator != "auto" and not all(given)):
        raise ValueError("--coordinator HOST:PORT, --num-processes and --process-id go together")
    if num_processes is not None and process_id is not None and process_id >= num_processes:
        raise ValueError(f"--process-id must be below --num-processes {num_processes}, got {process_id}")
    import jax

    try:
        jax.distributed.initialize(None if coordinator == "auto" else coordinator, num_processes, process_id)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"--coordinator {coordinator}: {str(error).splitlines()[0]}") from None

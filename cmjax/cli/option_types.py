"""Types of the values of options, for click, and the completion of names in the shell."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

import cmjax

# Keys are made of 32 bits of the seed: larger ones would silently repeat the samples of others.
SEED = click.IntRange(0, 2**32 - 1)

# Words of Python -> the same in JSON.
PYTHON_WORDS = {"True": "true", "False": "false", "None": "null"}

_PRESETS = Path(__file__).parent.parent / "assets" / "configs"

# Public classes that commands cannot sample with: what samplers are built on, and the scheduler of
# categories. A test compares the others with the table of schedulers.
_NO_SAMPLERS = frozenset(
    {
        "DiscreteScheduler",
        "DiscreteSigmasScheduler",
        "EDMScheduler",
        "ExplodingScheduler",
        "FlowMatchScheduler",
        "FlowScheduler",
        "LogSNRScheduler",
        "Scheduler",
        "SpacedScheduler",
        "TableScheduler",
        "VQDiffusionScheduler",
    }
)


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
        for number in numbers:
            if isinstance(number, int) and abs(number) >= 2**31:
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

        from cmjax.files import text_of  # imports NumPy

        # Texts, also of numbers: a class may be called 7, and only the model knows.
        parts = [text_of(part.strip()) for part in value.split(",")]
        if not all(parts):
            self.fail(
                f"must be classes separated by commas, such as 3,1,4, got {value!r}.",
                param,
                ctx,
            )
        return parts


class Location(click.Path):
    """A path of a file or folder, as `pathlib.Path`."""

    def __init__(self):
        super().__init__(path_type=Path)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Any:
        # That of a variable which is not set. For pathlib it is the current folder.
        if value == "":
            self.fail("must be a path, got ''.", param, ctx)
        return super().convert(value, param, ctx)


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
            self.fail(f"must be KEY=VALUE, got {value!r}.", param, ctx)

        # JSON reads numbers, true, null and lists; a word such as linear is itself.
        try:
            return key, json.loads(PYTHON_WORDS.get(text, str(text)))
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
    # The public names, and not the table of schedulers: to import that takes half a second.
    public = [name for name in dir(cmjax) if name.endswith("Scheduler")]
    samplers = [name for name in public if name not in _NO_SAMPLERS]
    return [CompletionItem(name) for name in samplers if name.startswith(incomplete)]


def complete_config(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Completes the name of a preset of `cmjax train`, and leaves files to the shell."""
    # The files themselves, since the module that reads them imports JAX.
    presets = sorted(file.stem for file in _PRESETS.rglob("*.toml"))
    found = [CompletionItem(name) for name in presets if name.startswith(incomplete)]
    return [*found, *complete_path(ctx, param, incomplete)]

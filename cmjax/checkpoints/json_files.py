"""The small JSON files of a model's folder: configs and the names of classes.

They may be damaged or hostile, so sizes are checked before anything is parsed.
"""

import functools
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cmjax.configs import Config, plain, shown
from cmjax.files import read_regular
from cmjax.labels import check_class_names
from cmjax.model import Model
from cmjax.registry import read_scheduler_config
from cmjax.schedulers.base import Scheduler

CLASS_NAMES = "class_names.json"
LARGEST_JSON = 16 * 2**20  # bytes; a config has some thousands
DEEPEST_JSON = 10  # levels of lists and objects; a config has two


def write_class_names(folder: Path, model: Model) -> None:
    """Writes the names of the model's classes, if they have names."""
    if model.class_names is not None:
        # Names such as "café" stay readable, for people who edit the file. What UTF-8 cannot hold,
        # as from a file name that is not UTF-8, is escaped as JSON does it.
        text = json.dumps(list(model.class_names), indent=2, ensure_ascii=False)
        content = f"{text}\n".encode("utf-8", "backslashreplace")
        (folder / CLASS_NAMES).write_bytes(content)


def read_class_names(folder: Path, num_classes: int | None) -> tuple[str, ...] | None:
    """Reads the names of the classes, one per class; None if the folder has none.

    Raises:
        ValueError: if the file holds anything else than one distinct name per class.
    """
    path = folder / CLASS_NAMES
    # A broken link counts as a file, so that it is an error and not a model without names.
    if not os.path.lexists(path):
        return None

    content = parse_json(path)
    names = tuple(content) if isinstance(content, list) else content
    try:
        check_class_names(names, num_classes)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return names


def drop_fixed(values: dict[str, Any], fixed: Mapping[str, tuple[Any, ...]]) -> None:
    """Removes the options of diffusers that a network does not have.

    Args:
        values: the options of a file, by name.
        fixed: those that the network does not have, with the values that change nothing.

    Raises:
        ValueError: naming an option that has another value.
    """
    for name, supported in fixed.items():
        value = values.pop(name, supported[0])
        if any(_is_same(value, neutral) for neutral in supported):
            continue
        hint = ""
        if name == "dropout":
            hint = "; for sampling set it to 0: only training uses it"
        raise ValueError(
            f"{name} {shown(value)} is not supported, only {supported[0]!r}{hint}"
        )


def _is_same(value: Any, other: Any) -> bool:
    """Whether two values of JSON are equal; in Python 1 == True, but in JSON 1 is not true."""
    return value == other and isinstance(value, bool) == isinstance(other, bool)


def read_config(path: Path, build: Callable[[dict[str, Any]], Config]) -> Config:
    """Builds a config from a JSON file.

    Args:
        path: the file, which must hold a JSON object.
        build: makes the config of the object's content.

    Raises:
        ValueError: naming the file, if it cannot be read or `build` raises a ValueError.
    """
    content = read_json(path)
    try:
        return build(content)
    except ValueError as error:
        # An error may quote a value of the file, which can have millions of characters.
        raise ValueError(f"{path}: {str(error)[:1000]}") from None


def read_scheduler(path: Path, *, trust: bool = False) -> Scheduler:
    """Reads a `scheduler_config.json`, of diffusers or of cmjax.

    Args:
        path: the file.
        trust: whether it may name a class to import, which runs its module.
    """
    return read_config(path, functools.partial(read_scheduler_config, trust=trust))


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        ValueError: if there is no such file, or it holds something else.
    """
    # For a name that is too long, os.path returns False where Path raises an error. A broken link
    # is there, and an error that says where it leads.
    if not os.path.lexists(path):
        raise ValueError(f"{path.parent} is not a whole model: it has no {path.name}")
    content = parse_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(content).__name__}")
    return content


def parse_json(path: Path) -> Any:
    """Reads JSON from a file that may be damaged or hostile.

    Raises:
        ValueError: naming the file, if it cannot be read, or is too large or too deep.
    """
    # What is no file is a ValueError already, which names it.
    try:
        text = read_regular(path, LARGEST_JSON)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from None

    # ValueError also covers text that is not UTF-8, and a number of thousands of digits. Some
    # editors put a byte order mark in front, which "utf-8-sig" takes away.
    try:
        content = json.loads(text.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None

    # Deep lists would exhaust Python's stack later, where a config is printed or compared.
    if _is_deep(content):
        raise ValueError(
            f"{path} is nested more than {DEEPEST_JSON} deep, which no model needs"
        )
    return content


def _is_deep(content: Any) -> bool:
    """Whether lists and objects are nested more than `DEEPEST_JSON` deep."""
    # Level by level instead of by recursion, which is what deep content would break.
    level = [content]
    for _ in range(DEEPEST_JSON):
        below = []
        for value in level:
            if isinstance(value, dict):
                below += value.values()
            elif isinstance(value, list):
                below += value
        level = below
    return bool(level)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON object, indented.

    Raises:
        ValueError: naming a value that JSON cannot hold.
    """
    # NumPy's numbers occur in configs of the user's own networks, which nothing normalises.
    values = {name: plain(value) for name, value in content.items()}
    for name, value in values.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{path.name} cannot hold {name}={shown(value)}: {error}"
            ) from None
    path.write_text(json.dumps(values, indent=2) + "\n")

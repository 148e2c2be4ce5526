"""Docstrings that explain every field of a class, each field being written about only once."""

import dataclasses
import inspect
import re
from typing import TypeVar

Class = TypeVar("Class")

_HEADING = "\n\nAttributes:"


def inherit_field_docs(cls: type[Class]) -> type[Class]:
    """Adds to a dataclass's docstring what those of its bases say of the fields that it inherits.

    So the source of a scheduler explains the fields that it adds, and `help` shows all of them, in
    the order of the dataclass. What a class says of an inherited field itself replaces what its
    base says of it. Sections other than "Attributes:" are not inherited.
    """
    explained = _all_explanations(cls)
    introduction, _, others = _sections(cls)
    fields = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    lines = [explained[name] for name in fields if name in explained]
    cls.__doc__ = introduction + _HEADING + "".join(lines) + others
    return cls


def introduction(cls: type) -> str:
    """Returns what a class's docstring says before its list of attributes."""
    return _sections(cls)[0]


def field_docs(cls: type) -> dict[str, str]:
    """Returns what is said of each field by a class or its bases, each text on one line."""
    texts = {}
    for name, lines in _all_explanations(cls).items():
        _, _, text = lines.partition(": ")
        texts[name] = " ".join(text.split())
    return texts


def _all_explanations(cls: type) -> dict[str, str]:
    """The lines about each field in the docstrings of a class and of its bases."""
    # Like the fields of a dataclass, a replaced one keeps its place.
    explained = {}
    for base in reversed(cls.__mro__):
        explained.update(_explanations(base))
    return explained


def _explanations(cls: type) -> dict[str, str]:
    """The lines about each field in the docstring of a class, by the name of the field."""
    # An entry is indented by four spaces, and its further lines by more.
    _, attributes, _ = _sections(cls)
    entries = re.finditer(r"\n {4}(\w+): .*(\n {5}.*)*", attributes)
    return {entry[1]: entry[0] for entry in entries}


def _sections(cls: type) -> tuple[str, str, str]:
    """What a class's docstring says before its list of attributes, in it, and after it."""
    text = inspect.cleandoc(cls.__doc__ or "")
    if _HEADING not in text:
        introduction, raises, others = text.partition("\n\nRaises:")
        return introduction, "", raises + others
    introduction, _, rest = text.partition(_HEADING)
    attributes, blank, others = rest.partition("\n\n")
    return introduction, attributes, blank + others

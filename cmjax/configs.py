"""Frozen configuration dataclasses: built from JSON, checked field by field."""

import dataclasses
import difflib
import sys
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np

Config = TypeVar("Config")
LARGEST = 2**31 - 1  # integer in a file: larger ones overflow here and there


def from_json(cls: type[Config], values: Mapping[str, Any]) -> Config:
    """Builds a configuration dataclass from a JSON object; lists become tuples.

    Raises:
        ValueError: for an option that the dataclass does not have, a missing one that it needs, or a huge integer.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name in values:
        if name not in fields:
            raise ValueError(
                f"{cls.__name__} has no option {name!r}{did_you_mean(name, list(fields))}"
            )
    for name, value in values.items():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int) and abs(number) > LARGEST:
                raise ValueError(
                    f"{name} has a number of {number.bit_length()} bits, which no model needs"
                )
    for name, field in fields.items():
        if name not in values and field.default is dataclasses.MISSING:
            raise ValueError(f"{cls.__name__} needs the option {name!r}")
    return cls(
        **{
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
        }
    )


def did_you_mean(name: Any, known: list[str]) -> str:
    """Returns the end of an error message: the known name closest to `name`, or all of them."""
    close = difflib.get_close_matches(str(name), known, 1)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(known)}"


def is_int(value: Any, low: int) -> bool:
    """Whether `value` is an integer of at least `low`; True and False are not."""
    return (
        isinstance(value, (int, np.integer)) and not isinstance(value, bool) and bool(value >= low)
    )


def is_finite(value: Any) -> bool:
    """Whether `value` is a finite real number; True and False are not."""
    return (
        isinstance(value, (int, float, np.integer, np.floating))
        and not isinstance(value, bool)
        and bool(abs(value) <= sys.float_info.max)  # math.isfinite raises for integers beyond
    )


def check_options(config: Any) -> None:
    """Checks the fields of a configuration by the type of their defaults, and by what its classes say of them.

    A class may have `_domains`, for a field the strings it may be or its lowest and highest number, and
    `_unsupported`, for a field that must keep its default the way out.

    Args:
        config: an instance of a dataclass whose fields have defaults; ones of other types are not checked.

    Raises:
        ValueError: naming the field, its value and what is allowed.
    """
    domains, unsupported = (
        {
            name: value
            for cls in reversed(type(config).__mro__)
            for name, value in vars(cls).get(table, {}).items()
        }
        for table in ("_domains", "_unsupported")
    )
    for field in dataclasses.fields(config):
        name, value, default = field.name, getattr(config, field.name), field.default
        if name in unsupported and value != default:
            raise ValueError(f"{name}={value!r} is not supported; {unsupported[name]}")
        if isinstance(default, bool):
            if not isinstance(value, bool):
                raise ValueError(f"{name} must be true or false, got {value!r}")
        elif isinstance(default, str):
            allowed = domains.get(name, (default,))
            if value not in allowed:
                raise ValueError(f"{name} must be {' or '.join(map(repr, allowed))}, got {value!r}")
        elif name in domains:
            low, high = domains[name]
            integer = isinstance(default, int)
            if (
                not (is_int(value, low) if integer else is_finite(value) and value >= low)
                or value > high
            ):
                raise ValueError(
                    f"{name} must be {'an integer' if integer else 'a number'} from {low:g} to {high:g}, got {value!r}"
                )

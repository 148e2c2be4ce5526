"""Frozen configuration dataclasses: built from JSON, checked field by field."""

import dataclasses
import functools
import importlib
import sys
import types
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from cmjax.spelling import close_spelling, names_with

Config = TypeVar("Config")
LARGEST = 2**31 - 1  # largest integer in a file: more overflows JAX's and NumPy's int32


def from_json(cls: type[Config], values: Mapping[str, Any]) -> Config:
    """Builds a configuration dataclass from a JSON object; lists become tuples.

    Args:
        cls: the dataclass, whose fields are the options.
        values: the options by name. Those with defaults may be missing.

    Raises:
        ValueError: if `values` is no mapping, for an unknown option, a missing option without
            default, or an integer beyond 32 bits.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{cls.__name__} needs options by name, got {shown(values)}")

    # Unknown names are errors: a misspelt option would otherwise silently keep its default.
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name, value in values.items():
        if name not in fields:
            hint = did_you_mean(name, list(fields))
            raise ValueError(f"{cls.__name__} has no option {shown(name)}{hint}")
        _check_size(name, value)

    # Missing names: `cls(**values)` would raise a TypeError, which says less.
    for name, field in fields.items():
        optional = (
            field.default is not dataclasses.MISSING
            or field.default_factory is not dataclasses.MISSING
        )
        if name not in values and not optional:
            raise ValueError(f"{cls.__name__} needs the option {name!r}")

    # JSON has no tuples, but a hashable dataclass has no lists.
    arguments = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in values.items()
    }
    return cls(**arguments)


def _check_size(name: str, value: Any) -> None:
    """Raises ValueError for an integer beyond 32 bits, also as an item of a list."""
    items = value if isinstance(value, list) else [value]
    for item in items:
        if isinstance(item, int) and abs(item) > LARGEST:
            # Only its length is shown: JSON integers can have millions of digits.
            bits = item.bit_length()
            raise ValueError(f"{name} has a number of {bits} bits, which no model needs")


def import_by_name(text: str, what: str) -> Any:
    """Imports the object that a text such as "package.module:Name" names.

    Importing a module runs it: the text must come from the user, never from a downloaded file.

    Args:
        text: the name of a module, a colon, and the name of an object in it.
        what: the kind of object, such as "network"; error messages begin with it.

    Returns:
        The object.

    Raises:
        ValueError: if `text` has another form, or if the module or the object cannot be found or
            imported.
    """
    module_name, _, name = text.partition(":")
    if not module_name or not name:
        raise ValueError(f"{what} {text!r} must be like 'package.module:Name'")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # Either the module itself or a package above it does not exist, or the module exists and
        # imports another one that does not.
        missing = error.name or ""
        if module_name == missing or module_name.startswith(f"{missing}."):
            raise ValueError(
                f"{what} {text!r}: there is no module {missing!r}; "
                "install it, or put its folder on PYTHONPATH"
            ) from None
        raise ValueError(f"{what} {text!r}: {module_name} needs {missing!r}") from error
    except Exception as error:
        # The user's module runs as it is imported, and may raise anything.
        why = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"{what} {text!r}: importing {module_name} failed: {why}"
        ) from error

    # The name may have dots, for an attribute of a class.
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            public = [known for known in vars(found) if not known.startswith("_")]
            hint = did_you_mean(part, public)
            raise ValueError(f"{what} {text!r}: {module_name} has no {part!r}{hint}")
        found = getattr(found, part)
    return found


# More names that hold a word than these are no help.
MOST_ALIKE = 8


def did_you_mean(name: Any, known: Sequence[str], elsewhere: Sequence[str] = ()) -> str:
    """Returns the end of an error message: the known name that `name` misspells, or all names.

    Args:
        name: the name that is not known.
        known: the names that are.
        elsewhere: further names that it may misspell, but that are not worth listing.
    """
    close = close_spelling(name, [*known, *elsewhere])
    if close:
        return f"; did you mean {close!r}?"
    alike = names_with(name, known)
    if 0 < len(alike) <= MOST_ALIKE:
        return f"; names like it are {', '.join(alike)}"
    return f"; known are {', '.join(known)}"


def shown(value: Any, most: int = 200) -> str:
    """Returns a value as errors show it: its `repr` in one line of at most `most` letters."""
    # A `repr` may fail: of an object whose own raises, or of an integer of thousands of digits.
    try:
        text = repr(value)
    except Exception:
        text = f"<{type(value).__name__}>"
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[:most]} ..."


def is_int(value: Any, low: float | None = None, high: float | None = None) -> bool:
    """Returns whether `value` is an integer from `low` to `high`; None means no bound."""
    # A boolean is an `int` in Python, but num_steps=True is a mistake.
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        return False
    return _within(value, low, high)


def positive_int(name: str, value: Any, most: int | None = LARGEST) -> int:
    """Returns a positive integer as one of Python; NumPy's small integers would overflow.

    Args:
        name: of the argument, for the error.
        value: an integer of Python or NumPy.
        most: highest value allowed; None means no bound.

    Raises:
        ValueError: for anything else.
    """
    if is_int(value, 1) and not is_int(value, 1, most):
        raise ValueError(f"{name} must be at most {most}, got {shown(value)}")
    if not is_int(value, 1):
        raise ValueError(f"{name} must be an integer of at least 1, got {shown(value)}")
    return int(value)


def is_finite(value: Any, low: float | None = None, high: float | None = None) -> bool:
    """Returns whether `value` is a finite number from `low` to `high`; None means no bound."""
    if isinstance(value, bool) or not isinstance(
        value, (int, float, np.integer, np.floating)
    ):
        return False

    # Not `math.isfinite`, which raises for integers that are larger than any float. NumPy's float32
    # would overflow in the comparison.
    value = value.item() if isinstance(value, np.generic) else value
    largest = sys.float_info.max
    return bool(-largest <= value <= largest) and _within(value, low, high)


def _within(value: Any, low: float | None, high: float | None) -> bool:
    return bool((low is None or value >= low) and (high is None or value <= high))


def plain(value: Any) -> Any:
    """Returns scalars of NumPy as Python's, lists and arrays as tuples, and the rest as it is.

    A configuration is written as JSON, compared and hashed, for which NumPy's numbers will not do.
    """
    # Exact types: a named tuple stays one.
    is_array = isinstance(value, np.ndarray) and value.ndim > 0
    if is_array or type(value) in (list, tuple):
        return tuple(plain(item) for item in value)

    # Not only by `item`, which leaves a longdouble as it is.
    if isinstance(value, np.floating):
        return float(value)
    if isinstance(value, (np.generic, np.ndarray)):
        return value.item()
    return value


def check_options(config: Any) -> None:
    """Checks the fields of a configuration against their annotations and domains.

    Fields become plain Python values first; see `plain`.

    A class declares domains in `_domains`, a mapping from the name of a field to

    * the allowed strings, for `str` and `tuple[str, ...]`. A `str` without a domain must keep its
      default;
    * the lowest and the highest number, for `int`, `float` and tuples of them. None means no bound.

    Fields of type `bool` need no domain; other fields without one are not checked. `X | None`
    allows None as well. The table is inherited, and derived classes may override entries.

    Args:
        config: an instance of a dataclass.

    Raises:
        ValueError: if a field is out of its domain. The message gives the field, its value and what
            is allowed.
    """
    cls = type(config)
    domains = inherited(cls, "_domains")
    hints = _type_hints(cls)
    for field in dataclasses.fields(config):
        name = field.name
        value = plain(getattr(config, name))

        # The dataclass is frozen, so that assigning needs `object.__setattr__`.
        object.__setattr__(config, name, value)

        # A string without a domain has one allowed value, its default.
        domain = domains.get(name)
        if domain is None and hints[name] is str:
            domain = (field.default,)

        # At most 1,000 characters of the value: it may come from any file.
        if not _fits(value, hints[name], domain):
            raise ValueError(
                f"{name} must be {_words(hints[name], domain)}, got {shown(value, 1000)}"
            )


def _fits(value: Any, hint: Any, domain: Any) -> bool:
    """Returns whether `value` has the type `hint` and is within the domain."""
    if hint is bool:
        return isinstance(value, bool)
    if domain is None:
        return True

    # `X | None` and `tuple[X, ...]`: the domain is that of X.
    if _optional(hint):
        return value is None or _fits(value, get_args(hint)[0], domain)
    if get_origin(hint) is tuple:
        item = get_args(hint)[0]
        return isinstance(value, tuple) and all(_fits(each, item, domain) for each in value)
    if hint is str:
        # Arrays would be compared number by number.
        return isinstance(value, str) and value in domain
    if hint is int:
        return is_int(value, *domain)
    return is_finite(value, *domain)


def _words(hint: Any, domain: Any) -> str:
    """Returns in words which values `_fits` accepts, for error messages."""
    # JSON's words, "true" and "null": most configurations come from files.
    if hint is bool:
        return "true or false"
    if _optional(hint):
        return f"{_words(get_args(hint)[0], domain)}, or null"
    if get_origin(hint) is tuple:
        return f"a list, each item {_words(get_args(hint)[0], domain)}"
    if hint is str:
        return " or ".join(map(repr, domain))
    kind = "an integer" if hint is int else "a number"
    low, high = domain
    if high is not None:
        return f"{kind} from {low:g} to {high:g}"
    if low is not None:
        return f"{kind} of at least {low:g}"
    return "an integer" if hint is int else "a finite number"


def _optional(hint: Any) -> bool:
    """Returns whether `hint` is `X | None`."""
    # `X | None` is a UnionType, `Optional[X]` a Union.
    return get_origin(hint) in (types.UnionType, Union) and get_args(hint)[1] is type(None)


def inherited(cls: type, table: str) -> dict[str, Any]:
    """Returns the entries of a class-level table, merged over the class and its bases."""
    # From the most basic class on: derived classes override entries.
    merged: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        merged.update(vars(base).get(table, {}))
    return merged


@functools.cache
def _type_hints(cls: type) -> dict[str, Any]:
    # Cached, since every construction of a configuration evaluates its annotations.
    return get_type_hints(cls)

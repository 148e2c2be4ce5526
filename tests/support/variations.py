"""Schedulers with other options, to see what these do to the table."""

import dataclasses
from collections.abc import Iterator

from cmjax.configs import inherited
from cmjax.schedulers import Scheduler


def variations(cls: type[Scheduler]) -> Iterator[tuple[str, Scheduler]]:
    """Yields the name of an option, and the scheduler with another value of it.

    Options that are one of several words, such as of an algorithm, are tried at every order.
    """
    yield from _changed(cls())
    for option, scheduler in _changed(cls()):
        value = getattr(scheduler, option)
        if isinstance(value, int) and not isinstance(value, bool):
            yield from _changed(scheduler, words_only=True)


def _changed(scheduler, words_only=False):
    """The scheduler with each other value of each of its options, one at a time."""
    domains = inherited(type(scheduler), "_domains")
    for field in dataclasses.fields(scheduler):
        # Betas and the ends of a grid change its levels only.
        if field.name.startswith(("beta_", "sigma_")):
            continue
        if words_only and not isinstance(field.default, str):
            continue
        for value in _values(field.default, domains.get(field.name)):
            if value == field.default:
                continue
            try:
                yield field.name, dataclasses.replace(scheduler, **{field.name: value})
            except ValueError:
                pass  # it excludes the value of another option


def _values(default, domain):
    """Some values of an option: all words or a short range, else the ends and the middle."""
    if isinstance(default, bool):
        return [True, False]
    if isinstance(default, float):
        low, high = domain or (0.0, 1.0)
        return [low, (low + min(high, 1.0)) / 2, min(high, 1.0)]
    if isinstance(default, int) and domain[1] - domain[0] < 5:
        return range(domain[0], domain[1] + 1)
    return domain if isinstance(default, str) and domain else []

"""Kinds of option values that commands share."""

from typing import Any

import click


class Numbers(click.ParamType):
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


SEED = click.IntRange(0, 2**32 - 1)  # keys are made of 32 bits: larger seeds would silently repeat

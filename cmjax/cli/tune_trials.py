"""The trials of `cmjax tune`: printed as they are made, and kept in a file to continue from."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmjax.cli import terminal

if TYPE_CHECKING:
    from cmjax.level_search import Trial

LARGEST = 2**24  # bytes of a file of trials


class Trials:
    """The trials of a search, printed and kept in a file as they are made."""

    def __init__(self, out: Path | None, search: dict[str, Any], total: int):
        """Reads the trials that an earlier call left.

        Args:
            out: the file, or None to keep none.
            search: what the scores depend on, by name: what JSON can hold.
            total: number of trials there will be.

        Raises:
            ValueError: if the file is not one of `cmjax tune`, or is of another search.
        """
        self._out = out
        # As JSON holds it: tuples become lists.
        self._search = json.loads(json.dumps(search))
        self._total = total
        self._made = [] if out is None or not out.exists() else self._read(out)

    def add(self, levels: Any, score: float) -> None:
        """Keeps a trial, and prints it."""
        self._made.append([list(levels), score])
        if self._out is not None:
            self._write(self._out)
        number = len(self._made)
        terminal.echo(f"{number:4}/{self._total}  {as_option(levels):20}  {score:.6g}")

    def known(self) -> "list[Trial]":
        """Returns the trials so far."""
        from cmjax.level_search import Trial

        return [Trial(tuple(levels), score) for levels, score in self._made]

    def _read(self, out: Path) -> list[list[Any]]:
        """Returns the trials in a file; raises ValueError as `__init__` does."""
        from cmjax.configs import shown
        from cmjax.files import read_regular

        try:
            content = json.loads(read_regular(out, LARGEST))
            before = content["search"]
            if not isinstance(before, dict):
                raise TypeError(f"search is {shown(before)}")
            trials = []
            for levels, score in content["trials"]:
                trials.append([[float(level) for level in levels], float(score)])
        except (ValueError, TypeError, KeyError, ArithmeticError, RecursionError) as error:
            raise ValueError(
                f"--out: {out} is not a file of cmjax tune ({error}); give another name"
            ) from None

        # Scores of another search are not comparable.
        for name, value in self._search.items():
            if before.get(name) != value:
                raise ValueError(
                    f"--out: {out} is of a search with {name}={shown(before.get(name))}, not "
                    f"{shown(value)}; give another name"
                )
        return trials

    def _write(self, out: Path) -> None:
        """Writes the trials, with what they depend on, in the place of an earlier file."""
        from cmjax.files import replacing

        content = {"search": self._search, "trials": self._made}
        with replacing(out) as file:
            file.write(json.dumps(content, indent=2).encode())


def as_option(levels: Any) -> str:
    """Returns levels as --sigmas takes them."""
    return ",".join(f"{level:.6g}" for level in levels)

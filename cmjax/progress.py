"""Progress for people: a bar at a terminal, and a line every so often elsewhere."""

import sys
import time
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

from cmjax.system import at_terminal

PERIOD = 30.0  # seconds between two lines where there is no terminal


class Bar:
    """A progress bar on stderr. Where that is no terminal, as in a log file, lines take its place.

    A context manager, which closes the bar.

    Attributes:
        done: number of steps, samples or the like that are done.
    """

    def __init__(
        self,
        total: int,
        *,
        done: int = 0,
        unit: str,
        doing: str,
        shown: bool = True,
        keep: bool = True,
    ):
        """Starts a bar.

        Args:
            total: number of steps, samples or the like that are to be done.
            done: how many were done before; the rate is that of the others.
            unit: what is counted, in the singular.
            doing: what is being done, such as "compiling".
            shown: whether to show anything at all.
            keep: whether the finished bar stays on the screen.
        """
        self.done = done
        self._total = total
        self._units = f"{unit}es" if unit.endswith("ch") else f"{unit}s"
        self._doing = doing
        self._shown = shown
        self._at_terminal = at_terminal()
        self._bar = tqdm(
            total=total,
            initial=done,
            desc=doing,
            unit=unit,
            dynamic_ncols=True,
            leave=keep,
            disable=not (shown and self._at_terminal),
        )
        self.restart()
        self._last_line = self._begin

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._print(self._bar.close)

    def say(self, text: str) -> None:
        """Prints a line, above the bar; any thread may call it."""
        if self._shown and sys.stderr is not None:
            self._print(tqdm.write, text, file=sys.stderr)

    def _print(self, show: Callable[..., Any], *args: Any, **options: Any) -> None:
        """Calls what prints to stderr; if it cannot be written, nothing more is shown."""
        # A log's disk may be full, or the program that reads it may have ended. That must not end
        # days of computing.
        try:
            show(*args, **options)
        except OSError:
            self._shown = False
            self._bar.disable = True

    def begin(self, doing: str, done: int | None = None, note: str = "") -> None:
        """Says what is done from here on, where the clock of the rate starts.

        Args:
            doing: what is being done.
            done: how many are done by now, if that has changed.
            note: text to show with it.
        """
        done = self.done if done is None else done
        self._doing = doing
        self._print(self._bar.set_description, doing)
        self._bar.unpause()
        self._print(self._bar.update, done - self.done)
        self.done = done
        self.restart()
        self.advance_to(done, note, now=True)

    def describe(self, doing: str) -> None:
        """Says what is being done; the clock continues."""
        self._doing = doing
        self._print(self._bar.set_description, doing)

    def advance_to(self, done: int, note: str = "", *, now: bool = False) -> None:
        """Shows how many are done.

        Args:
            done: how many, with those that were done before.
            note: text to show with it, such as the latest loss.
            now: whether a line is due even if the last one is recent.
        """
        self._print(self._bar.update, done - self.done)
        self.done = done
        if note:
            self._print(self._bar.set_postfix_str, note)

        # Lines are few, since a log file keeps them all.
        is_due = now or time.perf_counter() - self._last_line > PERIOD
        if self._shown and not self._at_terminal and is_due:
            self._last_line = time.perf_counter()
            self.say(self._line(note))

    def restart(self) -> None:
        """Starts the clock of the rate over, after what is no part of it."""
        self._begin = time.perf_counter()
        self._first = self.done

    def _line(self, note: str) -> str:
        """Returns the bar in words, with the rate and the time that is left."""
        line = f"{self._doing}: {self.done:,} of {self._total:,} {self._units}"
        if self.done > self._first:
            rate = (self.done - self._first) / (time.perf_counter() - self._begin)
            left = tqdm.format_interval((self._total - self.done) / rate)
            line += f", {rate:,.3g} a second, {left} left"
        return f"{line}, {note}" if note else line

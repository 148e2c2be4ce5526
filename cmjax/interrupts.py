"""Ctrl-C and SIGTERM as a question that a loop asks between two of its steps."""

import contextlib
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def interruptible() -> Iterator[list[int]]:
    """Yields a list that Ctrl-C or SIGTERM makes true; a second one ends the process as usual."""
    caught: list[int] = []
    before = {}

    def note(number, _):
        caught.append(number)
        for name, handler in before.items():
            signal.signal(name, handler)

    with contextlib.suppress(ValueError):  # only the main thread may
        before = {name: signal.signal(name, note) for name in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)

"""Ctrl-C and SIGTERM as a question that a loop asks between two of its steps."""

import contextlib
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def interruptible() -> Iterator[list[int]]:
    """Yields a list that Ctrl-C or SIGTERM makes true; a second signal ends the process as usual.

    Outside of the main thread, where Python allows no signal handlers, the list stays empty.
    """
    caught: list[int] = []
    before = {}

    def note(number, _):
        caught.append(number)
        _restore(before)

    with contextlib.suppress(ValueError):  # not in the main thread
        before = {name: signal.signal(name, note) for name in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        _restore(before)


def _restore(handlers: dict) -> None:
    for name, handler in handlers.items():
        signal.signal(name, handler)

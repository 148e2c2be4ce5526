"""Ctrl-C and SIGTERM as a flag that a loop checks between two of its steps."""

import contextlib
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def interruptible() -> Iterator[list[int]]:
    """Yields a list to which Ctrl-C or SIGTERM appends its signal number.

    It is empty, and so false, until the first signal. A second signal ends the process as usual.
    Outside of the main thread, where Python allows no signal handlers, the list stays empty.
    """
    caught: list[int] = []
    before = {}

    def note(number, _):
        # From here on the earlier handlers are back: a user who presses Ctrl-C twice wants out.
        caught.append(number)
        _restore(before)

    with contextlib.suppress(ValueError):  # not in the main thread
        before = {
            name: signal.signal(name, note) for name in (signal.SIGINT, signal.SIGTERM)
        }
    try:
        yield caught
    finally:
        _restore(before)


def _restore(handlers: dict) -> None:
    for name, handler in handlers.items():
        signal.signal(name, handler)

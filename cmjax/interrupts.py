"""Ctrl-C and SIGTERM: noted for a loop that first saves, and then delivered again."""

import contextlib
import functools
import os
import signal
import socket
import threading
from collections.abc import Callable, Container, Iterator
from typing import Any, ParamSpec, Protocol, TypeVar

from cmjax.system import at_terminal, write_message

INTERRUPTED = "Interrupted; nothing unfinished was written."
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stoppable(Protocol):
    """The result of a function that a signal stops.

    Attributes:
        signal: number of the signal that stopped it, or 0.
    """

    @property
    def signal(self) -> int: ...  # noqa: D102


Arguments = ParamSpec("Arguments")
Result = TypeVar("Result", bound=Stoppable)


@contextlib.contextmanager
def interruptible(answer: Callable[[], object] = lambda: None) -> Iterator[list[int]]:
    """Yields a list to which Ctrl-C or SIGTERM appends its number, for a loop to look at.

    The list is empty, and so false, until the first signal. A second signal does what it would do
    without this context: usually it ends the process. A signal that the process ignores, as under
    `nohup`, stays ignored. Outside of the main thread, where Python allows no signal handlers, the
    list stays empty.

    Args:
        answer: called once, in a thread of its own, as soon as the first signal arrives.
    """
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return

    # None stands for a handler that is not of Python, which could not be put back.
    before: dict[int, Any] = {}
    for number in _SIGNALS:
        handler = signal.getsignal(number)
        if handler not in (signal.SIG_IGN, None):
            before[number] = handler
    arrived: list[int] = []

    def note(number, _):
        # From here on the earlier handlers are back: a user who presses Ctrl-C twice wants out.
        caught.append(number)
        _restore(before)

        # Python makes one call of two signals that came while compiled code ran.
        if len(arrived) > 1:
            signal.raise_signal(number)

    def listen(number):
        arrived.append(number)
        if len(arrived) == 1:
            with contextlib.suppress(OSError, ValueError):  # there may be nobody to hear it
                answer()
        else:
            _again(number, before[number], is_noted=bool(caught))

    with _listening(before, listen):
        for number in before:
            signal.signal(number, note)
        try:
            yield caught
        finally:
            _restore(before)


def deliver(number: int) -> None:
    """Delivers a signal that was noted, to the handler from before `interruptible`.

    For Ctrl-C that is Python's own, which raises KeyboardInterrupt; SIGTERM ends the process.
    """
    signal.raise_signal(number)


def delivering(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Returns a function that saves after a signal as `function` does, and then delivers it.

    The program that calls it is then interrupted as by any other function. It returns only if the
    program's own handler does.
    """

    @functools.wraps(function)
    def wrapper(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        outcome = function(*args, **kwargs)
        if outcome.signal:
            deliver(outcome.signal)
        return outcome

    return wrapper


def leave(number: int = signal.SIGINT, _: Any = None) -> None:
    """Ends the process at once; the command line's handler of Ctrl-C.

    A KeyboardInterrupt would be lost, or abort the process with a core dump, where a library calls
    back into Python, as XLA does while it compiles.
    """
    # A progress bar leaves the cursor at the end of its line.
    below_the_bar = "\n" if at_terminal() else ""

    # Not by `print`: the signal may have interrupted one, and a stream cannot be entered twice.
    write_message(f"{below_the_bar}{INTERRUPTED}")
    os._exit(128 + number)


def leave_at_interrupt() -> None:
    """Makes Ctrl-C end the process at once, unless the process ignores it or handles it already."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, leave)


@contextlib.contextmanager
def _listening(known: Container[int], listen: Callable[[int], None]) -> Iterator[None]:
    """Calls `listen(number)` for each of the known signals at once, in a thread of its own.

    While compiled code runs, which can be minutes, Python calls no handler. But it writes a byte
    for every signal to the "wakeup" descriptor, where the thread reads it.
    """
    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    earlier = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)

    # Another library, such as asyncio, wants these bytes: it keeps them, and the thread ends.
    if earlier != -1:
        signal.set_wakeup_fd(earlier)
        sender.close()

    def read():
        with receiver:
            while byte := receiver.recv(1):
                if byte[0] in known:
                    listen(byte[0])

    threading.Thread(target=read, daemon=True).start()
    try:
        yield
    finally:
        if earlier == -1:
            signal.set_wakeup_fd(-1)
            sender.close()


def _again(number: int, handler: Any, is_noted: bool) -> None:
    """Does in a thread what a second signal is to do while the main thread runs compiled code."""
    if handler is leave:
        leave(number)

    # The system's default ends the process. Only the main thread could set it again, and has done
    # so if it has noted the first signal.
    if handler is signal.SIG_DFL and not is_noted:
        os._exit(128 + number)


def _restore(handlers: dict[int, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)

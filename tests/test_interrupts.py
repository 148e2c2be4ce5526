"""Signals: noted at once, delivered again, and left alone where the process ignores them."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import NamedTuple

import pytest

from cmjax.interrupts import deliver, delivering, interruptible

ROOT = Path(__file__).parent.parent


class Outcome(NamedTuple):
    signal: int


@pytest.fixture(autouse=True)
def handlers():
    """Python's own handler of Ctrl-C, whatever that of the tests; none is left changed."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def test_the_first_signal_is_noted_and_the_second_does_what_it_did_before():
    with pytest.raises(KeyboardInterrupt), interruptible() as caught:
        signal.raise_signal(signal.SIGINT)
        assert caught == [signal.SIGINT]
        signal.raise_signal(signal.SIGINT)


def test_the_answer_does_not_wait_for_the_main_thread():
    answered = threading.Event()
    with interruptible(answered.set) as caught:
        # The thread that waits for the answer is the one that runs Python's handlers; a handler
        # of its own would let it go on.
        os.kill(os.getpid(), signal.SIGINT)
        assert answered.wait(30)
    assert caught == [signal.SIGINT]


def test_what_the_process_ignores_stays_ignored():
    """As under nohup."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interruptible() as caught:
            assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
            signal.raise_signal(signal.SIGINT)
        assert caught == []
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_note_nothing():
    seen = []

    def work():
        with interruptible() as caught:
            seen.append(list(caught))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [[]]


def test_a_noted_signal_is_delivered_to_the_program():
    work = delivering(Outcome)
    assert work(0).signal == 0
    with pytest.raises(KeyboardInterrupt):
        work(signal.SIGINT)

    # A program whose handler goes on gets the result.
    seen = []
    before = signal.signal(signal.SIGTERM, lambda number, _: seen.append(number))
    try:
        assert work(signal.SIGTERM).signal == signal.SIGTERM
        deliver(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [signal.SIGTERM] * 2


# Compiled code that runs for minutes, in which Python calls no handler.
BUSY = """
import hashlib, os, signal, threading, time
from cmjax.interrupts import interruptible, leave

def twice():
    for _ in range(2):
        time.sleep(0.3)
        os.kill(os.getpid(), signal.{name})

signal.signal(signal.{name}, {handler})
threading.Thread(target=twice, daemon=True).start()
try:
    with interruptible(lambda: print("noted", flush=True)):
        hashlib.pbkdf2_hmac("sha256", b"", b"", {rounds})
        print("went on", flush=True)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.process
@pytest.mark.parametrize(
    ("name", "handler", "rounds", "code", "output"),
    [
        ("SIGINT", "leave", 10**9, 130, "noted\n"),
        ("SIGTERM", "signal.SIG_DFL", 10**9, 143, "noted\n"),
        ("SIGINT", "signal.default_int_handler", 10**7, 0, "noted\ninterrupted\n"),
    ],
)
def test_two_signals_count_as_two_while_compiled_code_runs(
    name, handler, rounds, code, output
):
    """Python itself would make one of them, once the compiled code returns."""
    program = BUSY.format(name=name, handler=handler, rounds=rounds)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (code, output), done.stderr

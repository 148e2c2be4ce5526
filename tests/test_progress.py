"""Progress: lines every so often where there is no terminal, and nothing if it is not shown."""

import io
import sys

import pytest

from cmjax import progress
from cmjax.progress import Bar


def test_lines_are_few_and_say_how_far_it_is(capsys, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: clock[0])
    with Bar(100, done=10, unit="step", doing="compiling") as bar:
        bar.advance_to(11)
        assert capsys.readouterr().err == ""

        # The rate counts from here on.
        clock[0] = 20.0
        bar.begin("training", 11, "loss=2")
        assert capsys.readouterr().err == "training: 11 of 100 steps, loss=2\n"
        clock[0] = 30.0
        bar.advance_to(31, "loss=1")
        assert capsys.readouterr().err == ""
        clock[0] = 60.0
        bar.advance_to(51, "loss=1")
        line = "training: 51 of 100 steps, 1 a second, 00:49 left, loss=1\n"
        assert capsys.readouterr().err == line
        bar.say("stopping")
        assert capsys.readouterr().err == "stopping\n"


def test_nothing_is_shown_unless_it_is_wanted(capsys):
    with Bar(2, unit="step", doing="compiling", shown=False) as bar:
        bar.say("compiling")
        bar.begin("training")
        bar.advance_to(2, now=True)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("at_terminal", [False, True])
def test_what_cannot_be_shown_does_not_end_the_work(monkeypatch, at_terminal):
    # A reader that has ended, as of `2>&1 | head`, or a disk that is full.
    class Stream(io.StringIO):
        is_broken = False

        def write(self, text):
            if self.is_broken:
                raise BrokenPipeError(32, "Broken pipe")
            return super().write(text)

    stream = Stream()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(progress, "at_terminal", lambda: at_terminal)
    monkeypatch.setattr(progress, "PERIOD", 0.0)
    with Bar(3, unit="step", doing="compiling") as bar:
        bar.begin("training")
        stream.is_broken = True
        for done in (1, 2, 3):
            bar.advance_to(done, "loss=1", now=True)
        bar.say("saving")
        bar.describe("saving")
    assert bar.done == 3

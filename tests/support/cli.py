"""Running the command line, in this process or as a program."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def assert_one_line(result, fragment, code=2):
    """A command failed, with nothing but one line on stderr that says so."""
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert fragment in result.stderr, result.stderr


def succeeded(result):
    assert result.exit_code == 0, (result.stderr, result.exception)
    return result


def program(*args, **options):
    """Starts `python -m cmjax`, which minds SIGINT even where the tests ignore it."""
    code = (
        "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "runpy.run_module('cmjax', run_name='__main__')"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, *args],
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )

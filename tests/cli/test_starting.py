"""As a process of its own: Ctrl-C during imports, no device, and one line for an error."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cli import ROOT

# Runs the command line as the installed program does, and presses Ctrl-C at the import of a module.
INTERRUPTED = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.{handler})
class Finder:
    def find_spec(self, name, *_):
        if name == "{module}":
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
sys.argv = ["cmjax", "info"]
from cmjax.__main__ import main
main()
"""


def run(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


@pytest.mark.process
@pytest.mark.parametrize("module", ["click", "numpy", "jax", "jaxlib", "flax"])
def test_ctrl_c_during_the_imports_is_one_line(module):
    result = run(INTERRUPTED.format(handler="default_int_handler", module=module))
    assert result.returncode == 130, result.stderr
    assert result.stderr == "Interrupted; nothing unfinished was written.\n"
    assert result.stdout == ""


@pytest.mark.process
def test_a_signal_that_the_process_ignores_stays_ignored():
    result = run(INTERRUPTED.format(handler="SIG_IGN", module="jax"))
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("kind ")


@pytest.mark.process
@pytest.mark.parametrize("platform", ["cuda", "nonsense"])
def test_a_device_that_is_not_there_is_one_line(tmp_path, platform):
    code = f"import os, sys; os.chdir({str(tmp_path)!r}); sys.argv = ['cmjax', 'sample']; "
    code += "from cmjax.__main__ import main; main()"
    result = run(code, JAX_PLATFORMS=platform, PYTHONPATH=str(ROOT))
    assert result.returncode == 2
    assert result.stderr.startswith(
        "Error: JAX finds no device to compute on with JAX_PLATF"
    )
    assert f"'{platform}'" in result.stderr and result.stderr.count("\n") == 1
    assert os.listdir(tmp_path) == []


@pytest.mark.process
def test_parts_of_a_checkpoint_that_fail_with_another_say_nothing():
    code = """
import asyncio
from cmjax.cli import main

kept = asyncio.new_event_loop()

@main.command()
def save():
    async def write(): pass
    parts = [write() for _ in range(2)]

    # A part that failed, and that nobody has asked, is kept until the process ends.
    future = kept.create_future()
    future.set_exception(OSError("this part"))
    kept.future = future
    raise OSError("the disk is full")

main(["save"])
"""
    result = run(code)
    assert (result.returncode, result.stderr) == (2, "Error: the disk is full\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
@pytest.mark.parametrize("option", ["--help", "--version"])
def test_a_full_disk_is_one_line_before_a_command_begins(option):
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [sys.executable, "-m", "cmjax", option],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert result.returncode == 2
    assert result.stderr.strip() == "Error: cannot print: No space left on device"

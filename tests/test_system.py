"""System calls: memory that the process keeps."""

import ctypes
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from cmjax import system

# Each needs an array of 128 MB again and again, and prints the fewest pages that the system gave it
# for one: NumPy's own, and the temporary one of a program of JAX. Not always none: a heap grows
# until it has a gap for all.
ARRAYS = """
import numpy as np

def compute():
    np.full(2**24, 1.0)
"""
PROGRAM = """
import jax, jax.numpy as jnp

@jax.jit
def program(x):
    rows = x + jnp.arange(2.0**25).reshape(4096, -1)
    return rows @ rows[0]

def compute():
    program(1.0).block_until_ready()
"""
COUNT = """
import resource, sys
from cmjax import system

def pages():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

if sys.argv[1] == "keep":
    assert system.keep_memory()
given = []
for _ in range(8):
    before = pages()
    compute()
    given.append(pages() - before)
print(min(given))
"""


def pages(code, mode):
    done = subprocess.run(
        [sys.executable, "-c", code + COUNT, mode],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it has the settings")
@pytest.mark.parametrize("code", [ARRAYS, PROGRAM])
def test_kept_memory_is_used_again(code):
    # Huge pages would be 64 at least, small ones 32,768.
    returned = pages(code, "return")
    kept = pages(code, "keep")
    assert returned > 50
    assert kept < returned / 4


@pytest.mark.parametrize("name", ["darwin", "win32"])
def test_on_other_systems_nothing_is_set(monkeypatch, name):
    monkeypatch.setattr(sys, "platform", name)
    assert system.keep_memory() is False


def test_of_another_c_library_nothing_is_asked(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert system.keep_memory() is False


@pytest.mark.parametrize(
    ("platforms", "installed", "expected"),
    [
        ("cpu", ["jax_plugins"], True),
        ("cuda,cpu", [], False),
        ("", [], True),
        ("", ["jax_plugins"], False),
        ("", ["libtpu"], False),
    ],
)
def test_the_device_is_told_without_jax(monkeypatch, platforms, installed, expected):
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: name if name in installed else None
    )
    assert system.computes_on_cpu() is expected


@pytest.mark.parametrize(
    "flags, expected", [("avx512f amx_bf16 amx_tile", True), ("avx2", False)]
)
def test_whether_the_cpu_has_amx(monkeypatch, flags, expected):
    def read(path):
        assert str(path) == "/proc/cpuinfo"
        return f"flags\t\t: fpu {flags} sse\n"

    monkeypatch.setattr(Path, "read_text", read)
    assert system.has_amx.__wrapped__() is expected


def test_a_system_that_does_not_say_has_no_amx(monkeypatch):
    def read(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_text", read)
    assert system.has_amx.__wrapped__() is False

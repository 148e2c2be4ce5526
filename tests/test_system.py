"""System calls: memory that the process keeps."""

import ctypes
import platform
import subprocess
import sys

import pytest

from cmjax import system

# Prints the pages that four arrays of 128 MB, one after the other, were given by the system.
ALLOCATE = """
import resource, sys
import numpy as np
from cmjax import system

if sys.argv[1] == "keep":
    assert system.keep_memory()
np.full(2**24, 1.0)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    np.full(2**24, 1.0)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def pages(mode):
    done = subprocess.run(
        [sys.executable, "-c", ALLOCATE, mode],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it has the settings")
def test_kept_memory_is_used_again():
    # Huge pages would be 256 at least, small ones 131,072.
    returned = pages("return")
    kept = pages("keep")
    assert returned > 200
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

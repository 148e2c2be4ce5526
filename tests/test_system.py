"""System calls: memory that the process keeps."""

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


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc has the settings")
def test_kept_memory_is_used_again():
    # Huge pages would be 256 at least, small ones 131,072.
    returned = pages("return")
    kept = pages("keep")
    assert returned > 200
    assert kept < returned / 4


def test_elsewhere_nothing_is_set(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert system.keep_memory() is False

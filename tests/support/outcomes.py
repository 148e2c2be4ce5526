"""What becomes of a damaged model: it loads, or the error is ours, in bounded memory."""

import contextlib
import functools
import sys
import time
import tracemalloc
from collections import Counter

import pytest

from cmjax.checkpoints import checkpoint

MEMORY = 64 * 2**20  # bytes that Python and NumPy may take; the models have some kB
RESIDENT = 256 * 2**10  # KiB by which the process may grow, what TensorStore takes included
LONGEST = 5000  # letters of an error


def _most_resident():
    """The most memory that this process has had, in KiB; 0 where that is not known."""
    if sys.platform != "linux":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@contextlib.contextmanager
def traced():
    """Traces memory meanwhile.

    Not anew for each model: CPython 3.11 crashes where tracing ends while another thread, such as
    one of TensorStore's, is about to enter Python.
    """
    tracemalloc.start()
    try:
        yield
    finally:
        time.sleep(0.5)
        tracemalloc.stop()


@contextlib.contextmanager
def networks_made_once():
    """Keeps the network of each config: making it takes most of the time of a load."""
    with pytest.MonkeyPatch.context() as patch:
        made_once = functools.lru_cache(64)(checkpoint.function_and_shapes)
        patch.setattr(checkpoint, "function_and_shapes", made_once)
        yield


@contextlib.contextmanager
def loads_or_is_refused(path, counts=None):
    """Runs what opens `path`; any error but one line of ours that names it fails the test.

    Memory has to be `traced`.

    Args:
        path: what is opened.
        counts: a Counter that is given "loaded" or "refused".
    """
    counts = Counter() if counts is None else counts
    resident = _most_resident()
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    try:
        yield
        counts["loaded"] += 1
    except ValueError as error:
        said = str(error)
        assert type(error) is ValueError, repr(error)  # no UnicodeDecodeError and its like
        assert str(path) in said, said
        assert len(said) < LONGEST and said.isprintable(), said
        counts["refused"] += 1
    peak = tracemalloc.get_traced_memory()[1]
    assert peak - before < MEMORY
    assert _most_resident() - resident < RESIDENT

"""Every test runs under strict dtype and rank promotion, on eight simulated CPU devices."""

import atexit
import gc
import os
import shutil
import signal
import tempfile
from importlib.metadata import version
from pathlib import Path

# Most of a test's time goes into compiling programs that run once, so they are compiled quickly
# rather than well, and in one piece: 6 times as fast for a training step. Flags of the environment
# come last and win; .ci/run gives those that users' programs are compiled with.
# jaxlib after 0.10 has no such emitters, and ends a process that names a flag it does not know.
os.environ["XLA_FLAGS"] = " ".join(
    [
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=0",
        "--xla_cpu_use_fusion_emitters=false" * version("jaxlib").startswith("0.10."),
        "--xla_cpu_parallel_codegen_split_count=1",
        os.environ.get("XLA_FLAGS", ""),
    ]
)

# A shell starts programs in the background with Ctrl-C ignored, which they then go on to ignore.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The workers of pytest-xdist take every core; the threads of torch and BLAS would wait for each
# other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Programs that tests, and the processes they start, have in common are compiled once, the smallest
# ones too: to load one takes half the time. The workers of pytest-xdist inherit the folder. JAX
# writes entries in place; who reads one half written is warned, and compiles.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp()
    atexit.register(
        shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True
    )
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import hypothesis
import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# tests/support/draws.py says what the numbers mean.
for profile, examples in {"quick": 10, "thorough": 100}.items():
    hypothesis.settings.register_profile(
        profile, max_examples=examples, deadline=None, derandomize=True, print_blob=True
    )
hypothesis.settings.load_profile("quick")

MAPS = 4000


def pytest_collection_finish():
    """Keeps the garbage collector from walking all modules and tests again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)  # tracing makes many objects that live


@pytest.fixture(autouse=True, scope="module")
def forget_compiled_programs():
    """Clears JAX's caches after a module where they have grown large.

    A process may hold 65,530 memory maps, and every compiled program takes three, and about 1 MB:
    those of all tests would be too many. Small ones, which modules have in common, are kept.
    """
    yield
    maps = Path("/proc/self/maps")
    if not maps.exists() or len(maps.read_bytes().splitlines()) > MAPS:
        jax.clear_caches()

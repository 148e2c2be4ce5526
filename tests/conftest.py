"""Every test runs under strict dtype and rank promotion, on eight simulated CPU devices."""

import atexit
import os
import shutil
import signal
import tempfile

# Most of a test's time goes into compiling programs that run once, so they are compiled quickly
# rather than well, and in one piece: 6 times as fast for a training step. Flags of the environment
# come last and win; .ci/run gives those that users' programs are compiled with.
os.environ["XLA_FLAGS"] = " ".join(
    [
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=0",
        "--xla_cpu_use_fusion_emitters=false",
        "--xla_cpu_parallel_codegen_split_count=1",
        os.environ.get("XLA_FLAGS", ""),
    ]
)

# A shell starts programs in the background with Ctrl-C ignored, which they then go on to ignore.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Programs that tests, and the processes they start, have in common are compiled once, by each
# worker of pytest-xdist.
if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(
        os.environ["JAX_COMPILATION_CACHE_DIR"], worker
    )
elif "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp()
    atexit.register(
        shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True
    )
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

import hypothesis
import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# tests/support/draws.py says what the numbers mean.
for profile, examples in {"quick": 25, "thorough": 100}.items():
    hypothesis.settings.register_profile(
        profile, max_examples=examples, deadline=None, derandomize=True, print_blob=True
    )
hypothesis.settings.load_profile("quick")


@pytest.fixture(autouse=True, scope="module")
def forget_compiled_programs():
    """Clears JAX's caches after every module.

    A process may hold 65,530 memory maps, and every compiled program takes some: those of all tests
    would be too many.
    """
    yield
    jax.clear_caches()

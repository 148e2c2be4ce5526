"""Every test runs under strict dtype and rank promotion, on eight simulated CPU devices."""

import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import hypothesis
import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

hypothesis.settings.register_profile("cmjax", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("cmjax")


@pytest.fixture(autouse=True, scope="module")
def forget_compiled_programs():
    """A process may hold 65,530 memory maps, and every compiled program takes some: all tests' would be too many."""
    yield
    jax.clear_caches()

"""Checks for schedulers and models, and models whose samples are known in closed form.

A check returns nothing if it passes. Otherwise it raises AssertionError with a description of the
difference, or JAX's own error for code that cannot be traced. Checks accept any subclass of
`cmjax.schedulers.Scheduler`, registered or not:

    import cmjax.testing
    cmjax.testing.assert_scheduler_contract(MyScheduler())
"""

from cmjax.testing.contract import (
    assert_bare_sample_compiles_once,
    assert_clean_end,
    assert_compiles_once,
    assert_config_round_trip,
    assert_dtype_kept,
    assert_jit_equals_eager,
    assert_scheduler_contract,
    assert_step_equals_sample,
    assert_threads_agree,
    assert_vmap_equals_loop,
)
from cmjax.testing.gradients import assert_differentiable
from cmjax.testing.invariance import assert_batch_invariant, assert_device_invariant
from cmjax.testing.models import (
    assert_boundary_condition,
    assert_gaussian_moments,
    gaussian_consistency_model,
    network_of,
)

__all__ = [
    "assert_bare_sample_compiles_once",
    "assert_batch_invariant",
    "assert_boundary_condition",
    "assert_clean_end",
    "assert_compiles_once",
    "assert_config_round_trip",
    "assert_device_invariant",
    "assert_differentiable",
    "assert_dtype_kept",
    "assert_gaussian_moments",
    "assert_jit_equals_eager",
    "assert_scheduler_contract",
    "assert_step_equals_sample",
    "assert_threads_agree",
    "assert_vmap_equals_loop",
    "gaussian_consistency_model",
    "network_of",
]

"""The consistency scheduler against stored results of diffusers.

tests/golden/make_goldens.py made them; tests/support/goldens.py says what is compared.
"""

import pytest

from tests.support.goldens import (
    assert_consistency_case_reproduced,
    assert_loop_reproduced,
    load_goldens,
)

CASES = load_goldens("consistency_scheduler", "case")
LOOPS = load_goldens("consistency_scheduler", "loop")


@pytest.mark.parametrize(
    "case", CASES, ids=lambda case: f"{case['spacing']}-{case['levels']}"
)
def test_every_quantity_equals_the_stored_one(case):
    assert_consistency_case_reproduced(case)


@pytest.mark.parametrize("loop", LOOPS, ids=lambda loop: loop["name"])
def test_full_loops_end_at_the_published_sums(loop):
    assert_loop_reproduced(loop)

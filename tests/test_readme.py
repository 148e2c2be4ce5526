"""The README's programs run as printed, and its commands are the ones that CI and people use."""

import re
from pathlib import Path

import jax
import numpy as np

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_programs_run():
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len(blocks) == 2
    assert len([line for line in blocks[0].splitlines() if line.strip()]) <= 10
    namespace = {}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for block in blocks:
            exec(block, namespace)  # noqa: S102
    # the loop by hand ends where sample() does
    np.testing.assert_allclose(namespace["x"], namespace["points"], rtol=1e-4, atol=1e-4)


def test_the_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_commands_are_there():
    assert "\npip install . && cmjax sample\n" in README
    assert '\npip install -e ".[test]" && pytest\n' in README
    assert (ROOT / ".ci" / "run").read_text().rstrip().endswith("\npytest")

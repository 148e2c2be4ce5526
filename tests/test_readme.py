"""The README's programs run as printed, and its commands are the ones that CI and people use."""

import re
from pathlib import Path

import jax
import numpy as np

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_programs_run():
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len(blocks) == 3
    assert all(len(block.splitlines()) <= 10 for block in blocks)
    namespace = {}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for block in blocks:
            exec(block, namespace)  # noqa: S102
    assert namespace["digits"].shape == (10, 28, 28, 1)

    # The loop by hand ends where sample() does.
    np.testing.assert_allclose(namespace["x"], namespace["points"], rtol=1e-4, atol=1e-4)


def test_the_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_commands_are_there():
    assert "\npip install . && cmjax sample\n" in README
    assert '\npip install -e ".[test]" && pytest\n' in README
    assert re.search(r"^pytest( +#.*)?$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)

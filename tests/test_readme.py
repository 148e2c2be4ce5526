"""The README's programs run as printed, and its commands are the ones that CI and people use."""

import re

import numpy as np

from tests.support import pages

ROOT = pages.ROOT
README = (ROOT / "README.md").read_text()


def test_the_programs_run():
    blocks = pages.programs(ROOT / "README.md")
    assert len(blocks) == 3
    assert all(len(block.strip().splitlines()) <= 10 for block in blocks)
    namespace = pages.run(ROOT / "README.md")
    assert namespace["digits"].shape == (10, 28, 28, 1)

    # The loop by hand ends where sample() does.
    np.testing.assert_allclose(namespace["x"], namespace["points"], rtol=1e-4, atol=1e-4)


def test_the_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", README):
        assert (ROOT / target).exists(), target


def test_the_commands_are_there():
    assert "\npip install . && cmjax sample\n" in README
    assert '\npip install -e ".[test]" && pytest\n' in README
    assert re.search(r"^pytest( +#.*)?$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)

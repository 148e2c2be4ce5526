"""The programs in docs/migration.md run, and the schedulers that its tables name are there."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

import cmjax

ROOT = Path(__file__).parent.parent
MIGRATION = (ROOT / "docs" / "migration.md").read_text()

# Programs of what one comes from are marked "python before", and not run.
PREAMBLE, *PROGRAMS = re.findall(r"```python\n(.*?)```", MIGRATION, re.S)
BEFORE = re.findall(r"```python before\n(.*?)```", MIGRATION, re.S)
ROWS = sorted(set(re.findall(r"^\|.*$", MIGRATION, re.M)))
NAMED = sorted(set(re.findall(r"`(cmjax\.\w+Scheduler\([^`]*\))`", "\n".join(ROWS))))


def title(program):
    """The section of docs/migration.md that a program is in."""
    return re.findall(r"^##+ (.*)$", MIGRATION[: MIGRATION.index(program)], re.M)[-1]


@pytest.mark.parametrize("program", PROGRAMS, ids=title)
def test_the_programs_run(program):
    namespace = {}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        exec(PREAMBLE, namespace)  # noqa: S102
        exec(program, namespace)  # noqa: S102

    # What each of them is for: samples, or a gradient.
    results = [
        namespace[name] for name in ("x0", "x", "latents", "gradient") if name in namespace
    ]
    assert results
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(results))


def test_every_program_has_what_it_replaces():
    assert len(BEFORE) == len(PROGRAMS)


@pytest.mark.parametrize("expression", NAMED)
def test_the_schedulers_in_the_tables_are_there(expression):
    assert isinstance(eval(expression), cmjax.schedulers.Scheduler)


def test_the_links_lead_somewhere():
    for path in sorted((ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name}: {target}"

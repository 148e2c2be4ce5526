"""The programs in pages of Markdown: they run as printed, one after the other."""

import re
from pathlib import Path

import jax

ROOT = Path(__file__).parents[2]

# What one comes from is marked "python before" in docs/migration.md, and is not run.
PROGRAM = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def pages():
    """The pages with programs: README, docs, and the how-to pages."""
    found = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
    found += sorted(ROOT.glob("docs/howto/*.md"))
    return [page for page in found if PROGRAM.search(page.read_text())]


def programs(page):
    """The programs of a page, with as many blank lines in front as errors need to count right."""
    text = page.read_text()
    return [
        "\n" * text[: found.start(1)].count("\n") + found[1]
        for found in PROGRAM.finditer(text)
    ]


def run(page, namespace=None):
    """Runs the programs of a page in one namespace, and returns it."""
    namespace = {} if namespace is None else namespace
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for program in programs(page):
            exec(compile(program, page, "exec"), namespace)  # noqa: S102
    return namespace

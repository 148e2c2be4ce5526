"""The programs in README and docs run as printed, their links lead somewhere, their names exist."""

import dataclasses
import re
import sys
from importlib import metadata

import jax
import numpy as np
import pytest
from flax import nnx

import cmjax
from tests.support import checkpoints, pages, pixel_mean_flow
from tests.support.tiers import thorough

ROOT = pages.ROOT
MIGRATION = ROOT / "docs" / "migration.md"

# README has a test of its own. In migration.md each program stands alone after the first.
FIRST = ROOT / "docs" / "getting_started.md"
LATER = [
    page for page in pages.pages() if page not in (ROOT / "README.md", MIGRATION, FIRST)
]
PREAMBLE, *PROGRAMS = pages.programs(MIGRATION)
BEFORE = re.findall(r"```python before\n(.*?)```", MIGRATION.read_text(), re.S)
ROWS = sorted(set(re.findall(r"^\|.*$", MIGRATION.read_text(), re.M)))
NAMED = sorted(set(re.findall(r"`(cmjax\.\w+Scheduler\([^`]*\))`", "\n".join(ROWS))))


def name_of(page):
    return str(page.relative_to(ROOT))


def save_model(path):
    """Writes the model that pages call runs/mine: ten classes, one of them cats."""
    config = dataclasses.replace(checkpoints.CONFIG, num_class_embeds=10)
    apply_fn, params = cmjax.from_nnx(cmjax.models.UNet2D(config, rngs=nnx.Rngs(0)))
    names = ("cats", *map(str, range(1, 10)))
    scheduler = cmjax.CMStochasticIterativeScheduler()
    model = cmjax.Model(apply_fn, params, scheduler, config, class_names=names)
    cmjax.save(path, model)


@pytest.mark.parametrize("page", [FIRST, *map(thorough, LATER)], ids=name_of)
def test_the_programs_of_a_page_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if 'load("runs/mine"' in page.read_text():
        save_model(tmp_path / "runs" / "mine")
    if 'load("pMF-B-16.pt"' in page.read_text():
        pixel_mean_flow.save(tmp_path / "pMF-B-16.pt", "toy", num_classes=1000)
    pages.run(page)


def title(program):
    """The section of docs/migration.md that a program is in."""
    text = MIGRATION.read_text()
    return re.findall(r"^##+ (.*)$", text[: text.index(program.lstrip("\n"))], re.M)[-1]


@pytest.mark.parametrize("program", PROGRAMS, ids=title)
def test_the_programs_of_migration_run(program):
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
    for path in sorted(ROOT.glob("docs/**/*.md")):
        if "_build" in path.parts:
            continue
        text = re.sub(r"```.*?```", "", path.read_text(), flags=re.S)
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
            # Pages of the reference are written when the site is built.
            if not target.endswith(".rst"):
                assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_no_program_is_left_unmarked():
    # A block of Python in another spelling would not be run.
    for page in [
        ROOT / "README.md",
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("docs/howto/*.md"),
    ]:
        kinds = set(re.findall(r"^```(\S.*)$", page.read_text(), re.M))
        found = {kind for kind in kinds if not kind.startswith("{")}
        assert found <= {"python", "python before"}, name_of(page)


def test_the_tutorials_say_what_to_install():
    # What their programs import is installed with cmjax, or named where the tutorials begin.
    index = (ROOT / "docs/tutorials/index.md").read_text().lower()
    requirements = [line for line in metadata.requires("cmjax") if "extra ==" not in line]
    named = index + " ".join(requirements)
    for page in ROOT.glob("docs/tutorials/*.md"):
        found = re.findall(r"^(?:import|from) (\w+)", page.read_text(), re.M)
        for name in set(found) - sys.stdlib_module_names - {"cmjax", "PIL"}:
            assert name in named, f"{page.name} imports {name}"

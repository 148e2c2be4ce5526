"""The scripts in benchmarks/ start: all say what their options are, and one runs at toy size."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from click.testing import CliRunner

import cmjax

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
SCRIPTS = sorted(
    path.stem for path in BENCHMARKS.glob("*.py") if "\ndef main(" in path.read_text()
)


@pytest.fixture
def importable(monkeypatch):
    """The scripts import each other by name, as from a shell; all are forgotten afterwards."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name in {path.stem for path in BENCHMARKS.glob("*.py")}:
            del sys.modules[name]


def test_there_are_scripts():
    assert {"accelerator", "train_step", "unet_vs_diffusers"} <= set(SCRIPTS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_says_what_its_options_are(name, importable):
    result = CliRunner().invoke(importlib.import_module(name).main, ["--help"])
    assert result.exit_code == 0, result.output
    assert "--help" in result.output


@pytest.mark.slow
def test_every_student_of_the_digits_starts_as_the_denoiser(importable):
    students = importlib.import_module("digits_students")
    teacher = cmjax.load(BENCHMARKS.parent / "examples/assets/digits_denoiser")
    x = jax.random.normal(jax.random.key(0), (3, 28, 28, 1))
    cond = {"class_labels": jnp.array([0, 5, 9])}

    # Of one time, in EDM's terms or in those of a velocity; and of two, wherever the step ends.
    levels = jnp.array([500.0, 0.0, -700.0])
    times = jnp.array([1000.0, 500.0, 20.0])
    output = teacher.apply_fn(teacher.params, x, levels, **cond)
    flow = students.network_of("flow_matching", teacher)
    velocity = flow.apply_fn(flow.params, x, times, **cond)
    for name in students.STUDENTS:
        network = students.network_of(name, teacher)
        is_flow = name == "flow_matching" or name in students.FLOW_MAPS
        given = (times if is_flow else levels,)
        if network.scheduler.num_times == 2:
            given = (*given, given[0] / 2)
        found = jax.jit(network.apply_fn)(network.params, x, *given, **cond)
        np.testing.assert_allclose(found, velocity if is_flow else output, atol=1e-4)


@pytest.mark.slow
def test_the_accelerator_script_runs_at_toy_size(tmp_path):
    # torch.compile alone would take a minute, and a C++ compiler.
    sections = ["parity", "network", "sampling", "training", "generate"]
    out = tmp_path / "results.jsonl"
    script = BENCHMARKS / "accelerator.py"
    options = ["--toy", "--repeats", "1", "--minutes", "20", "--out", out]
    for section in sections:
        options += ["--section", section]
    done = subprocess.run(
        [sys.executable, *map(str, [script, *options])],
        env={**os.environ, "PYTHONPATH": str(BENCHMARKS.parent)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr

    rows = [json.loads(line) for line in out.read_text().splitlines()]
    counts = {name: sum(row.get("section") == name for row in rows) for name in sections}
    assert counts == {
        "parity": 2,
        "network": 2,
        "sampling": 4,
        "training": 2,
        "generate": 2,
    }
    assert not any("error" in row or "left_out" in row for row in rows)
    assert all(row["deviations"] < 1e-4 for row in rows if row.get("section") == "parity")

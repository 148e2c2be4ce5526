"""What type checkers know of results: `cmjax.sample` is an array, and a pair with a trajectory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import cmjax

# What a user writes, beside the type that pyright reveals of it.
KINDS = {
    "cmjax.load()": "Model",
    "cmjax.load().sample(key, 2)": "Array",
    "cmjax.load().sample(key, 2, labels=7, sigmas=[80.0, 2.0])": "Array",
    "cmjax.load().sample(key, 2, return_trajectory=True)": "tuple[Array, StepOutput]",
    "cmjax.load().sample(key, 2, return_trajectory=flag)": "Array | tuple[Array, StepOutput]",
    "cmjax.sample(key, apply_fn, {}, scheduler, (4, 2))": "Array",
    "cmjax.sample(key, apply_fn, {}, scheduler, (4, 2), timesteps=[22, 0])": "Array",
    "cmjax.sample(key, apply_fn, {}, scheduler, (4, 2), return_trajectory=True)": (
        "tuple[Array, StepOutput]"
    ),
    "cmjax.sample(key, apply_fn, {}, scheduler, (4, 2), return_trajectory=flag)": (
        "Array | tuple[Array, StepOutput]"
    ),
}
HEAD = """import cmjax, jax
def program(key: jax.Array, flag: bool):
    scheduler = cmjax.CMStochasticIterativeScheduler()
    def apply_fn(params, x, t): return x
"""


def diagnostics(folder, lines):
    """What pyright says of a program in a folder of its own, as (severity, message)."""
    program = folder / "program.py"
    program.write_text(HEAD + "".join(f"    {line}\n" for line in lines))
    root = Path(cmjax.__file__).parents[1]
    config = {"extraPaths": [str(root)], "pythonVersion": "3.11"}
    (folder / "pyrightconfig.json").write_text(json.dumps(config))
    command = [sys.executable, "-m", "pyright", "--outputjson", "-p", str(folder)]
    done = subprocess.run(
        [*command, "--pythonpath", sys.executable], capture_output=True, text=True
    )
    found = json.loads(done.stdout)["generalDiagnostics"]
    return [(entry["severity"], entry["message"]) for entry in found]


def test_type_checkers_know_what_is_returned(tmp_path):
    pytest.importorskip("pyright", reason="pyright is in the extra dev")
    revealed = [f"reveal_type({expression})" for expression in KINDS]
    wrong = "cmjax.load().sample(key, 2, sigma=[80.0])"
    *found, last = diagnostics(tmp_path, [*revealed, wrong])

    # A line for each. The last one, sigma for sigmas, is an error.
    kinds = [
        message.partition('" is "')[2].rstrip('"') for _, message in found[: len(KINDS)]
    ]
    assert kinds == list(KINDS.values())
    assert last[0] == "error" and last[1].startswith("No overloads")

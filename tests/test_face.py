"""The face of the package: what is public is there after `import cmjax`, nothing heavy is."""

import ast
import inspect
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import cmjax
from cmjax import schedulers

STUB = Path(cmjax.__file__).with_suffix(".pyi")
HEAVY = (
    "jax",
    "flax",
    "optax",
    "orbax",
    "grain",
    "huggingface_hub",
    "PIL",
    "click",
    "tqdm",
)


def stub_names():
    """Name -> where the stub imports it from."""
    found = {}
    for node in ast.parse(STUB.read_text()).body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                assert (
                    alias.asname == alias.name
                )  # or type checkers would take it for private
                found[alias.name] = node.module
    return found


def test_the_stub_says_what_is_there():
    names = stub_names()
    assert set(names) == {*cmjax.__all__, "__version__"}
    for name in set(names) - {"__version__"}:
        found = getattr(cmjax, name)
        if inspect.ismodule(found):
            assert found.__name__ == f"cmjax.{name}" and names[name] == "cmjax"
        else:
            assert found is getattr(sys.modules[names[name]], name)


def test_every_submodule_and_scheduler_is_public():
    modules = {module.name for module in pkgutil.iter_modules(cmjax.__path__)} - {
        "__main__"
    }
    assert modules <= set(cmjax.__all__)
    found = {name: getattr(schedulers, name) for name in schedulers.__all__}
    classes = {
        name
        for name, value in found.items()
        if isinstance(value, type) and issubclass(value, schedulers.Scheduler)
    }
    assert classes <= set(cmjax.__all__) <= set(dir(cmjax))


def test_parts_of_training_are_attributes():
    # In a process of its own, where nothing has imported them yet.
    program = (
        "import cmjax; training = cmjax.training; training.trainer.make_train_step; "
        "training.losses.Denoising; training.discretization.karras_sigmas"
    )
    assert set(imported_by(program)) <= {"flax", "jax", "optax"}


def test_other_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="'smaple'"):
        cmjax.smaple  # noqa: B018


def imported_by(program):
    """The heavy packages that a program imports in a process of its own."""
    code = f"{program}\nimport json, sys\nprint(json.dumps(sorted({HEAVY} & sys.modules.keys())))"
    code = code.replace(str(HEAVY), str(set(HEAVY)))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("program", "allowed"),
    [
        ("import cmjax; dir(cmjax); cmjax.__version__", []),
        ("from cmjax import sample, EDMHeunScheduler, testing", ["jax", "optax", "flax"]),
        ("import cmjax; cmjax.load(); cmjax.save", ["flax", "jax", "optax"]),
        # Help, version and completion; what a command needs it imports when it runs.
        (
            "from click.testing import CliRunner; from cmjax.cli import main; "
            "[CliRunner().invoke(main, [*c, '--help']) for c in ([], ['sample'], ['train'])]; "
            "import click.shell_completion as s; "
            "complete = s.BashComplete(main, {}, 'cmjax', '_X').get_completions; "
            "assert complete([], 'sam') and complete(['sample', '--scheduler'], 'LC'); "
            "assert complete(['schedulers'], 'LC') and complete(['train'], 'digits')",
            ["click"],
        ),
    ],
)
def test_heavy_packages_are_imported_when_they_are_used(program, allowed):
    assert set(imported_by(program)) <= set(allowed)

"""The plan of the house: imports point down, and packages define nothing in their `__init__`."""

import ast
import dataclasses
import re
import sys
from pathlib import Path

import pytest

from cmjax import schedulers
from cmjax.schedulers import SCHEDULERS, Scheduler

PACKAGE = Path(__file__).parent.parent / "cmjax"
DATACLASSES = [
    name
    for name in schedulers.__all__
    if dataclasses.is_dataclass(getattr(schedulers, name))
]

# From what everything stands on to what stands on everything; modules of one line may import each
# other. docs/design.md has the same list with what each is for.
LAYERS = [
    {"version", "configs", "spelling", "printing", "former_names", "system"}
    | {"files", "interrupts", "image_files"},
    {"processes", "progress"},
    {
        "arrays",
        "tracing",
        "serialization",
        "meshes",
        "random",
        "labels",
        "networks",
        "conditioning",
    },
    {"parametrization"},
    {"guidance"},
    {"schedulers"},
    {"sampling", "sampling_inputs", "categorical"},
    {"constraints"},
    {"editing"},
    {"models"},
    {"autoencoder"},
    {"model", "model_sampling"},
    {"registry"},
    {"checkpoints"},
    {"testing", "evaluation", "level_search", "images"},
    {"generation"},
    {"training"},
    {"cli"},
    {"__main__"},
]
LEVEL = {name: level for level, layer in enumerate(LAYERS) for name in layer}
NUMERIC = {"jax", "numpy"}  # all that samplers may import of others


def modules():
    return sorted(PACKAGE.rglob("*.py"))


def room(path):
    """The module or package directly under cmjax that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path):
    """The dotted names of modules that a file imports, also within functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            if node.module == "cmjax":
                yield from (f"cmjax.{alias.name}" for alias in node.names)


def test_every_module_has_its_level():
    rooms = {room(path) for path in modules()} - {"__init__"}
    assert rooms == set(LEVEL)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    if room(path) == "__init__":
        return
    for name in imported(path):
        if name.split(".")[0] == "cmjax" and name != "cmjax":
            target = name.split(".")[1]
            assert LEVEL[target] <= LEVEL[room(path)], f"{path} imports {name}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_inside_imports_the_facade(path):
    # The command line stands on top of the package, and completes its public names.
    if room(path) == "cli":
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert "cmjax" not in [alias.name for alias in node.names], path
        if isinstance(node, ast.ImportFrom) and node.module == "cmjax":
            assert {alias.name for alias in node.names} <= set(LEVEL), path


@pytest.mark.parametrize(
    "room_name", ["parametrization", "schedulers", "sampling", "guidance"]
)
def test_samplers_import_arrays_and_nothing_else(room_name):
    for path in modules():
        if room(path) == room_name:
            others = {name.split(".")[0] for name in imported(path)} - NUMERIC - {"cmjax"}
            known = set(sys.stdlib_module_names)
            assert others <= known, f"{path} imports {others - known}"


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.glob("*/**/__init__.py")), ids=lambda path: path.parent.name
)
def test_packages_define_nothing(path):
    for node in ast.parse(path.read_text()).body:
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        exports = isinstance(node, ast.Assign) and node.targets[0].id == "__all__"
        assert docstring or exports or isinstance(node, ast.Import | ast.ImportFrom), path


@pytest.mark.parametrize("name", DATACLASSES)
def test_help_of_every_scheduler_explains_all_its_fields_in_order(name):
    cls = getattr(schedulers, name)
    explained = re.findall(
        r"^ +(\w+): ", cls.__doc__.partition("Attributes:")[2], re.MULTILINE
    )
    assert [field.name for field in dataclasses.fields(cls)] == [
        field for field in explained if field != "ValueError"
    ]


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_sampler_says_what_its_networks_time_input_is(name):
    assert "time input" in SCHEDULERS[name].__doc__


@pytest.mark.parametrize("name", SCHEDULERS)
def test_class_chains_are_short(name):
    # The sampler, its family, the family's path, the table; and the contract.
    ours = [
        base for base in SCHEDULERS[name].__mro__ if base.__module__.startswith("cmjax")
    ]
    chain = [base for base in ours if issubclass(base, Scheduler)]
    assert len(chain) <= 5, chain

    # And beside the chain what reads its config file, and two sets of shared options.
    assert len(ours) - len(chain) <= 3, ours

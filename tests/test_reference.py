"""Every public name is on a page of the reference, with a docstring."""

import importlib
import importlib.util
import inspect
import pkgutil
import re

import pytest

import cmjax
from cmjax import training
from tests.support.pages import ROOT

DOCS = ROOT / "docs"
NAMES = re.compile(r"^\.\. (?:autoclass|autofunction|py:data):: (\S+)$", re.MULTILINE)


def tool():
    spec = importlib.util.spec_from_file_location("reference", DOCS / "reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PAGES = tool().pages()
DESCRIBED = [name for page in PAGES.values() for name in NAMES.findall(page)]


def public_modules():
    """The submodules of cmjax, and of training, whose own face is empty."""
    names = [f"cmjax.{name}" for name in cmjax.__all__]
    found = [name for name in names if inspect.ismodule(getattr(cmjax, name[6:]))]
    return found + [
        f"cmjax.training.{module.name}"
        for module in pkgutil.iter_modules(training.__path__)
    ]


# Of training, what only training itself uses.
INTERNAL = {
    "cmjax.training.array_files",
    "cmjax.training.averages",
    "cmjax.training.checks",
    "cmjax.training.digests",
    "cmjax.training.first_model",
    "cmjax.training.folder",
    "cmjax.training.named_models",
    "cmjax.training.outputs",
    "cmjax.training.teachers",
}


def objects_of(module):
    """The functions and classes of a module's `__all__`, or those that it defines."""
    if hasattr(module, "__all__"):
        found = {name: getattr(module, name) for name in module.__all__}
    else:
        found = {
            name: value
            for name, value in vars(module).items()
            if getattr(value, "__module__", None) == module.__name__
        }
    return {
        name: value
        for name, value in found.items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
    }


def described():
    """The objects that the pages describe."""
    found = []
    for full in DESCRIBED:
        module, _, name = full.rpartition(".")
        found.append(getattr(importlib.import_module(module), name))
    return found


def test_every_public_module_has_a_page_that_the_index_lists():
    modules = set(public_modules()) - INTERNAL
    assert modules <= set(PAGES)
    listed = set(re.findall(r"^cmjax\S*$", (DOCS / "api" / "index.md").read_text(), re.M))
    assert listed == (modules | {"cmjax"})


def test_every_name_of_the_face_is_described():
    names = {name for name in cmjax.__all__ if not inspect.ismodule(getattr(cmjax, name))}
    assert {f"cmjax.{name}" for name in names} <= set(DESCRIBED)


@pytest.mark.parametrize("name", sorted(set(public_modules()) - INTERNAL))
def test_every_public_object_is_described_and_documented(name):
    found = described()
    for own, value in objects_of(importlib.import_module(name)).items():
        assert any(value is other for other in found), f"{name}.{own}"
        assert inspect.getdoc(value), f"{name}.{own} has no docstring"


def test_nothing_is_described_twice():
    assert len(DESCRIBED) == len(set(DESCRIBED))

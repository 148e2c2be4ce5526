"""The examples in docstrings run and print what they say."""

import doctest
import importlib
import pkgutil

import jax
import pytest

import cmjax

# What a user calls first has an example.
MAIN = {
    "cmjax.checkpoints.loading": ("load",),
    "cmjax.checkpoints.saving": ("save",),
    "cmjax.constraints.inpainting": ("inpaint",),
    "cmjax.editing.constrained": ("edit",),
    "cmjax.evaluation.gaussians": ("frechet_distance",),
    "cmjax.generation.memory": ("generate",),
    "cmjax.guidance.guided": ("autoguidance", "classifier_free"),
    "cmjax.images.pixels": ("to_uint8",),
    "cmjax.model": ("Model.sample",),
    "cmjax.models.adapters": ("compute_in", "from_linen", "from_nnx"),
    "cmjax.parametrization.conversion": ("adapt",),
    "cmjax.random": ("sample_keys",),
    "cmjax.sampling": ("sample",),
    "cmjax.schedulers.consistency": ("CMStochasticIterativeScheduler",),
    "cmjax.schedulers.registry": ("scheduler_from_config",),
    "cmjax.training.trainer": ("make_train_step",),
}


def examples():
    """The docstrings with examples, of all modules."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = []
    for module in pkgutil.walk_packages(cmjax.__path__, "cmjax."):
        if not module.name.endswith("__main__"):
            tests = finder.find(importlib.import_module(module.name))
            found.extend(test for test in tests if test.examples)
    return found


EXAMPLES = examples()


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_an_example_prints_what_it_says(example):
    printed = []
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        result = runner.run(example, out=printed.append)
    assert not result.failed, "".join(printed)


def test_the_main_functions_have_examples():
    wanted = {f"{module}.{name}" for module, names in MAIN.items() for name in names}
    assert wanted <= {example.name for example in EXAMPLES}

"""Model: samples, classes by number and name, its repr, and the folder of a training run."""

import copy
import dataclasses
import json
import pickle
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from click.testing import CliRunner

import cmjax
from cmjax import cli
from cmjax.models import stored_networks
from tests.support import checkpoints

KEY = jax.random.key(0)
NAMES = ("cats", "dogs")


def model(**changes):
    return dataclasses.replace(checkpoints.model(), **changes)


def test_samples_are_those_of_the_loop():
    expected = cmjax.sample(
        KEY,
        model().apply_fn,
        model().params,
        model().scheduler,
        (5, 4, 4, 1),
        timesteps=[22, 0],
        cond={"class_labels": jnp.array([1, 0, 1, 0, 1])},
    )
    found = model().sample(KEY, 5, labels=[1, 0], timesteps=[22, 0])
    np.testing.assert_array_equal(found, expected)
    assert found.shape == (5, 4, 4, 1) and np.abs(found).max() <= 1
    # A later part of the same samples, with their classes.
    part = model().sample(KEY, 2, labels=[1, 0], timesteps=[22, 0], first_index=3)
    np.testing.assert_allclose(part, expected[3:], atol=1e-6)


def test_labels_and_what_they_mean():
    def made(**options):
        return model(class_names=NAMES).sample(KEY, 4, **options)

    chex.assert_trees_all_equal(made(), made(labels=[0, 1]))
    chex.assert_trees_all_equal(made(labels="dogs"), made(labels=1), made(labels=["dogs"]))
    chex.assert_trees_all_equal(
        made(labels=np.array([1, 0])), made(labels=["dogs", "cats"])
    )
    chex.assert_trees_all_equal(made(labels=jnp.array(1)), made(labels=1))
    cond = {"class_labels": jnp.ones(4, jnp.int32)}
    chex.assert_trees_all_equal(made(cond=cond), made(labels=1))
    assert not np.array_equal(made(labels=0), made(labels=1))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (2, "labels: the model's classes are 0..1, got 2"),
        ([0, -1], "labels: the model's classes are 0..1, got -1"),
        ([0.5], "labels: .* got 0.5"),
        ("cat", "labels: there is no class 'cat'; did you mean 'cats'"),
        ([], "labels: give at least one class"),
    ],
)
def test_labels_that_the_model_does_not_have(labels, message):
    with pytest.raises(ValueError, match=message):
        model(class_names=NAMES).sample(KEY, 1, labels=labels)


def test_other_misuse_of_sample():
    with pytest.raises(ValueError, match="the model's classes have no names"):
        model().sample(KEY, 1, labels="cats")
    with pytest.raises(ValueError, match="labels.*exclude each other"):
        model().sample(KEY, 1, labels=0, cond={"class_labels": jnp.zeros(1, jnp.int32)})
    with pytest.raises(ValueError, match="num must be a positive integer, got 0"):
        model().sample(KEY, 0)
    with pytest.raises(ValueError, match="labels: pass traced labels as cond"):
        jax.jit(lambda labels: model().sample(KEY, 2, labels=labels))(
            jnp.zeros(2, jnp.int32)
        )
    bare = model(config=dataclasses.replace(checkpoints.CONFIG, num_class_embeds=None))
    with pytest.raises(ValueError, match="labels: the model has no classes"):
        bare.sample(KEY, 1, labels=0)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("cats",), "class_names has 1 names for 2 classes"),
        (("cats", "cats"), "class_names has the name 'cats' 2 times"),
        (["cats", "dogs"], "class_names must be a tuple of names"),
        (("cats", ""), "class_names must be a tuple of names"),
    ],
)
def test_class_names_that_are_none(names, message):
    with pytest.raises(ValueError, match=message):
        model(class_names=names)


def test_repr_is_one_screen():
    text = repr(model(class_names=NAMES))
    count = sum(leaf.size for leaf in jax.tree.leaves(model().params))
    assert f"UNet2D, {count:,} parameters, float32" in text
    assert (
        "4x4x1, 2 classes (cats, dogs)" in text and "CMStochasticIterativeScheduler" in text
    )
    assert len(text.splitlines()) <= 10 and len(text) < 1000
    assert "float32" in repr(jax.eval_shape(lambda m: m, model()))  # without arrays too
    assert "no arrays" in repr(cmjax.Model(lambda p, x, t: x, {}, model().scheduler, None))


def test_class_names_travel_with_the_model(tmp_path):
    named = model(class_names=NAMES)
    cmjax.save(tmp_path / "m", named)
    cmjax.save(tmp_path / "d", cmjax.load(tmp_path / "m"), to="diffusers")
    for folder in ("m", "d"):
        loaded = cmjax.load(tmp_path / folder)
        assert loaded.class_names == NAMES and loaded.config == named.config
        assert loaded.class_name(1) == "dogs"
    cmjax.save(tmp_path / "m", dataclasses.replace(named, class_names=None))
    assert cmjax.load(tmp_path / "m").class_names is None
    assert model().class_name(1) == "1"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('["cats"]', "has 1 names for 2 classes"),
        ('{"cats": 0}', "must be a tuple of names"),
        ("[", "is not JSON"),
    ],
)
def test_damaged_class_names(tmp_path, content, message):
    cmjax.save(tmp_path / "m", model())
    (tmp_path / "m" / "class_names.json").write_text(content)
    with pytest.raises(ValueError, match=f"class_names.json.*{message}"):
        cmjax.load(tmp_path / "m")


def test_the_folder_of_a_training_run(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"run": {}, "loss": {"name": "cd"}}))
    with pytest.raises(
        ValueError, match="a training run that has not saved its first model"
    ):
        cmjax.load(tmp_path)
    cmjax.save(tmp_path / "model", model())
    chex.assert_trees_all_equal(cmjax.load(tmp_path).params, model().params)

    # Its checkpoints are no models, and lie beside one.
    state = tmp_path / "checkpoints" / "500" / "default"
    state.mkdir(parents=True)
    for folder in (state, state.parent, state.parent.parent):
        with pytest.raises(ValueError, match=f"give the folder of the run, {tmp_path}$"):
            cmjax.load(folder)


def test_info_names_the_classes(tmp_path):
    cmjax.save(tmp_path / "m", model(class_names=NAMES))
    result = CliRunner().invoke(cli.main, ["info", str(tmp_path / "m")])
    assert "4x4x1, 2 classes (cats, dogs)" in result.output, result.output


@pytest.mark.parametrize(
    ("labels", "names", "indices"),
    [
        (["1", "0"], None, [1, 0]),
        (["dogs", "0"], NAMES, [1, 0]),
        (["10", "3"], ("0", "10", "2", "3"), [1, 3]),  # a name comes before a number
        (None, NAMES, [0, 1]),
    ],
)
def test_labels_of_the_command_line(labels, names, indices):
    count = len(names or NAMES)
    assert cli.checks.check_labels(labels, count, names) == indices


def test_indices_and_numbers_of_samples():
    last = 2**32 - 1
    made = model().sample(KEY, 1, labels=[1, 0], first_index=last)
    expected = model().sample(jax.random.fold_in(KEY, last)[None], 1, labels=[0])
    np.testing.assert_array_equal(made, expected)
    for index in (-1, 2**32, 2.7, np.nan, True, "3"):
        with pytest.raises(ValueError, match="first_index must be"):
            model().sample(KEY, 1, first_index=index)
    with pytest.raises(ValueError, match="first_index 4294967295 leaves 1 of 2.32 samples"):
        model().sample(KEY, 2, first_index=last)
    for index in (-1, 2, True, 0.5, "cats", None):
        with pytest.raises(ValueError, match="index must be an integer from 0 to 1"):
            model(class_names=NAMES).class_name(index)


@pytest.mark.parametrize("labels", [b"\x01", {0}, np.array([[0, 1]]), [None], jnp.ones(1)])
def test_labels_of_other_kinds(labels):
    with pytest.raises(ValueError, match="labels"):
        model().sample(KEY, 1, labels=labels)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"apply_fn": None}, "apply_fn must be a function"),
        ({"scheduler": cmjax.DDIMScheduler}, "scheduler must be a scheduler, such as"),
        ({"scheduler": None}, "scheduler must be a scheduler, such as"),
        ({"scheduler": "LCMScheduler"}, r"such as cmjax.LCMScheduler\(\), got 'LCM"),
    ],
)
def test_models_of_other_kinds(changes, message):
    with pytest.raises(ValueError, match=message):
        model(**changes)


def test_another_scheduler_for_one_call_says_how():
    with pytest.raises(TypeError, match=r"call model.with_scheduler\(scheduler\)"):
        model().sample(KEY, 1, scheduler=cmjax.LCMScheduler())


def module_level_network(params, x, t):
    return params * x


class SpecialModel(cmjax.Model):
    """A model of the user's own kind."""


def test_loaded_models_are_pickled(tmp_path):
    # Each is the same function, adapted or not: other processes make it of the config.
    loaded = cmjax.load()
    adapted = loaded.with_scheduler(cmjax.EulerDiscreteScheduler())
    for one in (loaded, adapted):
        again = pickle.loads(pickle.dumps(one))
        assert jax.tree.structure(again) == jax.tree.structure(one)
        chex.assert_trees_all_equal(again.params, one.params)

    # Also after many others, or if the same config was read before. Another kind of model says so.
    equal = dataclasses.replace(loaded, config=dataclasses.replace(loaded.config))
    stored_networks._network_of.cache_clear()
    pickle.dumps(equal)
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(SpecialModel(**dict(vars(loaded))))

    # The pickle holds no function, so that a process that was started anew can read it.
    (tmp_path / "model.pickle").write_bytes(pickle.dumps(adapted))
    code = (
        "import pickle, sys, jax; model = pickle.load(open(sys.argv[1], 'rb'));"
        "print(model.sample(jax.random.key(0), 1, num_inference_steps=2).sum())"
    )
    started = [sys.executable, "-c", code, str(tmp_path / "model.pickle")]
    result = subprocess.run(started, capture_output=True, text=True, check=True)
    expected = adapted.sample(jax.random.key(0), 1, num_inference_steps=2).sum()
    np.testing.assert_allclose(float(result.stdout), expected, rtol=1e-4)


def test_pickles_and_copies():
    with pytest.raises(
        TypeError, match="model cannot be pickled, because apply_fn .* by cmjax.save"
    ):
        pickle.dumps(model())
    named = model(apply_fn=module_level_network, params=np.ones(2), config=None)
    again = pickle.loads(pickle.dumps(named))
    assert again.apply_fn is module_level_network and again.scheduler == named.scheduler

    copied = copy.deepcopy(model())
    assert copied.apply_fn is model().apply_fn and copied.config == model().config
    chex.assert_trees_all_equal(copied.params, model().params)
    assert copy.deepcopy(named).params is not named.params
    assert copy.copy(named).params is named.params


def test_equal_configs_share_a_network_and_its_compiled_programs(tmp_path):
    # The next checkpoint of a run, or the same model in a cell that runs again.
    for name in ("a", "b"):
        cmjax.save(tmp_path / name, model())
    one = cmjax.load(tmp_path / "a")
    assert one.apply_fn is cmjax.load(tmp_path / "b", dtype=jnp.bfloat16).apply_fn

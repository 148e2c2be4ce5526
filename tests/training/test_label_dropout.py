"""Labels that become the null class for some samples of each step."""

import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from click.testing import CliRunner

import cmjax
from cmjax import cli
from cmjax.conditioning import without_some
from cmjax.training import config, setup, trainer
from tests.support.networks import tiny_model
from tests.support.training import TINY_TOML

B = 4096
NULL = {"class_labels": 3}
LABELS = np.arange(B, dtype=np.int32) % 3
BATCH = {"data": np.zeros((B, 2), np.float32), "class_labels": LABELS}
OPTIMIZER = optax.sgd(0.1)


@pytest.fixture(autouse=True)
def standard_promotion():
    """Optax mixes dtypes."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def network(params, x, t, class_labels):
    return params[class_labels][:, None] * x


def seen(key, apply_fn, params, frozen, batch, step):
    """A loss that says what labels it got: the share of the null, and a sum over all samples."""
    labels = batch["class_labels"]
    weights = jnp.arange(len(labels)).astype(jnp.float32)
    metrics = {
        "share": (labels == 3).mean(),
        "where": ((labels == 3) * weights).sum() / len(labels),
        "kept": jnp.where(labels == 3, True, labels == jnp.arange(len(labels)) % 3).all(),
    }
    return (params**2).sum(), jax.tree.map(lambda m: m.astype(jnp.float32), metrics)


def steps(**options):
    train_step = trainer.make_train_step(seen, network, OPTIMIZER, **options)
    state = train_step.init(jax.random.key(0), jnp.ones(4))
    made = []
    for _ in range(2):
        state, metrics = train_step(state, BATCH)
        made.append({name: float(value) for name, value in metrics.items()})
    return made


def test_the_share_is_drawn_anew_at_every_step_whatever_the_devices():
    first, second = steps(label_dropout=0.2, null=NULL)

    # Six standard deviations of a share of 4,096 draws.
    for metrics in (first, second):
        assert abs(metrics["share"] - 0.2) < 6 * np.sqrt(0.2 * 0.8 / B)
        assert metrics["kept"] == 1
    assert first["where"] != second["where"]
    mesh = trainer.data_mesh(jax.devices()[:2])
    assert steps(label_dropout=0.2, null=NULL, mesh=mesh)[1]["where"] == second["where"]


def test_without_a_share_nothing_is_dropped():
    for options in ({}, {"label_dropout": 0.0, "null": NULL}):
        assert steps(**options)[0]["share"] == 0


def test_labels_that_are_not_there():
    with pytest.raises(ValueError, match=r"null replaces \['class_labels'\], of which the"):
        without_some(jax.random.key(0), {"class_labels": None}, NULL, 0.5)


def test_parts_of_a_batch_drop_labels_of_their_own():
    metrics = steps(label_dropout=0.2, null=NULL, accumulate=2)[0]
    assert abs(metrics["share"] - 0.2) < 6 * np.sqrt(0.2 * 0.8 / B)


def test_any_conditioning_of_a_sample_is_dropped_together():
    cond = {
        "text": {"a": jnp.ones((B, 3)), "b": jnp.ones(B, jnp.bfloat16)},
        "class_labels": jnp.asarray(LABELS),
        "kept": jnp.ones(B),
    }
    made = without_some(jax.random.key(0), cond, {**NULL, "text": 0}, 0.3)
    dropped = np.asarray(made["class_labels"]) == 3
    np.testing.assert_array_equal(made["text"]["a"], np.repeat(~dropped, 3).reshape(B, 3))
    np.testing.assert_array_equal(made["text"]["b"] == 0, dropped)
    np.testing.assert_array_equal(made["kept"], cond["kept"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_dropout": 0.1}, "label_dropout needs null"),
        (
            {"label_dropout": 1.0, "null": NULL},
            r"label_dropout must be a number in \[0, 1\)",
        ),
        ({"label_dropout": -0.1, "null": NULL}, "label_dropout must be a number"),
        ({"label_dropout": np.nan, "null": NULL}, "label_dropout must be a number"),
        ({"label_dropout": 0.1, "null": {}}, "null must map names"),
        ({"label_dropout": 0.1, "null": {"a": None}}, "null must have values"),
    ],
)
def test_misuse(options, message):
    with pytest.raises(ValueError, match=message):
        trainer.make_train_step(seen, network, OPTIMIZER, **options)


def test_names_that_the_batch_does_not_have():
    with pytest.raises(ValueError, match="null has 'label', but cond has"):
        steps(label_dropout=0.1, null={"label": 3})


@pytest.fixture
def train(tmp_path):
    """Runs `cmjax train` on a few pictures."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 8, 8), np.uint8)
    np.savez(tmp_path / "d.npz", images=images, labels=np.arange(40) % 3)
    source = f'[data]\nsource = "{tmp_path / "d.npz"}"\n'
    (tmp_path / "a.toml").write_text(TINY_TOML + source)

    def train(out, *settings):
        options = [part for setting in settings for part in ("--set", setting)]
        arguments = ["train", str(tmp_path / "a.toml"), "--out", str(tmp_path / out)]
        return CliRunner().invoke(cli.main, [*arguments, *options])

    return train


def test_a_run_needs_a_null_class(train):
    result = train("run", "run.label_dropout=0.1")
    assert result.exit_code == 2
    assert "set network.null_class=true" in result.stderr
    result = train("run", "run.label_dropout=1")
    assert "run.label_dropout must be at least 0 and below 1" in result.stderr


@pytest.mark.thorough
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(train, tmp_path):
    settings = ("network.null_class=true", "run.label_dropout=0.3", "run.sample_every=0")
    assert train("straight", *settings).exit_code == 0
    assert train("plain", settings[0], settings[2]).exit_code == 0

    # Without the checkpoint of the last step, the run goes on from the third.
    assert train("parts", *settings).exit_code == 0
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "6")
    shutil.rmtree(tmp_path / "parts" / "model")
    assert train("parts", *settings).exit_code == 0
    straight, parts, plain = (
        cmjax.load(tmp_path / name / "model") for name in ("straight", "parts", "plain")
    )
    assert straight.null_class == 3
    for one, other in zip(
        jax.tree.leaves(straight.params), jax.tree.leaves(parts.params), strict=True
    ):
        np.testing.assert_array_equal(one, other)

    # The row of the null class is learned.
    row = straight.params["class_embedding"]["embedding"][3]
    assert abs(row - plain.params["class_embedding"]["embedding"][3]).max() > 1e-5


def test_a_teacher_is_guided_in_one_way(train):
    def refused(message, *settings):
        result = train("run", *settings)
        assert result.exit_code == 2
        assert message in result.stderr

    refused("exclude each other", "teacher.null_class=true", "teacher.weak_model=a")
    refused("needs teacher.null_class", "teacher.guidance_interval=[0.2,2]")
    interval = "teacher.guidance_interval=[2,1]"
    refused("must be noise levels", "teacher.null_class=true", interval)
    refused(
        "must be noise levels", "teacher.null_class=true", "teacher.guidance_interval=[2]"
    )


def test_a_guided_teacher_of_a_run(tmp_path):
    # The network of the student is the teacher's, whose guidance the loss alone sees.
    model = tiny_model(3, null_class=True)
    cmjax.save(tmp_path / "teacher", model)
    np.savez(
        tmp_path / "d.npz", images=np.zeros((4, 8, 8), np.uint8), labels=np.arange(4) % 3
    )

    def run_of(**teacher):
        sections = {
            "loss": {"name": "cd"},
            "data": {"source": str(tmp_path / "d.npz")},
            "teacher": teacher,
            "run": {"init": str(tmp_path / "teacher"), "batch_size": 8},
        }
        return setup.make_run(config.from_values(sections))

    guided = run_of(null_class=True, guidance=3.0, guidance_interval=[0.1, 2.0])
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 1)), jnp.float32)
    times = cmjax.CMStochasticIterativeScheduler().parametrization.time(
        jnp.array([1.0, 20.0])
    )
    teacher_fn: Any = vars(guided.train_step.loss)["teacher_fn"]
    made = teacher_fn(guided.train_step.teacher, x, times, class_labels=jnp.array([0, 1]))

    def of(labels):
        return model.apply_fn(model.params, x, times, class_labels=jnp.array(labels))

    plain, without = of([0, 1]), of([3, 3])
    np.testing.assert_allclose(made[0], (without + 3 * (plain - without))[0], atol=1e-5)
    np.testing.assert_allclose(made[1], plain[1], atol=1e-6)
    cmjax.save(tmp_path / "teacher", tiny_model(3))
    with pytest.raises(ValueError, match="teacher.null_class: the teacher has none"):
        run_of(null_class=True)

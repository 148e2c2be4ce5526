"""Runs whose loss does not go with their network: refused, where training would show nothing."""

import dataclasses

import jax
import numpy as np
import pytest

from cmjax.images import save_png_folder
from cmjax.training import config, reports, setup
from cmjax.training.first_model import first_model
from cmjax.training.teachers import load_teacher
from tests.support import networks

NETWORK = {
    "class": "PixelMeanFlow",
    "sample_size": 4,
    "in_channels": 1,
    "patch_size": 2,
    "bottleneck_channels": 4,
    "num_layers": 1,
    "num_attention_heads": 1,
    "attention_head_dim": 4,
    "mlp_channels": 4,
    "num_class_embeds": 3,
    "context_tokens": [1, 1, 1, 1, 1],
}


def sections(tmp_path, network=None, loss=None, run=None, layers=0):
    """A configuration of a run on a few images of three classes."""
    file = tmp_path / "d.npz"
    images = np.zeros((8, 4, 4, 1), np.uint8)
    np.savez(file, images=images, labels=np.arange(8) % 3)
    return {
        "network": network or {**NETWORK, "second_head_layers": layers},
        "scheduler": {"class": "FlowMapEulerDiscreteScheduler"},
        "loss": {"name": "imf", **(loss or {})},
        "data": {"source": str(file)},
        "run": {"batch_size": 8, **(run or {})},
    }


@pytest.mark.parametrize(
    ("layers", "loss", "message"),
    [
        (0, {"null_class": 1}, "loss.null_class 1 .* set loss.null_class=3"),
        (1, {}, "second_head_layers 1 .* set loss.second_head=true"),
        (0, {"second_head": True}, "loss.second_head .* set network.second_head_layers"),
        (0, {}, r"loss.shortest_time 0.0 is not that .* set loss.shortest_time=0.05"),
        (0, {"shortest_time": 0.1}, "loss.shortest_time 0.1 is not that of the network"),
    ],
)
def test_a_loss_that_does_not_go_with_the_network(tmp_path, layers, loss, message):
    values = sections(tmp_path, loss=loss, layers=layers)
    with pytest.raises(ValueError, match=message):
        setup.make_run(config.from_values(values))


DIT = {
    "class": "DiT",
    "sample_size": 4,
    "in_channels": 1,
    "out_channels": 1,
    "num_layers": 1,
    "num_attention_heads": 1,
    "num_class_embeds": 3,
    "second_time": "span",
    "time_scale": 0.01,
}
GUIDED = {"name": "mean_flow", "kappa": 0.5, "null_class": 3}


@pytest.mark.parametrize("loss", [GUIDED, {"largest_scale": 8.0, "null_class": 2}])
@pytest.mark.parametrize("changes", [{}, {"num_class_embeds": None}])
def test_guidance_inside_needs_a_null_class(tmp_path, loss, changes):
    network = {name: x for name, x in (DIT | changes).items() if x is not None}
    values = sections(tmp_path, network=network, loss=loss)
    with pytest.raises(
        ValueError, match="set network.null_class=true and run.label_dropout"
    ):
        setup.make_run(config.from_values(values))


SCALED = {"largest_scale": 8.0, "null_class": 3, "shortest_time": 0.05}
WITH_NULL = {**DIT, "null_class": True}


@pytest.mark.parametrize(
    ("network", "loss", "dropout", "message"),
    [
        (WITH_NULL, GUIDED, 0.0, "loss.kappa guides by samples without a class"),
        (WITH_NULL, GUIDED, 0.1, None),
        (NETWORK, SCALED, 0.0, "loss.largest_scale guides by samples without a class"),
        (NETWORK, SCALED, 0.1, None),
        (NETWORK, {"shortest_time": 0.05}, 0.1, "this loss trains it at one scale only"),
        (WITH_NULL, {"name": "mean_flow"}, 0.0, "the null class of the network is never"),
        (WITH_NULL, {"name": "mean_flow"}, 0.1, None),
        (DIT, {"name": "mean_flow"}, 0.0, None),
    ],
)
def test_guidance_that_is_not_trained_is_said(tmp_path, network, loss, dropout, message):
    values = sections(tmp_path, network, loss, {"label_dropout": dropout})
    run = setup.make_run(config.from_values(values))
    said = reports.summarize(run, next(run.batches())).get("guidance")
    if message is None:
        assert said is None
    else:
        assert said and message in said and said.isprintable()


@pytest.mark.parametrize(
    ("loss", "scheduler", "said"),
    [
        ("ect", "EDMHeunScheduler", True),
        ("sct", "EDMHeunScheduler", True),
        ("ect", "CMStochasticIterativeScheduler", False),
        ("denoising", "EDMHeunScheduler", False),
    ],
)
def test_a_solver_for_a_consistency_model_is_said(tmp_path, loss, scheduler, said):
    network = {name: x for name, x in DIT.items() if name != "second_time"}
    values = sections(tmp_path, {**network, "time_scale": 10.0}, {"name": loss})
    values["scheduler"] = {"class": scheduler}
    run = setup.make_run(config.from_values(values))
    lines = reports.summarize(run, next(run.batches()))
    expected = "EDMHeunScheduler samples denoisers, and this loss makes a consistency model"
    assert lines.get("sampling", "").startswith(expected) == said


def test_classes_that_the_network_does_not_take_are_said(tmp_path):
    plain = {name: x for name, x in DIT.items() if name != "num_class_embeds"}
    for network, said in ((plain, True), (DIT, False)):
        values = sections(tmp_path, network, {"name": "mean_flow"})
        run = setup.make_run(config.from_values(values))
        lines = reports.summarize(run, next(run.batches()))
        assert ("classes" in lines) == said
    assert setup.unused_classes(run.model, run.source) == ""

    # A folder of pictures has names of classes, and may have more than the network.
    for name in ("cats", "dogs"):
        save_png_folder(tmp_path / "pictures" / name, np.zeros((4, 4, 4, 1), np.uint8))
    values["data"] = {"source": str(tmp_path / "pictures")}
    values["network"] = plain
    run = setup.make_run(config.from_values(values))
    said = setup.unused_classes(run.model, run.source)
    assert said.endswith("(cats, dogs); to train with them set network.num_class_embeds=2")
    values["network"] = {**DIT, "num_class_embeds": 1}
    run = setup.make_run(config.from_values(values))
    with pytest.raises(ValueError, match="2 classes, the network 1; .*embeds=2"):
        run.inspect_data()


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ({"channels": 3}, r"x makes samples of shape \(8, 8, 3\), the network \(8, 8, 1\)"),
        ({"num_classes": 2}, "x has 2 classes, the network 10"),
    ],
)
def test_a_teacher_of_other_samples(monkeypatch, teacher, message):
    """A label beyond its classes would be the last of them, without an error."""
    named = networks.tiny_model(**teacher)
    monkeypatch.setattr("cmjax.training.teachers.load_named", lambda *_: named)
    distilling = config.from_values(
        {"loss": {"name": "cd"}, "teacher": {"model": "x"}, "run": {"init": "y"}}
    )
    with pytest.raises(ValueError, match=f"teacher.model {message}"):
        load_teacher(distilling, networks.tiny_model())


def test_a_network_larger_than_the_memory(monkeypatch):
    def fail(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr("cmjax.training.first_model.key_of_seed", fail)
    described = config.from_values({"network": NETWORK})
    with pytest.raises(ValueError, match="Out of memory; make .network. smaller"):
        first_model(described)


def test_distribution_matching_begins_as_its_teacher(tmp_path, monkeypatch):
    """From random parameters it would train without an error, and hardly learn."""
    named = networks.tiny_model(num_classes=3)
    monkeypatch.setattr("cmjax.training.teachers.load_named", lambda *_: named)
    network = {"class": "DiT", **dataclasses.asdict(named.config)}
    network = {name: value for name, value in network.items() if value is not None}
    values = sections(tmp_path, network)
    np.savez(tmp_path / "d.npz", images=np.zeros((8, 8, 8, 1), np.uint8), labels=[0] * 8)
    values |= {"loss": {"name": "dmd"}, "teacher": {"model": "x"}, "scheduler": {}}
    with pytest.raises(
        ValueError, match="run.init is missing: the loss .dmd. .* set run.init=x"
    ):
        setup.make_run(config.from_values(values))

"""Configurations of training runs: what they describe, and that every mistake is named."""

from pathlib import Path

import pytest

from cmjax.training import losses
from cmjax.training.config import read_config
from cmjax.training.presets import PRESETS
from tests.support.training import TINY_TOML

ROOT = Path(__file__).parents[2]


@pytest.fixture
def toml(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text(TINY_TOML)
    return path


@pytest.mark.parametrize(
    "key, value, message",
    [
        (
            "loss.p_meen",
            1,
            "loss: Denoising has no option 'p_meen'; did you mean 'p_mean'?",
        ),
        ("loss.name", "sctt", "no loss 'sctt'; did you mean 'sct'"),
        ("loss.name", ["ct"], "no loss \\['ct'\\]"),
        ("loss.total_steps", 7, "loss.total_steps is given elsewhere; use run.steps"),
        ("loss.scheduler", {}, "use \\[scheduler\\]"),
        ("run.stepz", 1, "run has no key 'stepz'; did you mean 'steps'?"),
        ("runs.steps", 1, "no section 'runs'; did you mean 'run'?"),
        ("steps", 1, "steps must be section.key, such as run.steps"),
        ("run.steps", "many", "run.steps must be an integer, got 'many'"),
        ("run.steps", True, "run.steps must be an integer, got True"),
        ("run.steps", 0, "run.steps must be at least 1, got 0"),
        ("run.tensorboard", 1, "run.tensorboard must be true or false, got 1"),
        ("run.ema_decays", [0.9, "x"], "run.ema_decays must be a list of numbers"),
        ("run.ema_decays", 0.9, "run.ema_decays must be a list of numbers"),
        ("run.init", 3, "run.init must be a string, got 3"),
        ("run.accumulate", 3, "run.accumulate=3 does not divide run.batch_size=16"),
        ("run.dtype", "float16", "run.dtype is 'float16'"),
        (
            "network.class",
            "UNet",
            "network.class: there is no network .UNet.; did you mean .UNet2D.",
        ),
        ("network.class", ["DiT"], "network.class: "),
        (
            "network.num_layer",
            1,
            "network: .* no option 'num_layer'; did you mean 'num_layers'?",
        ),
        ("optimizer.name", "adma", "optimizer.name is 'adma'; did you mean 'adam'?"),
        ("optimizer.options", {"beta": 1.0}, "optimizer.options: .*beta"),
        ("optimizer.options", {"b2": "x"}, "optimizer.options must be a table of numbers"),
        ("optimizer.warmup_steps", -1, "from 0 to below run.steps=6, got -1"),
        ("optimizer.warmup_steps", 6, "from 0 to below run.steps=6, got 6"),
        (
            "optimizer.clip_norm",
            -1,
            "optimizer.clip_norm must be at least 0 and finite, got -1",
        ),
        ("optimizer.learning_rate", float("inf"), "must be at least 0 and finite, got inf"),
        ("scheduler.sigma_mim", 1, "scheduler: .*did you mean 'sigma_min'"),
        ("scheduler.class", "LCMScheduler", "loss: scheduler must have"),
    ],
)
def test_mistakes(toml, key, value, message):
    with pytest.raises(ValueError, match=message):
        read_config(toml, [(key, value)])


def test_what_is_no_configuration(tmp_path, toml):
    toml.write_text("[run\n")
    with pytest.raises(ValueError, match="is not TOML"):
        read_config(toml)
    toml.write_text("run = 3\n")
    with pytest.raises(ValueError, match="run must be a section, got 3"):
        read_config(toml)
    toml.write_text("[run]\nsteps = 3\n")
    with pytest.raises(ValueError, match="network is missing"):
        read_config(toml)
    with pytest.raises(
        ValueError, match="neither .* nor a preset; did you mean 'cifar10_ict'"
    ):
        read_config("cifar10_it")


def test_the_presets_are_whole_and_print_the_papers_numbers():
    for name in PRESETS:
        settings = [("data.source", "x.npz")]
        if name.endswith("_cd"):
            settings.append(("teacher.model", "t"))
        assert read_config(name, settings).network_config().sample_size in (32, 64, 256)

    ict = read_config("cifar10_ict")
    loss = ict.make_loss(ict.make_scheduler())
    assert (loss.initial_intervals, loss.final_intervals) == (10, 1280)
    assert (loss.p_mean, loss.p_std) == (-1.1, 2.0)
    assert (ict.run.batch_size, ict.run.steps, ict.run.ema_decays) == (
        1024,
        400_000,
        (0.99993,),
    )

    ct = read_config("imagenet64_ct")
    loss = ct.make_loss(ct.make_scheduler())
    assert (loss.initial_levels, loss.final_levels, loss.initial_target_decay) == (
        2,
        200,
        0.95,
    )
    assert loss.metric == losses.L2() and loss.total_steps == 800_000


def test_the_examples_are_valid(monkeypatch):
    monkeypatch.chdir(ROOT)
    files = sorted((ROOT / "examples").glob("*.toml"))
    assert len(files) >= 3
    for file in files:
        read_config(file)

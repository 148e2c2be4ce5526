"""Configurations of training runs: what they describe, and that every mistake is named."""

import dataclasses
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmjax.training import losses
from cmjax.training.config import TrainConfig, read_config
from cmjax.training.presets import PRESETS, SMALL, preset_names, preset_text
from cmjax.training.sections import DataSection, OptimizerSection, RunSection
from tests.support.training import TINY_TOML


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
        ("run.steps", 2**99, "run.steps must be at most 2147483647, got 100 bits"),
        ("run.steps", float("nan"), "run.steps must be an integer, got nan"),
        ("run.seed", -1, "run.seed must be at least 0, got -1"),
        ("run.seed", 2**32, "run.seed must be at most 4294967295"),
        ("run.accumulate", 1.5, "run.accumulate must be an integer, got 1.5"),
        ("run.sample_every", -5, "run.sample_every must be at least 0, got -5"),
        ("run.ema_decays", [1.0], "run.ema_decays must be at least 0 and below 1, got 1.0"),
        ("run.ema_decays", [0.9, 0.9], "run.ema_decays must be different numbers"),
        ("run.ema_decays", [], "run.ema_decays must be different numbers, at least one"),
        ("teacher.guidance", float("inf"), "teacher.guidance must be finite, got inf"),
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
        ("optimizer.options", {"beta_1": 1.0}, "optimizer.options has no key 'beta_1'"),
        ("optimizer.options", {"momentum": 0.9}, "optimizer.options: .*momentum"),
        (
            "optimizer.options",
            {"b2": 2.0},
            "options.b2 must be at least 0 and below 1, got",
        ),
        ("optimizer.options", {"eps": -1.0}, "options.eps must be at least 0 and finite"),
        ("optimizer.options", {"b1": float("nan")}, "options.b1 must be .*, got nan"),
        ("optimizer.options", {"b2": "x"}, "optimizer.options must be a table of numbers"),
        ("optimizer.warmup_steps", -1, "warmup_steps must be at least 0, got -1"),
        ("optimizer.warmup_steps", 6, "warmup_steps must be below 6, .* got 6"),
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


@pytest.mark.parametrize(
    "section, values, message",
    [
        (RunSection, {"steps": "x"}, "run.steps must be an integer, got 'x'"),
        (RunSection, {"ema_decays": 0.99}, "run.ema_decays must be a list of numbers"),
        (RunSection, {"batch_size": None}, "run.batch_size must be an integer, got None"),
        (
            OptimizerSection,
            {"options": [1]},
            "optimizer.options must be a table of numbers",
        ),
        (OptimizerSection, {"name": 3}, "optimizer.name must be a string, got 3"),
        (DataSection, {"flip": 1}, "data.flip must be true or false, got 1"),
        (TrainConfig, {"run": {"steps": 3}}, "run must be a RunSection, got .*from_values"),
        (TrainConfig, {"loss": "ct"}, "loss must be a Mapping, got 'ct'"),
    ],
)
def test_values_are_checked_however_a_section_is_made(section, values, message):
    with pytest.raises(ValueError, match=message):
        section(**values)


def test_numbers_of_numpy_are_those_of_a_file(toml):
    section = RunSection(steps=np.int64(3), ema_decays=[np.float32(0.5)])
    assert section == RunSection(steps=3, ema_decays=(0.5,))
    config = read_config(toml, [("loss.p_std", np.float32(1.5))])
    assert config.to_json()["loss"]["p_std"] == 1.5


def test_toml_is_utf8_whatever_the_locale_and_its_mark_is_no_part_of_it(toml):
    text = toml.read_text() + '[data]\nsource = "Bücher.npz"\n'
    for content in (text, text.replace("\n", "\r\n"), f"\ufeff{text}"):
        toml.write_bytes(content.encode())
        assert Path(read_config(toml).data.source).name == "Bücher.npz"
    toml.write_bytes(text.encode("utf-16"))  # with a mark, as of PowerShell
    assert Path(read_config(toml).data.source).name == "Bücher.npz"
    toml.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match="a.toml is not TOML: 'utf-8' codec"):
        read_config(toml)
    toml.write_text(f"a = {'[' * 20_000}")
    with pytest.raises(ValueError, match="a.toml is not TOML: "):
        read_config(toml)


def test_the_ending_may_be_in_capitals(toml):
    assert read_config(toml.rename(toml.with_suffix(".TOML"))).run.steps == 6


def test_a_scheduler_may_be_named_as_in_the_files_of_diffusers(toml):
    config = read_config(toml, [("scheduler._class_name", "EDMEulerScheduler")])
    assert type(config.make_scheduler()).__name__ == "EDMEulerScheduler"
    with pytest.raises(ValueError, match="scheduler.class and .* exclude each other"):
        read_config(toml, [("scheduler._class_name", "x"), ("scheduler.class", "y")])


def test_what_is_no_file_is_no_configuration(tmp_path):
    pipe = tmp_path / "pipe.toml"
    os.mkfifo(pipe)
    (tmp_path / "endless.toml").symlink_to("/dev/zero")
    for path in (pipe, tmp_path / "endless.toml"):
        with pytest.raises(ValueError, match="toml is .*not a regular file"):
            read_config(path)


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
        if name.endswith(("_cd", "_dmd")):
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

    mean_flow = read_config("cifar10_mean_flow")
    loss = mean_flow.make_loss(mean_flow.make_scheduler())
    assert (loss.p_mean, loss.p_std, loss.instant_fraction, loss.norm_p) == (
        -2.0,
        2.0,
        0.25,
        0.75,
    )

    ct = read_config("imagenet64_ct")
    loss = ct.make_loss(ct.make_scheduler())
    assert (loss.initial_levels, loss.final_levels, loss.initial_target_decay) == (
        2,
        200,
        0.95,
    )
    assert loss.metric == losses.L2() and loss.total_steps == 800_000


def test_a_warm_up_must_end_within_the_turns_of_the_network():
    # The network of dmd is trained at every fifth step: 60 times, in a warm-up of 71 updates.
    settings = [("data.source", "x.npz"), ("run.init", "t"), ("run.steps", 300)]
    with pytest.raises(ValueError, match="warmup_steps must be below 60, .* got 71"):
        read_config("imagenet64_dmd", settings)


def test_the_small_presets_are_whole():
    for name in SMALL:
        config = read_config(name)
        assert config.network_config() is not None or config.run.init, name
    assert read_config("pictures").data.source == "pictures"

    # That of Pixel MeanFlow: Muon for matrices, and Adam with its own options for the others.
    config = read_config("digits_pixel_mean_flow")
    optimizer = config.make_optimizer(config.make_loss(config.make_scheduler()))
    params = {"matrix": jnp.ones((4, 3)), "bias": jnp.ones(3)}
    state = optimizer.init(params)
    with jax.numpy_dtype_promotion("standard"):  # as in a training step
        updates, _ = optimizer.update(params, state, params)
    assert all(jnp.all(leaf < 0) for leaf in jax.tree.leaves(updates))


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_in_a_file_describes_the_same_run(tmp_path, name, monkeypatch):
    settings = [("teacher.model", "t")]
    (tmp_path / "my.toml").write_text(preset_text(name))
    monkeypatch.chdir(tmp_path)
    assert read_config("my.toml", settings) == read_config(name, settings)


def test_paths_in_a_file_are_relative_to_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "configs"
    (folder / "teacher").mkdir(parents=True)
    text = '[data]\nsource = "d.npz"\n[teacher]\nmodel = "teacher"\n'
    text += f'weak_model = "{tmp_path}/weak"\n[run]\ninit = "owner/name"\n'
    (folder / "a.toml").write_text(text)

    # What the folder does not hold may be a model on a hub; absolute paths stay.
    config = read_config("configs/a.toml")
    assert config.data.source == str(Path("configs", "d.npz"))
    assert config.teacher.model == str(Path("configs", "teacher"))
    assert config.teacher.weak_model == f"{tmp_path}/weak"
    assert config.run.init == "owner/name"

    # A model of the same name where the command runs is another one.
    (tmp_path / "owner" / "name").mkdir(parents=True)
    with pytest.raises(
        ValueError, match=r"run.init: there is no configs/owner/name, .* write "
    ):
        read_config("configs/a.toml")
    (tmp_path / "owner" / "name").rmdir()

    # Those of the command line are relative to where it runs.
    (folder / "b.toml").write_text(text.replace("d.npz", "~/d.npz"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert read_config("configs/b.toml").data.source == str(tmp_path / "home" / "d.npz")
    changed = read_config("configs/a.toml", [("data.source", "e.npz")])
    assert changed.data.source == "e.npz"
    monkeypatch.chdir(folder)
    assert read_config("a.toml").data.source == "d.npz"


def test_options_that_are_left_out_have_the_defaults_of_their_class(toml):
    # A copied file of diffusers that lacks them means diffusers' defaults.
    assert read_config(toml).make_scheduler().timestep_spacing == "linspace"
    copied = {"_class_name": "CMStochasticIterativeScheduler", "sigma_max": 80.0}
    config = dataclasses.replace(read_config(toml), scheduler=copied)
    assert config.make_scheduler().timestep_spacing == "leading"

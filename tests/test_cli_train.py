"""`cmjax train`: what it makes, that it resumes where it stopped, and that a misuse is one line."""

import contextlib
import csv
import dataclasses
import os
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

import jax
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import cmjax
from cmjax import cli
from cmjax.models.registry import architecture
from cmjax.training import config as configs
from cmjax.training import reports, setup, trainer
from cmjax.training import run as runs
from cmjax.training.losses import LOSSES
from tests.support import own
from tests.support.cli import assert_one_line
from tests.support.flow_maps import SCHEDULERS
from tests.support.training import TINY_TOML

ROOT = Path(__file__).parent.parent
UNET = """
class = "UNet2D"
sample_size = 8
in_channels = 1
out_channels = 1
block_out_channels = [8]
down_block_types = ["DownBlock2D"]
up_block_types = ["UpBlock2D"]
layers_per_block = 1
norm_num_groups = 4
attention_head_dim = 4
time_scale = 0.01
num_class_embeds = 3
"""


@pytest.fixture(autouse=True)
def standard_promotion():
    """Optax's Adam itself mixes dtypes."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(autouse=True)
def two_devices(monkeypatch):
    """Eight simulated devices on few cores take their time; test_trainer.py compares all counts."""
    monkeypatch.setattr(setup, "data_mesh", lambda: trainer.data_mesh(jax.devices()[:2]))


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (40, 8, 8), np.uint8), np.arange(40) % 3
    np.savez(tmp_path / "d.npz", images=images, labels=labels)
    (tmp_path / "a.toml").write_text(
        TINY_TOML + f'[data]\nsource = "{tmp_path / "d.npz"}"\n'
    )
    return tmp_path


def changes(*settings):
    """Options that set keys of the configuration, given as "section.key=value"."""
    return [part for setting in settings for part in ("--set", setting)]


def invoke(folder, *options, config="a.toml"):
    path = str(folder / config) if config.endswith(".toml") else config
    return CliRunner().invoke(cli.main, ["train", path, *map(str, options)])


def ok(folder, *options, **kwargs):
    result = invoke(folder, *options, **kwargs)
    assert result.exit_code == 0, result.output
    return result


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def leaves(path):
    return jax.tree.leaves(cmjax.load(path).params)


def assert_same_model(path, other):
    for a, b in zip(leaves(path), leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


def test_it_trains_draws_logs_and_resumes_to_the_same_end(folder):
    straight, parts = folder / "straight", folder / "parts"
    decays = changes("run.ema_decays=[0.9,0.1]")
    output = ok(folder, "--out", straight, *decays).output
    assert f"cmjax sample --model {straight / 'model'}" in output
    with Image.open(straight / "samples_000006.png") as picture:
        # A row of ten, with captions of the classes and a line above.
        assert picture.size == (10 * 68 + 4, 16 + 68 + 16 + 4)
    assert (straight / "samples_000002.png").exists()  # an early one
    assert [row["step"] for row in rows(straight / "metrics.csv")] == ["2", "3", "4", "6"]
    assert cmjax.load(straight / "model").num_classes == 3
    assert not np.array_equal(
        leaves(straight / "model")[0], leaves(straight / "model_0.1")[0]
    )

    # A run that was killed after its checkpoint of step 3.
    ok(folder, "--out", parts, *decays)
    (parts / "checkpoints" / "6").rename(folder / "gone")

    # A spreadsheet puts a mark in front of what it saves, and its user moves columns.
    metrics = parts / "metrics.csv"
    moved = [",".join(line.split(",")[::-1]) for line in metrics.read_text().split()]
    metrics.write_text("\n".join(moved) + "\n", encoding="utf-8-sig")
    ok(folder, "--out", parts, *decays, *changes("run.log_every=2"))
    assert rows(parts / "metrics.csv") == rows(straight / "metrics.csv")
    assert_same_model(straight / "model", parts / "model")
    again = ok(folder, "--out", parts, *decays)
    assert "Finished before: all 6 steps were done already." in again.stderr


def test_sampling_says_that_the_model_is_a_denoiser(folder):
    out = folder / "out"
    ok(folder, "--out", out, *changes("run.steps=1"))

    # Whatever names it: the run, its model, and not once a solver samples it.
    for model, options, said in (
        (out, [], True),
        (out / "model", [], True),
        (out, ["--scheduler", "EDMHeunScheduler", "--steps", "2"], False),
        (out, ["--quiet"], False),
    ):
        args = ["sample", "--model", model, "--num", "1", "--out", folder / "s.png"]
        result = CliRunner().invoke(cli.main, [*map(str, args), *options])
        assert result.exit_code == 0, result.output
        assert ("trained as a denoiser" in result.stderr) == said


def test_a_picture_that_a_kill_prevented_is_drawn_on_resuming(folder):
    out = folder / "out"
    options = ["--out", out, *changes("run.sample_every=3")]
    ok(folder, *options)
    middle = out / "samples_000003.png"
    last = out / "samples_000006.png"
    expected = [middle.read_bytes(), last.read_bytes()]

    # Killed after the last checkpoint, and after the one of step 3.
    last.unlink()
    ok(folder, *options)
    assert last.read_bytes() == expected[1]
    middle.unlink()
    (out / "checkpoints" / "6").rename(folder / "gone")
    ok(folder, *options)
    assert [middle.read_bytes(), last.read_bytes()] == expected


def test_a_signal_saves_and_the_same_command_resumes(folder, monkeypatch):
    """In this process; further down, in processes of their own."""
    straight, parts = folder / "straight", folder / "parts"
    ok(folder, "--out", straight)
    write = reports.MetricsFile.write

    def interrupting(self, step, values):
        write(self, step, values)
        if step == 2:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(reports.MetricsFile, "write", interrupting)
    stopped = invoke(folder, "--out", parts)
    assert stopped.exit_code == 130
    assert "Stopped after step 3 of 6, which is saved; run the same" in stopped.stderr
    assert [path.name for path in (parts / "checkpoints").iterdir()] == ["3"]
    ok(folder, "--out", parts)
    assert_same_model(straight / "model", parts / "model")


OF_LOSSES = {  # what a run with that loss tries besides
    "cd": ["run.accumulate=2"],
    "dmd": ["loss.fake_steps=1"],
    "ect": ["run.dtype=bfloat16"],
}


@pytest.fixture
def smallest(folder, monkeypatch):
    """The folder with a configuration of the smallest network, and data for it."""
    own.install(folder, monkeypatch)
    cmjax.register(*architecture("mypkg.nets:MyNet"))  # runs start from its checkpoints
    values = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    np.savez(folder / "d.npz", images=values)
    text = (folder / "a.toml").read_text()
    network = '[network]\nclass = "mypkg.nets:MyNet"\n'
    (folder / "a.toml").write_text(network + text[text.index("[loss]") :])
    yield folder
    own.forget()


@pytest.mark.thorough
def test_every_loss_trains(smallest):
    # Each loss compiles a step of its own; other tests train networks of the library.
    folder = smallest
    ok(folder, "--out", folder / "first", *changes("run.steps=1", "run.sample_every=0"))
    teacher = str(folder / "first" / "model")
    for name in [name for name in LOSSES if name != "denoising"]:
        settings = [f"loss.name={name}", "run.steps=1", "run.sample_every=0"]
        # Those of flow matching are for other networks: they start anew.
        if name in SCHEDULERS:
            settings.append(f"scheduler.class={type(SCHEDULERS[name]).__name__}")
        if name not in SCHEDULERS or name == "ctm":
            settings.append(f"run.init={teacher}")
        settings += OF_LOSSES.get(name, [])
        if name == "cd":
            settings.append(f"teacher.weak_model={teacher}")
        ok(folder, "--out", folder / name, *changes(*settings))
        assert all(np.isfinite(leaf).all() for leaf in leaves(folder / name / "model"))


@pytest.mark.thorough
def test_a_unet_trains(folder):
    text = (folder / "a.toml").read_text()
    (folder / "a.toml").write_text("[network]\n" + UNET + text[text.index("[loss]") :])
    ok(folder, "--out", folder / "out", *changes("run.sample_every=0", "run.steps=1"))
    assert type(cmjax.load(folder / "out" / "model").config).__name__ == "UNet2DConfig"


OWN_LOSS = '''
import dataclasses
from typing import Any
import jax.numpy as jnp
from cmjax.training.losses import Loss

@dataclasses.dataclass(frozen=True)
class Own(Loss):
    """Pulls every parameter to a number."""

    scheduler: Any
    number: float = 0.0

    def __call__(self, key, apply_fn, params, frozen, batch, step):
        import jax
        loss = sum(jnp.mean((leaf - self.number) ** 2) for leaf in jax.tree.leaves(params))
        return loss, {"loss": loss}
'''


@pytest.mark.thorough
def test_a_loss_of_the_users_own_trains(folder, monkeypatch):
    (folder / "own_losses.py").write_text(OWN_LOSS)
    monkeypatch.syspath_prepend(folder)
    own = changes("loss.name=own_losses:Own", "loss.number=0.5", "run.steps=1")
    output = ok(folder, "--out", folder / "out", *own, "--dry-run").output
    assert "Pulls every parameter to a number." in output
    ok(folder, "--out", folder / "out", *own)


def test_dry_run_trains_nothing(folder):
    output = ok(folder, "--out", folder / "out", "--dry-run").output
    model = setup.make_run(configs.read_config(folder / "a.toml")).model
    num_params = sum(leaf.size for leaf in jax.tree.leaves(model.params))
    assert f"{num_params:,} parameters" in output and "40 samples" in output
    assert "data float32[16, 8, 8, 1]" in output and "class_labels int32[16]" in output
    assert "GFLOP a step" in output and not (folder / "out").exists()


def test_tensorboard_files(folder):
    pytest.importorskip("tensorboardX")
    ok(folder, "--out", folder / "out", *changes("run.tensorboard=true", "run.steps=1"))
    (file,) = (folder / "out" / "tensorboard").iterdir()
    assert file.name.startswith("events")
    assert b"\x89PNG" in file.read_bytes()  # the samples of the last step


@pytest.mark.parametrize(
    "options, message",
    [
        (changes("run.steps=0"), "a.toml: run.steps must be"),
        (changes("run.batch_size=48"), "batch_size 48"),
        (changes("network.sample_size=16"), "images of 8x8"),
        (changes("network.num_class_embeds=2"), "label 2"),
        (changes("network.in_channels=3"), "network.in_channels is 3, but the network"),
        (changes("loss.name=cd"), "teacher.model is missing: 'cd' distils a denoiser"),
        (
            changes("teacher.model=x"),
            "the loss 'denoising' has none; leave the section out",
        ),
        (changes("data.source=/nowhere"), "data.source /nowhere does not exist"),
        (changes("data.source="), "data.source is missing"),
        (
            changes("scheduler.class=SCMScheduler"),
            "network.time_scale 0.01 hides the times",
        ),
        (["--coordinator", "localhost:1"], "--num-processes and --process-id go together"),
        (
            changes("run.batch_size=12"),
            "run.batch_size=12 cannot be divided over 8 devices, .* choose a multiple of 8",
        ),
    ],
)
def test_mistakes(folder, options, message):
    result = invoke(folder, "--out", folder / "out", *options)
    assert result.exit_code == 2
    line = result.stderr.strip()
    assert line.startswith("Error: ") and "\n" not in line
    assert re.search(message, line), line


def test_a_damaged_newest_checkpoint_is_one_line(folder):
    out = folder / "out"
    ok(folder, "--out", out)
    newest = out / "checkpoints" / "6"
    (newest / "default" / "_METADATA").write_text("{")
    result = invoke(folder, "--out", out)
    assert_one_line(result, "remove it, and the run continues from step 3")
    assert str(newest) in result.stderr
    shutil.rmtree(newest)
    ok(folder, "--out", out)
    assert newest.exists()


def test_metrics_of_another_kind_are_not_replaced(folder):
    (folder / "out").mkdir()
    (folder / "out" / "metrics.csv").write_text("date,kilometres\n1,2\n")
    result = invoke(folder, "--out", folder / "out")
    assert_one_line(result, "metrics.csv is damaged or not of this run; move it away")


@pytest.mark.thorough
def test_progress_is_in_lines_where_there_is_no_terminal(folder):
    """The first loss with the first step, and what is trained before it is compiled."""
    lines = ok(folder, "--out", folder / "out").stderr.splitlines()
    names = ["data", "network", "loss", "devices", "diffusers"]
    assert [line.split()[0] for line in lines[:5]] == names
    assert "40 samples" in lines[0] and "parameters" in lines[1]
    assert "cannot open the model" in lines[4] and "no pipeline for a DiT" in lines[4]
    assert lines[5].startswith("compiling")
    assert lines[6].startswith("training: 1 of 6 steps, ") and "loss=" in lines[6]
    assert f"samples of step 2 in {folder / 'out' / 'samples_000002.png'}" in lines
    assert lines[-1].startswith("training: 6 of 6 steps, ")
    quiet = ok(folder, "--out", folder / "quiet", "--quiet")
    assert quiet.stderr == quiet.stdout == ""


def test_a_program_that_trains_is_interrupted_once_the_state_is_saved(folder, monkeypatch):
    write = reports.MetricsFile.write

    def interrupting(self, step, values):
        write(self, step, values)
        if step == 2:  # once: a second signal would not wait for the state
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(reports.MetricsFile, "write", interrupting)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    messages = []
    try:
        with pytest.raises(KeyboardInterrupt):
            config = configs.read_config(folder / "a.toml")
            runs.train(config, folder / "out", quiet=True, report=messages.append)
    finally:
        signal.signal(signal.SIGINT, before)
    assert messages == [
        "Stopped after step 3 of 6, which is saved; run the same command to resume."
    ]
    assert (folder / "out" / "checkpoints" / "3").exists()


def test_data_with_nan_is_refused(folder):
    values = np.zeros((40, 8, 8, 1), np.float32)
    values[7, 2, 3] = np.nan
    np.savez(folder / "d.npz", images=values, labels=np.zeros(40, int))
    result = invoke(folder, "--out", folder / "out")
    assert result.exit_code == 2 and "sample 7" in result.stderr


def test_data_that_were_refused_are_refused_again(folder):
    pixels = np.random.default_rng(0).uniform(0, 1, (40, 8, 8, 1))
    np.savez(folder / "d.npz", images=pixels.astype(np.float32), labels=np.zeros(40, int))
    for _ in range(2):
        result = invoke(folder, "--out", folder / "out")
        assert_one_line(result, "look like pixels that are not scaled")


def test_a_fingerprint_tells_a_teacher_from_another(folder):
    def fingerprint(scale, **scheduler):
        # A model that is replaced by another one under the same name.
        scaled = jax.tree.map(lambda leaf: scale * leaf, model.params)
        other = cmjax.CMStochasticIterativeScheduler(**scheduler)
        cmjax.save(teacher, dataclasses.replace(model, params=scaled, scheduler=other))
        return setup.make_run(config).fingerprint()

    # A new network, and a run that starts from it.
    model = setup.make_run(configs.read_config(folder / "a.toml")).model
    teacher = folder / "teacher"
    config = configs.from_values(
        {
            "data": {"source": str(folder / "d.npz")},
            "teacher": {"model": str(teacher)},
            "loss": {"name": "cd"},
            "run": {"init": str(teacher), "batch_size": 16},
        }
    )
    one = fingerprint(1)
    assert {name for name in one if one[name] != fingerprint(2)[name]} == {"teacher"}
    other = fingerprint(1, sigma_max=60.0)
    assert {name for name in one if one[name] != other[name]} == {"run.init"}


def test_a_diverging_run_stops_and_names_its_last_checkpoint(folder):
    wild = changes(
        "optimizer.name=sgd",
        "optimizer.learning_rate=1e30",
        "optimizer.clip_norm=0",
        "run.save_every=1",
    )
    result = invoke(folder, "--out", folder / "out", *wild)
    assert result.exit_code == 2
    found = re.search(
        r"is (?:nan|inf) at step (\d); the last checkpoint is of step (\d)\. In another",
        result.stderr,
    )
    assert found and "float32" not in result.stderr[found.start() :]
    assert found[2] in [path.name for path in (folder / "out" / "checkpoints").iterdir()]


def test_another_run_in_the_folder_is_refused(folder):
    ok(folder, "--out", folder / "out", *changes("run.steps=1"))
    other = changes("run.steps=1", "optimizer.learning_rate=0.1")
    result = invoke(folder, "--out", folder / "out", *other)
    assert result.exit_code == 2
    assert "holds a run with optimizer.learning_rate=0.001, not 0.1" in result.stderr


def test_a_start_that_failed_does_not_lock_the_folder(folder):
    out = folder / "out"
    assert invoke(folder, "--out", out, *changes("data.source=")).exit_code == 2
    # Two devices do not divide it.
    assert invoke(folder, "--out", out, *changes("run.batch_size=15")).exit_code == 2
    ok(folder, "--out", out)


def test_steps_that_are_added_continue_the_run(smallest):
    folder = smallest
    straight, longer = folder / "straight", folder / "longer"
    plain = changes("run.sample_every=0", "run.save_every=2")
    ok(folder, "--out", straight, *plain, *changes("run.steps=4"))
    ok(folder, "--out", longer, *plain, *changes("run.steps=2"))
    ok(folder, "--out", longer, *plain, *changes("run.steps=4"))
    assert_same_model(straight / "model", longer / "model")

    # Fewer steps than were taken are no reason to remove what they made.
    message = r"run.steps=3 is less than the 4 steps that .*; give run.steps=4 or more"
    result = invoke(folder, "--out", longer, *plain, *changes("run.steps=3"))
    assert re.search(message, result.stderr), result.stderr
    ok(folder, "--out", longer, *plain, *changes("run.steps=4"))
    assert_same_model(straight / "model", longer / "model")


def test_a_run_that_ended_before_its_model_was_written_writes_it(folder):
    out = folder / "out"
    ok(folder, "--out", out)
    (out / "model").rename(folder / "first")
    ok(folder, "--out", out)
    assert_same_model(folder / "first", out / "model")


@pytest.mark.thorough
def test_models_for_other_schedulers_are_refused(folder):
    other, first = folder / "other" / "model", folder / "first" / "model"
    ok(folder, "--out", first.parent, *changes("run.steps=1"))
    ok(folder, "--out", other.parent, *changes("run.steps=1", "scheduler.sigma_data=0.25"))
    start = f"run.init={first}"
    for settings, name in (
        ([start, "loss.name=cd", f"teacher.model={other}"], "teacher.model"),
        ([start, "loss.name=cd", f"teacher.weak_model={other}"], "teacher.weak_model"),
        ([start, "scheduler.sigma_data=0.25"], "run.init"),
    ):
        result = invoke(folder, "--out", folder / "out", *changes("run.steps=1", *settings))
        assert result.exit_code == 2
        message = rf"{name} .* is a network for CMStoch.*\(sigma_data=.*but this run is for"
        assert re.search(message, result.stderr)
    # Without [scheduler] a run is for that of the model it starts from.
    ok(folder, "--out", folder / "tuned", *changes(f"run.init={other}", "run.steps=1"))
    assert cmjax.load(folder / "tuned" / "model").scheduler.sigma_data == 0.25


def test_a_flow_map_starts_from_a_network_of_flow_matching(folder):
    def run_of(**sections):
        values = tomllib.loads((folder / "a.toml").read_text())
        for name, changed in sections.items():
            values[name] = {**values.get(name, {}), **changed}
        return setup.make_run(configs.from_values(values))

    flow = {"class": "FlowMatchEulerDiscreteScheduler"}
    first = run_of(loss={"name": "flow_matching"}, scheduler=flow)
    cmjax.save(folder / "flow", first.model)

    start = {"init": str(folder / "flow")}
    flow_map = {"class": "FlowMapEulerDiscreteScheduler"}
    second = {
        "loss": {"name": "mean_flow"},
        "network": {"second_time": "span"},
        "run": start,
    }
    run = run_of(**second, scheduler=flow_map)
    assert run.model.config.second_time == "span"
    x, t = np.ones((2, 8, 8, 1), np.float32), np.float32([900, 20])
    labels = np.array([0, 1])
    # An untrained network returns 0, so the tokens of both are compared.
    kept = run.model.params["patch_embed"]["kernel"][...]
    np.testing.assert_array_equal(kept, first.model.params["patch_embed"]["kernel"][...])
    output = run.model.apply_fn(run.model.params, x, t, 0 * t, class_labels=labels)
    assert output.shape == x.shape

    # Of other noise levels it would be another function.
    with pytest.raises(
        ValueError, match="run.init .* is a network for FlowMatch.*this run is"
    ):
        run_of(**second, scheduler={**flow_map, "num_train_timesteps": 10})
    with pytest.raises(
        ValueError, match="run.init .* is a network for FlowMatch.*this run is"
    ):
        run_of(run=start, scheduler={"sigma_data": 0.5})


@pytest.mark.thorough
def test_a_network_told_a_guidance_scale_trains(folder):
    settings = changes(
        "loss.name=imf",
        "loss.largest_scale=8",
        "loss.null_class=3",
        "network.null_class=true",
        "run.label_dropout=0.1",
        "scheduler.class=FlowMapEulerDiscreteScheduler",
        "network.second_time=span",
        "network.guidance_embeds=true",
        "run.steps=1",
        "run.sample_every=1",
    )
    ok(folder, "--out", folder / "out", *settings)
    assert list((folder / "out").glob("samples_*.png"))


@pytest.mark.thorough
def test_a_trigflow_model_trains_and_samples(folder):
    trigflow = changes(
        "scheduler.class=SCMScheduler", "network.time_scale=1", "run.steps=1"
    )
    ok(
        folder, "--out", folder / "denoiser", *trigflow
    )  # drawn by an ODE solver on EDM's levels
    assert (folder / "denoiser" / "samples_000001.png").exists()
    ok(folder, "--out", folder / "sct", *trigflow, *changes("loss.name=sct"))
    assert type(cmjax.load(folder / "sct" / "model").scheduler).__name__ == "SCMScheduler"
    assert (folder / "sct" / "samples_000001.png").exists()


@contextlib.contextmanager
def launched(folder, *options, devices=1):
    """The program in a process of its own; what it prints to stderr goes to a file."""
    # The last of two settings of a flag holds.
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    environment = {**os.environ, "XLA_FLAGS": flags}
    command = [
        sys.executable,
        "-m",
        "cmjax",
        "train",
        folder / "a.toml",
        "--quiet",
        *options,
    ]
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            list(map(str, command)), cwd=ROOT, env=environment, stderr=errors
        )
        process.errors = lambda: errors.seek(0) or errors.read()
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def wait_for(path, process, seconds=200):
    """Waits until a file exists, or the process has ended."""
    deadline = time.time() + seconds
    while not path.exists() and process.poll() is None and time.time() < deadline:
        time.sleep(0.02)


@pytest.mark.process
def test_ctrl_c_saves_and_says_how_to_resume(folder):
    out = folder / "out"
    endless = changes(
        "run.steps=100000", "run.log_every=1", "run.sample_every=0", "run.save_every=100000"
    )
    with launched(folder, "--out", out, *endless) as process:
        wait_for(out / "metrics.csv", process)
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 130, process.errors()
        step = int(rows(out / "metrics.csv")[-1]["step"])
        assert f"Stopped after step {step} of 100000" in process.errors()
    assert [p.name for p in (out / "checkpoints").iterdir()] == [str(step)]


@pytest.mark.process
@pytest.mark.parametrize(
    "steps, kills", [(120, 2), pytest.param(200, 10, marks=pytest.mark.slow)]
)
def test_a_run_killed_at_any_moment_ends_with_the_same_parameters(folder, steps, kills):
    options = changes(
        f"run.steps={steps}", "run.save_every=5", "run.log_every=1000", "run.sample_every=0"
    )
    with launched(folder, "--out", folder / "straight", *options) as process:
        assert process.wait(300) == 0, process.errors()
    rng = np.random.default_rng(0)
    killed = 0
    parts = folder / "parts"
    for _ in range(10 * kills):
        with launched(folder, "--out", parts, *options) as process:
            if killed < kills:  # at a random moment once training may have begun
                wait_for(parts / "checkpoints", process)
                time.sleep(rng.uniform(0, 4))
                killed += process.poll() is None
                process.kill()
            if process.wait(300) == 0:
                break
            assert process.returncode == -signal.SIGKILL, process.errors()
    assert killed, "the run ended before it could be killed"
    assert_same_model(folder / "straight" / "model", parts / "model")


def free_address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


@contextlib.contextmanager
def launched_together(folder, *options, devices=1):
    """Two processes of one run."""
    shared = [
        *options,
        "--coordinator",
        free_address(),
        "--num-processes",
        "2",
        "--process-id",
    ]
    with (
        launched(folder, *shared, "0", devices=devices) as first,
        launched(folder, *shared, "1", devices=devices) as second,
    ):
        yield first, second


@pytest.mark.process
def test_processes_with_two_devices_each_give_the_same_losses(folder):
    options = changes(
        "run.steps=4", "run.log_every=1", "run.sample_every=0", "run.save_every=4"
    )
    with launched(folder, "--out", folder / "alone", *options) as process:
        assert process.wait(300) == 0, process.errors()
    with launched_together(folder, "--out", folder / "shared", *options, devices=2) as pair:
        for process in pair:
            assert process.wait(300) == 0, process.errors()
    alone, together = (
        [float(row["loss"]) for row in rows(folder / run / "metrics.csv")]
        for run in ("alone", "shared")
    )
    assert len(alone) == 4
    np.testing.assert_allclose(together, alone, rtol=1e-5)


@pytest.mark.process
def test_a_signal_to_one_process_stops_all(folder):
    options = changes(
        "run.steps=100000", "run.log_every=5", "run.sample_every=0", "run.save_every=100000"
    )
    out = folder / "out"
    with launched_together(folder, "--out", out, *options) as (one, two):
        wait_for(out / "metrics.csv", one)
        two.send_signal(signal.SIGTERM)
        assert one.wait(120) == 130, one.errors()
        assert two.wait(120) == 130, two.errors()
        assert "which is saved" in one.errors()
    (checkpoint,) = (out / "checkpoints").iterdir()
    assert int(checkpoint.name) == int(rows(out / "metrics.csv")[-1]["step"])


@pytest.mark.process
def test_a_full_disk_leaves_the_last_checkpoint(folder):
    """No file may grow beyond 8 KiB: the checkpoint of the second part cannot be written."""
    out = folder / "out"
    options = ["--out", out, *changes("run.sample_every=0", "run.save_every=3")]
    options += changes("run.log_every=100")
    ok(folder, *options)
    before = leaves(out / "model")
    limited = (
        "import resource as r; r.setrlimit(r.RLIMIT_FSIZE, (8192, 8192)); "
        "from cmjax.cli import main; main()"
    )
    longer = [*options, *changes("run.steps=9")]
    command = [
        sys.executable,
        "-c",
        limited,
        "train",
        folder / "a.toml",
        "--quiet",
        *longer,
    ]
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": ""}
    full = subprocess.run(
        list(map(str, command)), cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert full.returncode == 2, full.stderr
    assert full.stderr.startswith("Error: cannot write") and full.stderr.count("\n") == 1
    for a, b in zip(before, leaves(out / "model"), strict=True):
        np.testing.assert_array_equal(a, b)
    ok(folder, *longer)


def test_the_digits_example_trains_a_denoiser_and_distils_it(tmp_path, monkeypatch):
    main = runpy.run_path(str(ROOT / "examples/train_digits.py"))["main"]
    trained = []
    monkeypatch.setattr(
        runs,
        "train",
        lambda config, out, **_: trained.append((config, out)),
    )
    (tmp_path / "data.npz").touch()
    arguments = [
        f"{tmp_path}/data.npz",
        "--out",
        f"{tmp_path}/out",
        "--steps",
        "7",
        "--seed",
        "3",
    ]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert result.output.endswith(f"--model {tmp_path}/out/consistency/model\n")
    (first, denoiser), (second, consistency) = trained
    assert (first.loss["name"], second.loss["name"]) == ("denoising", "cd")
    assert (first.run.steps, second.run.steps, second.run.seed) == (5000, 7, 3)
    assert not first.run.init and Path(second.run.init) == denoiser / "model"
    assert consistency == tmp_path / "out" / "consistency"

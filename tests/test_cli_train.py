"""`cmjax train`: what it makes, that it goes on where it stopped, and that every misuse is one clear line."""

import contextlib
import csv
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import cmjax
from cmjax import cli
from cmjax.training import config as configs
from cmjax.training import run as runs
from cmjax.training.presets import PRESETS

ROOT = Path(__file__).parent.parent
TOML = """
[network]
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

[loss]
name = "denoising"

[optimizer]
learning_rate = 1e-3

[run]
steps = 6
batch_size = 16
log_every = 2
save_every = 3
sample_every = 6
"""


@pytest.fixture(autouse=True)
def standard_promotion():
    """Optax's Adam itself mixes dtypes."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (40, 8, 8), np.uint8), np.arange(40) % 3
    np.savez(tmp_path / "d.npz", images=images, labels=labels)
    (tmp_path / "a.toml").write_text(TOML + f'[data]\nsource = "{tmp_path / "d.npz"}"\n')
    return tmp_path


def invoke(folder, *options, config="a.toml"):
    arguments = [
        "train",
        str(folder / config) if config.endswith(".toml") else config,
        *map(str, options),
    ]
    return CliRunner().invoke(cli.main, arguments)


def ok(folder, *options, **kwargs):
    result = invoke(folder, *options, **kwargs)
    assert result.exit_code == 0, result.output
    return result


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def leaves(path):
    return jax.tree.leaves(cmjax.load(path).params)


def test_it_trains_draws_logs_and_goes_on_to_the_same_end(folder):
    straight, parts = folder / "straight", folder / "parts"
    output = ok(folder, "--out", straight, "--set", "run.ema_decays=[0.9,0.1]").output
    assert f"cmjax sample --model {straight / 'model'}" in output
    with Image.open(straight / "samples_000006.png") as picture:
        assert picture.size == (10 * 68 + 4, 68 + 4)
    assert [row["step"] for row in rows(straight / "metrics.csv")] == ["2", "3", "4", "6"]
    model = cmjax.load(straight / "model")
    assert model.num_classes == 3 and (straight / "model_0.1" / "model.safetensors").exists()
    assert not np.array_equal(leaves(straight / "model")[0], leaves(straight / "model_0.1")[0])

    # a run that was killed after its checkpoint of step 3
    ok(folder, "--out", parts, "--set", "run.ema_decays=[0.9,0.1]")
    (parts / "checkpoints" / "6").rename(folder / "gone")
    ok(folder, "--out", parts, "--set", "run.ema_decays=[0.9,0.1]", "--set", "run.log_every=2")
    assert rows(parts / "metrics.csv") == rows(straight / "metrics.csv")
    for a, b in zip(leaves(straight / "model"), leaves(parts / "model"), strict=True):
        np.testing.assert_array_equal(a, b)
    assert (
        ok(folder, "--out", parts, "--set", "run.ema_decays=[0.9,0.1]").exit_code == 0
    )  # finished: nothing to do


def test_every_recipe_trains(folder):
    ok(folder, "--out", folder / "first", "--set", "run.steps=2")
    teacher = str(folder / "first" / "model")
    for name in (
        "progressive",
        "cd",
        "ct",
        "ict",
        "ect",
        "scd",
        "sct",
        "continuous_cd",
        "continuous_ct",
    ):
        options = [
            "--set",
            f"loss.name={name}",
            "--set",
            f"run.init={teacher}",
            "--set",
            "run.steps=2",
        ]
        options += ["--set", "run.sample_every=0"]
        if name == "cd":
            options += ["--set", f"teacher.weak_model={teacher}", "--set", "run.accumulate=2"]
        if name == "ect":
            options += ["--set", "run.dtype=bfloat16"]
        ok(folder, "--out", folder / name, *options)
        assert all(np.isfinite(leaf).all() for leaf in leaves(folder / name / "model"))


def test_a_transformer_trains(folder):
    dit = 'class = "DiT"\nnum_layers = 2\nnum_attention_heads = 2\nattention_head_dim = 8\nnum_class_embeds = 3\n'
    dit += "sample_size = 8\nin_channels = 1\nout_channels = 1\n"
    text = (folder / "a.toml").read_text()
    (folder / "a.toml").write_text("[network]\n" + dit + text[text.index("[loss]") :])
    ok(folder, "--out", folder / "dit", "--set", "loss.name=sct")
    assert type(cmjax.load(folder / "dit" / "model").config).__name__ == "DiTConfig"


def test_dry_run_trains_nothing(folder):
    output = ok(folder, "--out", folder / "out", "--dry-run").output
    model = jax.tree.leaves(runs.start(configs.read_config(folder / "a.toml")).model.params)
    assert f"{sum(leaf.size for leaf in model):,} parameters" in output
    assert (
        "40 samples" in output
        and "data float32[16, 8, 8, 1]" in output
        and "class_labels int32[16]" in output
    )
    assert "GFLOP a step" in output and not (folder / "out").exists()


def test_tensorboard_files(folder):
    pytest.importorskip("tensorboardX")
    ok(folder, "--out", folder / "out", "--set", "run.tensorboard=true", "--set", "run.steps=2")
    assert any(
        file.name.startswith("events") for file in (folder / "out" / "tensorboard").iterdir()
    )


@pytest.mark.parametrize(
    "options, message",
    [
        (["--set", "loss.p_meen=1"], "LossConfig has no option 'p_meen'; did you mean 'p_mean'?"),
        (["--set", "loss.name=sctt"], "no loss 'sctt'; did you mean 'sct'?"),
        (["--set", "run.stepz=1"], "run has no key 'stepz'; did you mean 'steps'?"),
        (["--set", "runs.steps=1"], "no section 'runs'; did you mean 'run'?"),
        (["--set", "steps=1"], "steps must be section.key, such as run.steps"),
        (["--set", "run.steps=many"], "run.steps must be an integer, got 'many'"),
        (["--set", "run.steps=0"], "run.steps must be at least 1, got 0"),
        (["--set", "run.batch_size=41"], "batch_size 41 is larger than the data set of 40"),
        (["--set", "run.dtype=float16"], "run.dtype is 'float16'"),
        (["--set", "network.class=UNet"], "network.class is 'UNet'; did you mean 'UNet2D'?"),
        (
            ["--set", "network.layers_per_blok=1"],
            "no option 'layers_per_blok'; did you mean 'layers_per_block'?",
        ),
        (["--set", "network.sample_size=16"], "holds images of 8x8, but 16x16 are wanted"),
        (["--set", "network.num_class_embeds=2"], "label 2"),
        (["--set", "optimizer.name=adma"], "optimizer.name is 'adma'; did you mean 'adam'?"),
        (["--set", 'optimizer.options={"beta":1.0}'], "optimizer.options: .*beta"),
        (["--set", "loss.name=cd"], "teacher.model is missing: 'cd' distils a denoiser"),
        (["--set", "teacher.model=x"], "the loss 'denoising' has none; leave the section out"),
        (["--set", "data.source=/nowhere"], "/nowhere"),
        (["--set", "scheduler.sigma_mim=1"], "scheduler: .*did you mean 'sigma_min'"),
        (["--set", "loss.adaptive_weight=true"], "adaptive_weight is for the sCM losses"),
        (["--set", "loss.total_steps=7"], "loss.total_steps has a place of its own; use run.steps"),
        (
            ["--set", "optimizer.warmup_steps=-1"],
            "optimizer.warmup_steps must be from 0 to below run.steps=6, got -1",
        ),
        (
            ["--set", "optimizer.warmup_steps=6"],
            "optimizer.warmup_steps must be from 0 to below run.steps=6, got 6",
        ),
        (
            ["--set", "optimizer.clip_norm=-1"],
            "optimizer.clip_norm must be at least 0 and finite, got -1",
        ),
        (
            ["--set", "optimizer.learning_rate=1e999"],
            "optimizer.learning_rate must be at least 0 and finite, got inf",
        ),
        (["--set", "scheduler.class=SCMScheduler"], "network.time_scale 0.01 hides the angles"),
        (["--set", "scheduler.class=LCMScheduler"], "or an SCMScheduler, got LCMScheduler"),
        (["--coordinator", "localhost:1"], "--num-processes and --process-id go together"),
    ],
)
def test_mistakes(folder, options, message):
    result = invoke(folder, "--out", folder / "out", *options)
    assert result.exit_code == 2
    line = result.stderr.strip()
    assert line.startswith("Error: ") and "\n" not in line
    assert re.search(message, line), line


def test_bad_configs(folder):
    (folder / "bad.toml").write_text("[run\n")
    for name, message in (
        ("bad.toml", "is not TOML"),
        ("cifar10_it", "did you mean 'cifar10_ict'"),
    ):
        result = invoke(folder, config=name)
        assert result.exit_code == 2 and message in result.stderr


def test_data_with_nan_is_refused(folder):
    values = np.zeros((40, 8, 8, 1), np.float32)
    values[7, 2, 3] = np.nan
    np.savez(folder / "d.npz", images=values, labels=np.zeros(40, int))
    result = invoke(folder, "--out", folder / "out")
    assert result.exit_code == 2 and "7" in result.stderr and "finite" in result.stderr


def test_a_diverging_run_stops_and_names_its_last_checkpoint(folder):
    wild = [
        "optimizer.name=sgd",
        "optimizer.learning_rate=1e30",
        "optimizer.clip_norm=0",
        "run.save_every=1",
    ]
    result = invoke(folder, "--out", folder / "out", *(part for s in wild for part in ("--set", s)))
    assert result.exit_code == 2
    found = re.search(
        r"is (?:nan|inf) at step (\d); the last checkpoint is of step (\d)\. In another",
        result.stderr,
    )
    assert found and "float32" not in result.stderr
    assert found[2] in [path.name for path in (folder / "out" / "checkpoints").iterdir()]


def test_another_run_in_the_folder_is_refused(folder):
    ok(folder, "--out", folder / "out", "--set", "run.steps=2")
    result = invoke(
        folder,
        "--out",
        folder / "out",
        "--set",
        "run.steps=2",
        "--set",
        "optimizer.learning_rate=0.1",
    )
    assert result.exit_code == 2
    assert "holds a run with optimizer.learning_rate=0.001, not 0.1" in result.stderr


def test_a_start_that_failed_does_not_lock_the_folder(folder):
    out = folder / "out"
    assert invoke(folder, "--out", out, "--set", "data.source=").exit_code == 2
    assert (
        invoke(folder, "--out", out, "--set", "run.batch_size=12").exit_code == 2
    )  # eight devices do not divide it
    ok(folder, "--out", out)


def test_a_run_that_ended_before_its_model_was_written_writes_it(folder):
    out = folder / "out"
    ok(folder, "--out", out)
    before = leaves(out / "model")
    (out / "model").rename(folder / "gone")
    ok(folder, "--out", out)
    for a, b in zip(before, leaves(out / "model"), strict=True):
        np.testing.assert_array_equal(a, b)


def test_models_for_other_schedulers_are_refused(folder):
    other, first = folder / "other" / "model", folder / "first" / "model"
    ok(folder, "--out", first.parent, "--set", "run.steps=1")
    ok(folder, "--out", other.parent, "--set", "run.steps=1", "--set", "scheduler.sigma_data=0.25")
    start = ["--set", f"run.init={first}", "--set", "run.steps=1", "--out", folder / "out"]
    distil = ["--set", "loss.name=cd"]
    for options, name in (
        ([*start, *distil, "--set", f"teacher.model={other}"], "teacher.model"),
        ([*start, *distil, "--set", f"teacher.weak_model={other}"], "teacher.weak_model"),
        ([*start, "--set", "scheduler.sigma_data=0.25"], "run.init"),
    ):
        result = invoke(folder, *options)
        assert result.exit_code == 2
        assert re.search(
            rf"{name} .* is a network for CMStoch.*\(sigma_data=.*but this run is for",
            result.stderr,
        )
    # without [scheduler] a run is for that of the model it starts from
    ok(folder, "--out", folder / "tuned", "--set", f"run.init={other}", "--set", "run.steps=1")
    assert cmjax.load(folder / "tuned" / "model").scheduler.sigma_data == 0.25


def test_a_model_in_trigflows_terms_trains_and_samples(folder):
    trigflow = [
        "--set",
        "scheduler.class=SCMScheduler",
        "--set",
        "network.time_scale=1",
        "--set",
        "run.steps=2",
    ]
    ok(folder, "--out", folder / "denoiser", *trigflow)
    ok(folder, "--out", folder / "sct", *trigflow, "--set", "loss.name=sct")
    assert type(cmjax.load(folder / "sct" / "model").scheduler).__name__ == "SCMScheduler"
    assert (folder / "sct" / "samples_000002.png").exists()


def test_the_presets_are_whole_and_print_the_papers_numbers():
    for name in PRESETS:
        read = configs.read_config(
            name, [("data.source", "x.npz")] + [("teacher.model", "t")] * name.endswith("_cd")
        )
        assert read.network_config().sample_size in (32, 64, 256)
    ict = configs.read_config("cifar10_ict")
    loss = ict.loss_config()
    assert (loss.s0, loss.s1, loss.p_mean, loss.p_std) == (10, 1280, -1.1, 2.0)
    assert (ict.run.batch_size, ict.run.steps, ict.run.ema_decays) == (1024, 400_000, (0.99993,))
    ct = configs.read_config("imagenet64_ct").loss_config()
    assert (ct.s0, ct.s1, ct.mu0) == (2, 200, 0.95)


def test_the_examples_are_valid(monkeypatch):
    monkeypatch.chdir(ROOT)
    files = sorted((ROOT / "examples").glob("*.toml"))
    assert len(files) >= 3
    for file in files:
        configs.read_config(file)


@contextlib.contextmanager
def launched(folder, *options, devices=1):
    """The program in a process of its own; what it says on stderr goes to a file."""
    environment = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    command = [
        sys.executable,
        "-m",
        "cmjax",
        "train",
        str(folder / "a.toml"),
        "--quiet",
        *map(str, options),
    ]
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=errors)
        process.errors = lambda: errors.seek(0) or errors.read()
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def test_ctrl_c_saves_and_says_how_to_go_on(folder):
    out = folder / "out"
    options = [
        "--out",
        out,
        "--set",
        "run.steps=100000",
        "--set",
        "run.log_every=1",
        "--set",
        "run.sample_every=0",
    ]
    with launched(folder, *options, "--set", "run.save_every=100000") as process:
        deadline = time.time() + 120
        while (
            not (out / "metrics.csv").exists() and process.poll() is None and time.time() < deadline
        ):
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 130, process.errors()
        step = int(rows(out / "metrics.csv")[-1]["step"])
        assert f"Stopped after step {step} of 100000, which is saved" in process.errors()
    assert [p.name for p in (out / "checkpoints").iterdir()] == [str(step)]


@pytest.mark.parametrize("steps, kills", [(40, 2), pytest.param(200, 10, marks=pytest.mark.slow)])
def test_a_run_killed_at_any_moment_ends_with_the_same_parameters(folder, steps, kills):
    settings = [
        f"run.steps={steps}",
        "run.save_every=5",
        "run.log_every=1000",
        "run.sample_every=0",
    ]
    options = [part for setting in settings for part in ("--set", setting)]
    with launched(folder, "--out", folder / "straight", *options) as process:
        assert process.wait(300) == 0, process.errors()
    rng, killed, parts = np.random.default_rng(0), 0, folder / "parts"
    for _ in range(10 * kills):
        with launched(folder, "--out", parts, *options) as process:
            if killed < kills:  # at a random moment once training may have begun
                deadline = time.time() + 120
                while (
                    not (parts / "checkpoints").exists()
                    and process.poll() is None
                    and time.time() < deadline
                ):
                    time.sleep(0.01)
                time.sleep(rng.uniform(0, 4))
                killed += process.poll() is None
                process.kill()
            if process.wait(300) == 0:
                break
            assert process.returncode == -signal.SIGKILL, process.errors()
    assert killed, "the run ended before it could be killed"
    for a, b in zip(leaves(folder / "straight" / "model"), leaves(parts / "model"), strict=True):
        np.testing.assert_array_equal(a, b)


def free_address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def test_processes_with_two_devices_each_give_the_same_losses(folder):
    settings = ["run.steps=4", "run.log_every=1", "run.sample_every=0", "run.save_every=4"]
    options = [part for setting in settings for part in ("--set", setting)]
    with launched(folder, "--out", folder / "alone", *options) as process:
        assert process.wait(300) == 0, process.errors()
    shared = [
        "--out",
        folder / "shared",
        *options,
        "--coordinator",
        free_address(),
        "--num-processes",
        "2",
    ]
    shared += ["--process-id"]
    with (
        launched(folder, *shared, "0", devices=2) as first,
        launched(folder, *shared, "1", devices=2) as second,
    ):
        assert first.wait(300) == 0, first.errors()
        assert second.wait(300) == 0, second.errors()
    alone, together = (
        [float(row["loss"]) for row in rows(folder / run / "metrics.csv")]
        for run in ("alone", "shared")
    )
    assert len(alone) == 4
    np.testing.assert_allclose(together, alone, rtol=1e-5)


def test_a_signal_to_one_process_stops_all(folder):
    settings = [
        "run.steps=100000",
        "run.log_every=5",
        "run.sample_every=0",
        "run.save_every=100000",
    ]
    options = [part for setting in settings for part in ("--set", setting)]
    shared = [
        "--out",
        folder / "out",
        *options,
        "--coordinator",
        free_address(),
        "--num-processes",
        "2",
    ]
    with (
        launched(folder, *shared, "--process-id", "0") as one,
        launched(folder, *shared, "--process-id", "1") as two,
    ):
        deadline = time.time() + 200
        while (
            not (folder / "out" / "metrics.csv").exists()
            and one.poll() is None
            and time.time() < deadline
        ):
            time.sleep(0.1)
        two.send_signal(signal.SIGTERM)
        assert one.wait(120) == 130, one.errors()
        assert two.wait(120) == 130, two.errors()
        assert "which is saved" in one.errors()
    (checkpoint,) = (folder / "out" / "checkpoints").iterdir()
    assert int(checkpoint.name) == int(rows(folder / "out" / "metrics.csv")[-1]["step"])


def test_a_full_disk_leaves_the_last_checkpoint(folder):
    """No file may grow beyond 8 KiB: the checkpoint of the second part cannot be written."""
    options = ["--out", folder / "out", "--set", "run.sample_every=0", "--set", "run.save_every=3"]
    with launched(folder, *options, "--set", "run.log_every=100") as process:
        assert process.wait(300) == 0, process.errors()
    before = leaves(folder / "out" / "model")
    config = folder / "out" / "config.json"
    config.write_text(config.read_text().replace('"steps": 6', '"steps": 9'))
    limited = "import resource as r; r.setrlimit(r.RLIMIT_FSIZE, (8192, 8192)); from cmjax.cli import main; main()"
    command = [
        sys.executable,
        "-c",
        limited,
        "train",
        str(folder / "a.toml"),
        "--quiet",
        *map(str, options),
    ]
    command += ["--set", "run.steps=9", "--set", "run.log_every=100"]
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_COMPILATION_CACHE_DIR": ""}
    full = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert full.returncode == 2, full.stderr
    assert "Error: " in full.stderr and "checkpoint" in full.stderr
    for a, b in zip(before, leaves(folder / "out" / "model"), strict=True):
        np.testing.assert_array_equal(a, b)
    with launched(
        folder, *options, "--set", "run.steps=9", "--set", "run.log_every=100"
    ) as process:
        assert process.wait(300) == 0, process.errors()


def test_the_digits_example_trains_a_denoiser_and_distils_it(tmp_path, monkeypatch):
    main = runpy.run_path(str(ROOT / "examples/train_digits.py"))["main"]
    trained = []
    monkeypatch.setattr(
        runs, "train", lambda config, out, **_: trained.append((config, out)) or len(trained) < 3
    )
    (tmp_path / "data.npz").touch()
    arguments = [f"{tmp_path}/data.npz", "--out", f"{tmp_path}/out", "--steps", "7", "--seed", "3"]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0 and result.output.endswith(
        f"--model {tmp_path}/out/consistency/model\n"
    )
    (first, denoiser), (second, consistency) = trained
    assert (first.loss["name"], second.loss["name"]) == ("denoising", "cd")
    assert (first.run.steps, second.run.steps, second.run.seed) == (5000, 7, 3)
    assert not first.run.init and Path(second.run.init) == denoiser / "model"
    assert consistency == tmp_path / "out" / "consistency"
    assert CliRunner().invoke(main, arguments).exit_code == 130  # stopped in the first stage
    assert len(trained) == 3

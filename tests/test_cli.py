"""The command line: what it writes, and one clear line for every mistake."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from click.testing import CliRunner
from flax import nnx
from PIL import Image

import cmjax
from cmjax import cli
from cmjax.checkpoints import BUNDLED
from cmjax.models import UNet2D, UNet2DConfig


def save_random_model(path, classes):
    config = UNet2DConfig(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        num_class_embeds=classes,
    )
    apply_fn, params = cmjax.from_nnx(UNet2D(config, rngs=nnx.Rngs(0)))
    params = jax.tree.map(lambda p: p + 0.2 * jax.random.normal(jax.random.key(p.size), p.shape), params)
    cmjax.save(path, cmjax.Model(apply_fn, params, cmjax.CMStochasticIterativeScheduler(), config))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    save_random_model(folder / "classes", 10)
    save_random_model(folder / "plain", None)
    return folder


@pytest.fixture
def run(models, tmp_path, monkeypatch):
    """Runs `cmjax sample` in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, model="classes"):
        source = [] if model is None else ["--model", str(models / model)]
        return CliRunner().invoke(cli.main, ["sample", *source, *map(str, arguments)])

    return run


def arrays(path):
    with np.load(path) as file:
        return dict(file)


def test_the_default_is_64_samples_in_a_labelled_grid(run):
    result = run()
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("64 samples in samples.png: 1 step, compile ")
    assert ", run " in result.stdout and result.stdout.count("\n") == 1
    with Image.open("samples.png") as picture:
        # ten columns, one a class, and seven rows of 8x8 samples enlarged to 64x64 under their captions
        assert picture.size == (10 * 68 + 4, 7 * 84 + 4)


def test_arrays_hold_images_and_labels_cycled(run):
    assert run("--num", 5, "--labels", "3,1,4", "--out", "a.npz").exit_code == 0
    made = arrays("a.npz")
    assert made["images"].dtype == np.uint8 and made["images"].shape == (5, 8, 8, 1)
    assert made["labels"].dtype == np.int32 and made["labels"].tolist() == [3, 1, 4, 3, 1]


def test_arrays_are_what_the_library_gives(run, models):
    run("--num", 3, "--sigmas", "80,0.8", "--seed", 5, "--out", "a.npz")
    model = cmjax.load(models / "classes")
    expected = cmjax.sample(
        jax.random.key(5),
        model.apply_fn,
        model.params,
        model.scheduler,
        (3, 8, 8, 1),
        sigmas=[80, 0.8],
        cond={"class_labels": np.arange(3)},
    )
    difference = arrays("a.npz")["images"].astype(int) - cmjax.images.to_uint8(expected)
    assert np.abs(difference).max() <= 1


def test_samples_do_not_depend_on_the_batch_size_and_compile_once(run, monkeypatch):
    traces = []
    original = cmjax.sample

    def counting(*args, **kwargs):
        traces.append(1)
        return original(*args, **kwargs)

    monkeypatch.setattr(cmjax, "sample", counting)
    for size in (7, 3, 1):
        traces.clear()
        assert run("--num", 7, "--batch-size", size, "--steps", 2, "--out", f"{size}.npz").exit_code == 0
        assert len(traces) == 1
    whole = arrays("7.npz")["images"].astype(int)
    assert whole.std() > 5
    for size in (3, 1):
        # float32 sums in another order may round a pixel the other way
        assert np.abs(arrays(f"{size}.npz")["images"] - whole).max() <= 1


def test_options_that_change_the_samples(run):
    variants = {
        "base": (),
        "seed": ("--seed", 1),
        "steps": ("--steps", 2),
        "labels": ("--labels", 9),
        "timesteps": ("--timesteps", "22,0"),
    }
    made = {}
    for name, options in variants.items():
        assert run("--num", 2, *options, "--out", f"{name}.npz").exit_code == 0
        made[name] = arrays(f"{name}.npz")["images"]
    for name in list(variants)[1:]:
        assert not np.array_equal(made[name], made["base"]), name


def test_bfloat16_gives_nearly_the_same_picture(run):
    with jax.numpy_dtype_promotion("standard"):
        run("--num", 4, "--out", "a.npz")
        result = run("--num", 4, "--dtype", "bfloat16", "--out", "b.npz")
    assert result.exit_code == 0, result.stderr
    difference = arrays("a.npz")["images"].astype(int) - arrays("b.npz")["images"]
    assert 0 < np.abs(difference).mean() < 6


def test_an_unconditional_model_has_no_labels(run):
    assert run("--num", 2, "--out", "a.npz", model="plain").exit_code == 0
    assert set(arrays("a.npz")) == {"images"}
    assert run("--num", 2, model="plain").exit_code == 0


def test_quiet_prints_nothing(run):
    result = run("--num", 2, "--quiet")
    assert (result.exit_code, result.output) == (0, "")


MISTAKES = {
    "no such model": (["--model", "nowhere"], "nowhere"),
    "not a cmjax folder": (["--model", "."], "not a cmjax folder"),
    "steps and timesteps": (["--steps", 2, "--timesteps", "22,0"], "--steps and --timesteps exclude each other"),
    "steps and sigmas": (["--steps", 2, "--sigmas", "80"], "exclude each other"),
    "no steps": (["--steps", 0], "--steps"),
    "negative steps": (["--steps", -1], "--steps"),
    "too many steps": (["--steps", 41], "from 1 to num_train_timesteps=40, got 41"),
    "steps not a number": (["--steps", "two"], "two"),
    "increasing timesteps": (["--timesteps", "0,22"], "strictly descending"),
    "repeated timesteps": (["--timesteps", "22,22,0"], "strictly descending"),
    "timesteps out of range": (["--timesteps", "40,0"], "0..39"),
    "timesteps not integers": (["--timesteps", "2.5,0"], "integers separated by commas"),
    "huge timesteps": (["--timesteps", "99999999999999999999"], "too large"),
    "nan sigma": (["--sigmas", "80,nan"], "nan"),
    "negative sigma": (["--sigmas", "80,-1"], "[0.002, 80.0]"),
    "increasing sigmas": (["--sigmas", "1,80"], "strictly descending"),
    "sigmas not numbers": (["--sigmas", "high,low"], "numbers separated by commas"),
    "label out of range": (["--labels", "3,10"], "classes are 0..9, got 10"),
    "negative label": (["--labels", "-1"], "got -1"),
    "labels not numbers": (["--labels", "three"], "integers separated by commas"),
    "empty labels": (["--labels", ""], "integers separated by commas"),
    "no samples": (["--num", 0], "--num"),
    "no batch": (["--batch-size", 0], "--batch-size"),
    "unknown dtype": (["--dtype", "int8"], "int8"),
    "unknown format": (["--out", "a.jpg"], ".png (a grid) or .npz (arrays)"),
    "no such folder": (["--out", "nowhere/a.png"], "there is no folder nowhere"),
    "a file for a folder": (["--out", "file/a.png"], "there is no folder file"),
    "a folder for a file": (["--out", "folder.png"], "is a folder"),
    "negative seed": (["--seed", -1], "--seed"),
    "unknown option": (["--stpes", 2], "--stpes"),
    "surplus argument": (["digits"], "digits"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_get_one_line_and_exit_code_2(run, name, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.png").mkdir()
    arguments, fragment = MISTAKES[name]
    result = run(*arguments, model=None if "--model" in arguments else "classes")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1
    assert fragment in result.stderr
    assert not (tmp_path / "samples.png").exists()


def test_labels_for_an_unconditional_model(run):
    result = run("--labels", "3", model="plain")
    assert (result.exit_code, result.stderr) == (2, "Error: --labels: the model has no classes; leave the option out\n")


def test_a_folder_without_write_permission_is_found_before_sampling(run, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(cli.tempfile, "TemporaryFile", refuse)
    monkeypatch.setattr(cmjax, "load", lambda *a, **k: pytest.fail("loaded a model first"))
    result = run()
    assert result.exit_code == 2 and "cannot write" in result.stderr and result.stderr.count("\n") == 1


def test_a_full_disk_leaves_the_old_file(run, monkeypatch, tmp_path):
    (tmp_path / "samples.png").write_bytes(b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cmjax.images.os, "fsync", full)
    result = run("--num", 2)
    assert result.exit_code == 2
    assert result.stderr.endswith("Error: cannot write samples.png: No space left on device\n")
    assert (tmp_path / "samples.png").read_bytes() == b"old" and os.listdir(tmp_path) == ["samples.png"]


def test_a_damaged_model(run, models, tmp_path):
    save_random_model(tmp_path / "m", 10)
    weights = tmp_path / "m" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    result = run("--model", tmp_path / "m", model=None)
    assert result.exit_code == 2 and "not a readable safetensors file" in result.stderr
    assert result.stderr.count("\n") == 1


def test_samples_that_are_not_finite_are_refused(run, tmp_path):
    save_random_model(tmp_path / "m", 10)
    model = cmjax.load(tmp_path / "m")
    broken = jax.tree.map(lambda p: p * np.float32("nan"), model.params)
    cmjax.save(tmp_path / "m", cmjax.Model(model.apply_fn, broken, model.scheduler, model.config))
    result = run("--model", tmp_path / "m", model=None)
    assert result.exit_code == 2 and "not finite" in result.stderr


def test_interruption_is_one_line(run, monkeypatch, tmp_path):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "generate", interrupt)
    result = run()
    assert (result.exit_code, result.stderr) == (130, "Interrupted; nothing was written.\n")


@pytest.mark.parametrize("arguments", [["--help"], ["sample", "--help"], []])
def test_help_teaches_by_example(arguments):
    result = CliRunner().invoke(cli.main, arguments)
    assert result.exit_code == 0
    assert "Examples:\n" in result.output and "  cmjax sample --" in result.output


def test_as_a_program(tmp_path):
    def program(*arguments):
        command = [sys.executable, "-m", "cmjax", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)

    mistake = program("sample", "--steps", "0")
    assert mistake.returncode == 2 and mistake.stderr.count("\n") == 1 and "Traceback" not in mistake.stderr
    assert program("--version").stdout.strip().endswith(cmjax.__version__)


@pytest.mark.skipif(not BUNDLED.exists(), reason="the bundled model is not there")
def test_the_bundled_digits(run):
    result = run("--num", 3, "--out", "a.npz", model=None)
    assert result.exit_code == 0, result.stderr
    images = arrays("a.npz")["images"]
    assert images.shape == (3, 28, 28, 1)
    ink = (images > 127).mean(axis=(1, 2, 3))
    assert np.all((ink > 0.03) & (ink < 0.4))  # strokes on black ground, neither noise nor nothing

"""The training example, on a network small enough for a test; and the benchmark's arithmetic."""

import dataclasses
import importlib.util
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import cmjax

ROOT = Path(__file__).parent.parent


def load_script(path):
    spec = importlib.util.spec_from_file_location(path.replace("/", "_"), ROOT / f"{path}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SMALL = {"block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 4}


@pytest.fixture
def train(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples")
    script = load_script("examples/train_digits")
    main = script.training.command(dataclasses.replace(script.NETWORK, **SMALL))
    images = np.random.default_rng(0).integers(0, 256, (40, 28, 28), np.uint8)
    np.savez(tmp_path / "d.npz", x_train=images, y_train=np.arange(40) % 10)

    def run(out, *options):
        arguments = [str(tmp_path / "d.npz"), "--out", str(tmp_path / out), "--batch-size", "4", *options]
        with jax.numpy_dtype_promotion("standard"):  # optax's Adam mixes dtypes
            return CliRunner().invoke(main, arguments, catch_exceptions=False)

    return run


def test_the_example_trains_resumes_tunes_and_draws(train, tmp_path):
    assert train("a", "--steps", "3", "--save-every", "3").exit_code == 0
    a = cmjax.load(tmp_path / "a" / "model")
    # two steps, then one more in a second run: the learning rate follows the whole length in both
    assert train("b", "--steps", "3", "--save-every", "2").exit_code == 0
    for name in ("samples_000003.png", "model", "checkpoints"):
        (tmp_path / "b" / name).rename(tmp_path / f"gone_{name}") if name != "checkpoints" else None
    newest = max((tmp_path / "b" / "checkpoints").iterdir(), key=lambda p: int(p.name))
    assert newest.name == "3"
    newest.rename(tmp_path / "gone_checkpoint")
    assert train("b", "--steps", "3", "--save-every", "2").exit_code == 0
    b = cmjax.load(tmp_path / "b" / "model")
    for left, right in zip(jax.tree.leaves(a.params), jax.tree.leaves(b.params), strict=True):
        np.testing.assert_array_equal(left, right)

    for loss in ("easy", "distillation", "consistency"):
        result = train(loss, "--loss", loss, "--init", str(tmp_path / "a" / "model"), "--steps", "2")
        assert result.exit_code == 0 and "cmjax sample --model" in result.output
        with Image.open(tmp_path / loss / "samples_000002.png") as picture:
            assert picture.size == (10 * 32 + 4, 3 * 32 + 4)
        tuned = cmjax.load(tmp_path / loss / "model")
        assert all(np.isfinite(p).all() for p in jax.tree.leaves(tuned.params))


def test_frechet_distance_of_known_gaussians():
    frechet_distance = load_script("benchmarks/digits_quality").frechet_distance
    rng = np.random.default_rng(0)
    a, b = np.array([1.0, 2.0, 0.5]), np.array([3.0, 0.2, 0.5])  # standard deviations
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    x = rng.normal(size=(400_000, 3)) * a @ rotation
    y = (rng.normal(size=(400_000, 3)) * b + 1) @ rotation
    assert frechet_distance(x, y) == pytest.approx(3 + np.sum((a - b) ** 2), rel=0.02)
    assert abs(frechet_distance(x, x)) < 1e-6


def test_an_unconditional_model_of_a_folder_of_pictures(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples")
    script = load_script("examples/train_emoji")
    main = script.training.command(dataclasses.replace(script.NETWORK, **SMALL))
    (tmp_path / "pictures").mkdir()
    rng = np.random.default_rng(0)
    for i in range(5):
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).save(tmp_path / "pictures" / f"{i}.png")
    run = partial(CliRunner().invoke, main, catch_exceptions=False)
    first = [str(tmp_path / "pictures"), "--out", str(tmp_path / "a"), "--batch-size", "4", "--steps", "2"]
    model = str(tmp_path / "a" / "model")
    with jax.numpy_dtype_promotion("standard"):
        assert run(first).exit_code == 0
        distil = ["--loss", "distillation", "--init", model, "--weak-teacher", model, "--guidance", "1.5"]
        result = run([*first[:2], str(tmp_path / "b"), *first[3:], *distil])
    assert result.exit_code == 0 and cmjax.load(tmp_path / "b" / "model").sample_shape == (32, 32, 3)

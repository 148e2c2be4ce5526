"""`cmjax evaluate`: the library's figures for files of every kind, and misuse in one line."""

import json
import sys
import types

import numpy as np
import pytest
from click.testing import CliRunner

from cmjax import evaluation
from cmjax.cli import main
from cmjax.images import from_uint8, save_png_folder
from tests.support.cli import assert_one_line, succeeded


@pytest.fixture
def sets(tmp_path, monkeypatch):
    """Two sets of gray pictures as .npz, folder and features; the second is in a run's folder."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    real = rng.integers(0, 256, (60, 3, 3, 1), np.uint8)
    made = rng.integers(0, 200, (50, 3, 3, 1), np.uint8)
    np.savez("real.npz", images=real[..., 0])
    save_png_folder("pictures", real)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "manifest.json").write_text("{}")
    np.savez("run/samples_50x3x3x1.npz", arr_0=made)
    features = [from_uint8(each).reshape(-1, 9) for each in (real, made)]
    np.save("real.npy", features[0])
    np.savez("made.npz", features=features[1])
    gaussian = evaluation.fit_gaussian([features[0]])
    np.savez("statistics.npz", mu=gaussian.mean, sigma=gaussian.cov)
    np.savez("large.npz", arr_0=np.zeros((3, 64, 64, 3), np.uint8))
    np.savez("odd.npz", mu=np.zeros(3), sigma=np.zeros((2, 2)))
    np.save("flat.npy", np.zeros(3))
    np.save("number.npy", np.float64(3))
    with open("several.npy", "wb") as file:
        np.savez(file, features=features[0])
    with open("single.npz", "wb") as file:
        np.save(file, features[0])
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "empty").mkdir()
    (tmp_path / "own_features.py").write_text(
        "import numpy as np\n"
        "def mean(x): return x.reshape(len(x), -1).mean(1, keepdims=True) / 255\n"
        "def broken(x): raise KeyError('weights')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return features


def evaluate(*args):
    return CliRunner().invoke(main, ["evaluate", *args])


@pytest.mark.parametrize(
    "args",
    [
        "real.npz run --features pixels",
        "pictures run --features pixels",
        "real.npy made.npz",
        "real.npz made.npz --features pixels",
    ],
)
def test_the_figures_are_those_of_the_library(sets, args):
    measured = json.loads(succeeded(evaluate(*args.split(), "--json")).stdout)
    expected = evaluation.frechet_distance(*sets)
    assert measured["frechet_distance"] == pytest.approx(expected, rel=1e-6)
    fidelity = evaluation.precision_recall(*sets)
    assert (measured["precision"], measured["recall"]) == fidelity


def test_statistics_have_a_distance_alone(sets):
    result = succeeded(evaluate("statistics.npz", "made.npz"))
    expected = evaluation.frechet_distance(*sets)
    lines = dict(line.split("  ", 1) for line in result.stdout.splitlines())
    assert float(lines["frechet distance"]) == pytest.approx(expected, rel=1e-5)
    assert "precision" not in lines
    assert lines["real"].strip() == "statistics.npz, statistics of 9 features"


def test_options_reach_the_measures(sets):
    args = ["real.npz", "run", "--features", "own_features:mean", "--num", "20"]
    measured = json.loads(
        succeeded(evaluate(*args, "--neighbor", "1", "--batch-size", "7", "--json")).stdout
    )
    drawn = [np.random.default_rng(0).permutation(len(each))[:20] for each in sets]
    means = [
        (each[rows].mean(1, keepdims=True) + 1) / 2
        for each, rows in zip(sets, drawn, strict=True)
    ]
    expected = evaluation.frechet_distance(*means)
    assert measured["frechet_distance"] == pytest.approx(expected, abs=1e-6)
    fidelity = evaluation.precision_recall(*means, k=1)
    assert measured["precision"] == pytest.approx(fidelity.precision, abs=0.11)
    few = succeeded(evaluate("real.npz", "run", "--features", "pixels", "--num", "5"))
    assert few.stderr.startswith("Note: 5 samples are few for 9 features")


def test_some_pictures_of_a_folder_are_of_all_its_classes(sets, tmp_path):
    # 20 black pictures, then 20 white ones; the first 20 would be equal to the black ones.
    black = np.zeros((20, 3, 3, 1), np.uint8)
    for name, pictures in {"both/0": black, "both/1": black + 255, "one/0": black}.items():
        save_png_folder(tmp_path / name, pictures)
    args = ["both", "one", "--features", "pixels", "--num", "20", "--json"]
    measured = json.loads(succeeded(evaluate(*args)).stdout)
    assert measured["recall"] < 1
    assert measured["frechet_distance"] > 0.5


def test_what_takes_minutes_is_said_first(sets, monkeypatch):
    monkeypatch.setattr("cmjax.cli.evaluate.LARGE", 59)
    said = succeeded(evaluate("real.npz", "run", "--features", "pixels")).stderr
    assert said.startswith("Precision and recall: each of 60 samples is compared with all")
    few = succeeded(evaluate("real.npz", "run", "--features", "pixels", "--num", "50"))
    assert "Precision" not in few.stderr


def test_torch_fidelity_gets_folders_of_pictures(sets, monkeypatch):
    asked = {}

    def calculate_metrics(**options):
        asked.update(options)
        assert len(evaluate_folder(options["input1"])) == 50
        assert len(evaluate_folder(options["input2"])) == 60
        return {"frechet_inception_distance": 3.5}

    def evaluate_folder(path):
        from pathlib import Path

        return sorted(Path(path).glob("*.png"))

    library = types.ModuleType("torch_fidelity")
    library.calculate_metrics = calculate_metrics
    torch = types.ModuleType("torch")
    torch.cuda = types.SimpleNamespace(is_available=lambda: False)
    monkeypatch.setitem(sys.modules, "torch_fidelity", library)
    monkeypatch.setitem(sys.modules, "torch", torch)
    result = succeeded(evaluate("pictures", "run", "--torch-fidelity"))
    assert "frechet inception distance  3.5" in result.stdout
    assert asked["fid"] and asked["prc"] and not asked["cuda"]


def test_torch_fidelity_that_is_missing_is_named(sets, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", types.ModuleType("torch"))
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    result = evaluate("pictures", "run", "--torch-fidelity")
    assert_one_line(result, "needs the package of that name; pip install torch-fidelity")


def test_fewer_samples_than_asked_for_are_noted(sets):
    result = succeeded(evaluate("real.npy", "made.npz", "--num", "55", "--json"))
    assert result.stderr.splitlines() == ["Note: made.npz has 50 samples, not 55"]
    assert "55 samples" in json.loads(result.stdout)["real"]


def test_exports_of_several_sizes_are_named(sets, tmp_path):
    (tmp_path / "run" / "samples_60x3x3x1_png").mkdir()
    result = evaluate("real.npz", "run", "--features", "pixels")
    assert result.exit_code == 2
    assert (
        "several sizes, samples_50x3x3x1.npz and samples_60x3x3x1_png; name one"
        in result.stderr
    )


def test_a_run_of_pictures_alone_names_their_folder(sets, tmp_path):
    (tmp_path / "run" / "samples_50x3x3x1.npz").unlink()
    args = ("real.npz", "run", "--features", "pixels")
    assert_one_line(
        evaluate(*args), "generate, which has no samples_*.npz; run its command"
    )
    (tmp_path / "run" / "samples_50x3x3x1_png").mkdir()
    folder = "run/samples_50x3x3x1_png"
    assert_one_line(evaluate(*args), f"has no samples_*.npz; name the folder {folder}")


@pytest.mark.parametrize(
    ("args", "fragment"),
    [
        (
            "real.npz run",
            "real.npz holds pictures: give --features package.module:function",
        ),
        (
            "real.npz large.npz --features pixels",
            "large.npz has 12,288 numbers in a picture",
        ),
        ("real.npz nowhere --features pixels", "nowhere: No such file"),
        ("empty run --features pixels", "empty holds no pictures"),
        ("text.npz run --features pixels", "text.npz is not a file of NumPy"),
        ("flat.npy made.npz", "flat.npy must be features [N, D]"),
        ("made.npz number.npy", "number.npy must be features [N, D]"),
        ("several.npy made.npz", "it holds several arrays, as an .npz does"),
        ("single.npz made.npz", "it holds a single array, as a .npy does"),
        ("odd.npz made.npz", "odd.npz must have a mean [D] and a covariance [D, D]"),
        ("statistics.npz made.npz --num 3", "--num: statistics.npz holds statistics"),
        ("real.npz run --features own_features:broken", "broken: KeyError('weights')"),
        ("real.npz run --features own_features:men", "did you mean 'mean'?"),
        ("real.npz run --features pixels --num 3", "--neighbor must be below the number"),
        ("real.npz run --features x --torch-fidelity", "exclude each other"),
        ("real.npy real.npy --features pixels", "--features pixels is for pictures"),
        ("real.npy real.npy --size 4", "--size 4 is for pictures, and both sides are"),
        (
            "real.npy made.npz --torch-fidelity",
            "needs pictures, but real.npy is 60 samples",
        ),
        ("real.npz made.npz --features own_features:mean", "must have as many features"),
        ("real.npz made.npz --features own_features:mean", "of one size (--size N)"),
    ],
)
def test_misuse_is_one_line(sets, args, fragment):
    assert_one_line(evaluate(*args.split()), fragment)


def test_a_folder_of_other_sizes_needs_a_size(sets, tmp_path):
    save_png_folder("pictures/more", np.zeros((2, 5, 4, 3), np.uint8))
    result = evaluate("pictures", "run", "--features", "pixels")
    assert_one_line(result, "is 4x5, other than pictures/000000.png; --size N scales all")
    succeeded(evaluate("pictures", "run", "--features", "pixels", "--size", "3"))

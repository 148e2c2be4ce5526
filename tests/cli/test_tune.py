"""`cmjax tune`: it searches, keeps its trials, goes on from them, and refuses others."""

import errno
import json

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import cmjax
from cmjax.cli import main, terminal
from tests.support.cli import assert_one_line, succeeded
from tests.support.networks import tiny_model

OPTIONS = ["--model", "model", "--features", "pixels", "--num", "6", "--batch-size", "4"]

CHURN = ["--set", "s_churn=3", "--set", "s_tmax=50"]
FLOW = ["--scheduler", "FlowMatchEulerDiscreteScheduler", "--set", "shift=3"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = tiny_model(2)
    cmjax.save("model", model)
    size, _, channels = model.sample_shape
    rng = np.random.default_rng(0)
    np.savez("real.npz", images=rng.integers(0, 256, (20, size, size, channels), np.uint8))
    return tmp_path


def tune(*args):
    return CliRunner().invoke(main, ["tune", "real.npz", *OPTIONS, *args])


def test_a_search_is_kept_and_goes_on(folder):
    whole = succeeded(tune("--trials", "4")).output
    assert len(whole.splitlines()) == 5 and "--sigmas 80," in whole
    first = succeeded(tune("--trials", "2", "--out", "t.json")).output
    assert first.splitlines()[:2] == [
        line.replace("/4", "/2") for line in whole.splitlines()[:2]
    ]

    # Only what is missing is tried, and it ends as if it had not stopped.
    second = succeeded(tune("--trials", "4", "--out", "t.json")).output
    assert second.splitlines() == whole.splitlines()[2:]
    trials = json.loads((folder / "t.json").read_text())["trials"]
    assert len(trials) == 4 and trials[0][0][0] == 80

    # It is not gone on from with other options, or from other files.
    result = tune("--trials", "4", "--out", "t.json", "--seed", "1")
    assert_one_line(result, "--out: t.json is of a search with seed=0, not 1")
    result = tune("--trials", "4", "--out", "t.json", "--batch-size", "3")
    assert_one_line(result, "--out: t.json is of a search with batch_size=4, not 3")
    (folder / "t.json").write_text("{}")
    assert_one_line(tune("--out", "t.json"), "--out: t.json is not a file of cmjax tune")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--steps", "1"], "--steps must be at least 2: the first level is kept"),
        (["--features", "no.such:name"], "no.such"),
        (["--guidance", "2"], "--guidance: guidance needs a network with a null class"),
        (
            ["--scheduler", "DDIMScheduler"],
            "its noise levels cannot be chosen: DDIMScheduler takes timesteps",
        ),
        # Before the first trial, which would be lost.
        (["--out", "missing/t.json"], "--out: there is no folder missing; make it first"),
        (["--out", "."], "--out: . is a folder; give the name of a file"),
        (["--out", "x" * 300], "File name too long"),
    ],
)
def test_misuse(folder, args, message):
    assert_one_line(tune(*args), message)


@pytest.mark.parametrize(
    ("args", "levels"),
    [
        (["--sigmas", "80,10,1"], "80,10,1"),
        # Whose states hold raised levels, and each level of a step twice.
        (["--scheduler", "EDMEulerScheduler", "--sigmas", "80,10,1", *CHURN], "80,10,1"),
        (["--scheduler", "EDMHeunScheduler", "--sigmas", "80,10,1"], "80,10,1"),
        (["--scheduler", "EDMHeunScheduler", "--steps", "3"], "80,2.5152,0.002"),
        (["--scheduler", "EDMEulerScheduler", "--steps", "3", *CHURN], "80,2.5152,0.002"),
        # Whose states hold shifted levels.
        ([*FLOW, "--sigmas", "1,0.5,0.1"], "1,0.5,0.1"),
        ([*FLOW, "--timesteps", "1000,500,100"], "1,0.5,0.1"),
        ([*FLOW, "--steps", "3"], "1,0.501497,0.00299401"),
        # Whose states hold levels in the middle of a step.
        (["--scheduler", "EDMDPM2Scheduler", "--steps", "3"], "80,2.5152,0.002"),
        # Whose levels are of another path, or in other units.
        (["--scheduler", "SCMScheduler", "--steps", "2"], "6622700,1.80105"),
    ],
)
def test_where_the_search_begins(folder, args, levels):
    lines = succeeded(tune(*args, "--trials", "2")).output.splitlines()
    found = [float(level) for level in lines[0].split()[1].split(",")]
    assert found == pytest.approx([float(level) for level in levels.split(",")], rel=1e-4)


def test_features_of_another_number_are_named_by_their_file(folder):
    np.save("few.npy", np.random.default_rng(0).normal(size=(20, 4)))
    result = CliRunner().invoke(main, ["tune", "few.npy", *OPTIONS])
    assert_one_line(
        result, "few.npy and the samples must have as many features, got 4 and "
    )


def test_a_trial_that_cannot_be_printed_is_kept(folder, monkeypatch):
    def full(text, err=False):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(terminal, "echo", full)
        failed = tune("--trials", "2", "--out", "t.json")
    assert failed.exit_code != 0
    assert len(json.loads((folder / "t.json").read_text())["trials"]) == 1


def test_help_has_its_own_number_of_steps():
    # One step, the default of other commands, is too few for a search.
    words = " ".join(succeeded(tune("--help")).output.split())
    assert "EDMHeunScheduler. [default: 2]" in words


def test_trials_of_other_files_under_the_same_names_are_not_gone_on_from(folder):
    succeeded(tune("--trials", "2", "--out", "t.json"))
    size, _, channels = tiny_model(2).sample_shape
    np.savez("real.npz", images=np.zeros((20, size, size, channels), np.uint8))
    result = tune("--trials", "2", "--out", "t.json")
    assert_one_line(result, "--out: t.json is of a search with real_digest=")


@pytest.mark.parametrize(
    "content",
    [
        '{"search": [], "trials": []}',
        '{"search": "x", "trials": []}',
        '{"search": {}, "trials": [[[80, 2], 1%s]]}' % ("0" * 400),
        "[" * 100_000,
    ],
    ids=["list", "text", "huge", "nested"],
)
def test_files_of_other_things_are_named(folder, content):
    (folder / "t.json").write_text(content)
    assert_one_line(tune("--out", "t.json"), "--out: t.json is not a file of cmjax tune")


def test_pictures_of_several_sizes_are_scaled(folder):
    (folder / "photos").mkdir()
    for number, size in enumerate([(9, 12), (8, 8), (20, 10)]):
        Image.new("L", size, 10 * number).save(folder / "photos" / f"{number}.png")
    args = ["tune", "photos", *OPTIONS, "--trials", "2"]
    assert_one_line(CliRunner().invoke(main, args), "--size N scales all")
    args += ["--out", "t.json"]
    succeeded(CliRunner().invoke(main, [*args, "--size", "4"]))
    result = CliRunner().invoke(main, [*args, "--size", "5"])
    assert_one_line(result, "--out: t.json is of a search with real_digest=")

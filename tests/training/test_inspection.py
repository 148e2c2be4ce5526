"""Data are looked at before the first step; a run's folder is looked at before it is used."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

import cmjax
from cmjax.processes import locked
from cmjax.training import inspection, sources
from cmjax.training.checkpointing import Checkpoints
from cmjax.training.config import from_values
from cmjax.training.folder import open_folder

SCHEDULER = cmjax.CMStochasticIterativeScheduler()
DRAW = np.random.default_rng(0)
NOISE = DRAW.normal(0, 0.5, (40, 8, 8, 1)).astype(np.float32)


def inspect(source, num_classes=None):
    inspection.inspect(source, num_classes, SCHEDULER)


@pytest.mark.parametrize(
    "data, message",
    [
        (
            abs(NOISE) % 1,
            "floats from .* to .*, none below 0: .* pixels that are not scaled",
        ),
        (abs(NOISE) % 1 * 255, "floats from .* to .*, none below 0"),
        (NOISE * 1000, "beyond the highest noise level, 80; scale them to .* about 0.5"),
        (abs(NOISE[:, :2, 0, 0]) * 1000, "beyond the highest noise level"),
        ((NOISE > 0).astype(np.uint8), "pixels of 0 and 1, .*; multiply .* by 255"),
    ],
)
def test_floats_that_are_not_scaled(data, message):
    with pytest.raises(ValueError, match=message):
        inspect(sources.Arrays(data))


@pytest.mark.parametrize(
    "data",
    [
        np.clip(NOISE, -1, 1),
        NOISE * 10,
        abs(NOISE[:, :2, 0, 0]),
        (abs(NOISE) % 1 * 255).astype(np.uint8),
    ],
    ids=["images", "latents", "points", "pixels"],
)
def test_data_that_are_well_scaled(data):
    inspect(sources.Arrays(data))


def test_every_label_is_looked_at():
    labels = np.zeros(40, np.int32)
    labels[39] = 3
    source = sources.Arrays(NOISE, labels)
    inspect(source)
    inspect(source, num_classes=4)
    with pytest.raises(ValueError, match="record 39 of the data has label 3; .* below num"):
        inspect(source, num_classes=3)
    with pytest.raises(ValueError, match="no labels, but the network has 3 classes"):
        inspect(sources.Arrays(NOISE), num_classes=3)


@pytest.mark.parametrize("label", [2**31, 2**32, 2**40, -1])
def test_labels_beyond_32_bits_are_refused_before_they_become_others(tmp_path, label):
    labels = np.zeros(40, np.int64)
    labels[7] = label
    np.savez(tmp_path / "d.npz", images=NOISE, labels=labels)
    with pytest.raises(ValueError, match=f"d.npz: sample 7 has label {label}; labels must"):
        sources.open_source(tmp_path / "d.npz")


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(6):
        pixels = DRAW.integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def test_every_picture_is_looked_at(pictures):
    source = sources.open_source(pictures, 8)
    inspect(source)
    Image.new("RGBA", (8, 8)).save(pictures / "4.png")
    with pytest.raises(ValueError, match="4.png has transparency"):
        inspect(source)
    (pictures / "3.png").write_text("no picture")
    with pytest.raises(ValueError, match="3.png is not a picture"):
        inspect(source)


def test_as_many_pictures_are_decoded_as_the_bytes_allow(pictures, monkeypatch):
    whole = (pictures / "3.png").read_bytes()
    (pictures / "3.png").write_bytes(whole[:-30])
    with pytest.raises(ValueError, match="cannot read .*3.png"):
        inspect(sources.open_source(pictures, 8))

    # With room for a third of the bytes, numbers 0 and 3 are decoded, and 4 is not.
    monkeypatch.setattr(inspection, "WHOLE", 2 * len(whole))
    with pytest.raises(ValueError, match="cannot read .*3.png"):
        inspect(sources.open_source(pictures, 8))
    (pictures / "3.png").rename(pictures / "4.png")
    (pictures / "3.png").write_bytes(whole)
    inspect(sources.open_source(pictures, 8))


def test_what_is_no_file_is_not_read(tmp_path, pictures):
    (tmp_path / "endless").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe.npz")
    for path in ("/dev/zero", tmp_path / "endless", tmp_path / "pipe.npz"):
        with pytest.raises(ValueError, match="not a regular file"):
            sources.open_source(path, 8)
    os.mkfifo(pictures / "a.png")
    with pytest.raises(ValueError, match="a.png is .* not a regular file"):
        sources.open_source(pictures, 8)


def test_no_more_is_read_than_a_file_can_hold(tmp_path):
    """Nine bytes that announce 2^64."""
    (tmp_path / "images").write_bytes(b"\0\0\x08\x02" + b"\xff" * 8)
    with pytest.raises(ValueError, match="images announces .* but holds 0 bytes"):
        sources.open_source(tmp_path / "images")


def test_fingerprints_tell_data_from_other_data(pictures):
    labels = np.arange(40, dtype=np.int32)
    one = sources.Arrays(NOISE, labels)
    assert one.fingerprint() == sources.Arrays(NOISE.copy(), labels).fingerprint()
    changed = NOISE.copy()
    changed[7, 3] += 1
    for other in (
        sources.Arrays(changed, labels),
        sources.Arrays(NOISE),
        sources.Arrays(NOISE, labels[::-1]),
        sources.Arrays(NOISE[:39], labels[:39]),
    ):
        assert other.fingerprint() != one.fingerprint()

    known = sources.open_source(pictures, 8).fingerprint()
    assert sources.open_source(pictures, 8).fingerprint() == known
    (pictures / "2.png").rename(pictures / "9.png")
    assert sources.open_source(pictures, 8).fingerprint() != known


# The folder of a run.

CONFIG = from_values({"run": {"init": "some/model", "ema_decays": [0.9, 0.5]}})
FINGERPRINT = {"samples": 40, "digest": "abc"}


@pytest.fixture
def begun(tmp_path):
    """A folder in which a run was begun."""
    open_folder(tmp_path, CONFIG, FINGERPRINT, None)
    return tmp_path


def test_the_same_run_is_recognized(begun):
    open_folder(begun, CONFIG, FINGERPRINT, 500)
    others = from_values(
        {"run": {"init": "some/model", "ema_decays": [0.9, 0.5], "keep": 3}}
    )
    open_folder(begun, others, FINGERPRINT, 500)


def test_other_data_under_the_same_name_are_refused(begun):
    other = {**FINGERPRINT, "digest": "xyz"}
    message = (
        "other files: digest='abc', not 'xyz'; put the files back as they were, or choose"
    )
    with pytest.raises(ValueError, match=message):
        open_folder(begun, CONFIG, other, 500)
    # Nothing is lost where there is no checkpoint yet.
    open_folder(begun, CONFIG, other, None)
    open_folder(begun, CONFIG, other, 500)


def test_models_of_a_run_that_lost_its_checkpoints_are_not_replaced(begun):
    (begun / "model").mkdir()
    rows = "step,loss\n500,1.0\n{},1.0\n"
    (begun / "metrics.csv").write_text(rows.format(900))
    open_folder(begun, CONFIG, FINGERPRINT, None)  # killed at its first save
    (begun / "metrics.csv").write_text(rows.format(1500))
    with pytest.raises(ValueError, match="without its checkpoints.*put them back into"):
        open_folder(begun, CONFIG, FINGERPRINT, None)
    open_folder(begun, CONFIG, FINGERPRINT, 1000)


def test_the_same_files_under_other_names_are_the_same_run(begun):
    """As those of a configuration that was moved; `config.json` names the present ones."""
    moved = {"data": {"source": "elsewhere.npz"}, "run": {"init": "moved"}}
    moved["run"]["ema_decays"] = [0.9, 0.5]
    open_folder(begun, from_values(moved), FINGERPRINT, 500)
    written = json.loads((begun / "config.json").read_text())
    assert written["data"]["source"] == "elsewhere.npz"


@pytest.mark.parametrize(
    ("section", "reason"),
    [
        ({}, None),
        ({"optimizer": {"schedule": "cosine"}}, "optimizer.schedule='cosine' depends on"),
        ({"loss": {"name": "ect"}}, "the loss 'ect' depends on it; resume with that"),
    ],
)
def test_steps_may_be_added_where_no_step_depends_on_them(tmp_path, section, reason):
    def config(steps):
        return from_values({"run": {"init": "some/model", "steps": steps}, **section})

    open_folder(tmp_path, config(6), FINGERPRINT, None)
    if reason is None:
        open_folder(tmp_path, config(9), FINGERPRINT, 6)
        assert '"steps": 9' in (tmp_path / "config.json").read_text()
    else:
        with pytest.raises(ValueError, match=f"run.steps=6, not 9, and {reason}"):
            open_folder(tmp_path, config(9), FINGERPRINT, 6)


def test_checkpoints_of_nobody_knows_what_are_refused(begun):
    (begun / "config.json").unlink()
    with pytest.raises(ValueError, match="has checkpoints but no config.json"):
        open_folder(begun, CONFIG, FINGERPRINT, 500)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"{}", b"[" * 20_000, b"\xff"])
def test_a_damaged_configuration_is_refused(begun, content):
    (begun / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match="config.json is (damaged|not of a training run)"):
        open_folder(begun, CONFIG, FINGERPRINT, 500)


def test_models_of_others_are_not_replaced(tmp_path):
    (tmp_path / "model_0.5").mkdir()
    with pytest.raises(ValueError, match="model_0.5 is no model of this run"):
        open_folder(tmp_path, CONFIG, FINGERPRINT, None)


def test_a_file_that_would_end_the_run_at_its_first_save_is_found_at_once(begun):
    (begun / "model").mkdir()
    (begun / "model" / ".DS_Store").touch()
    with pytest.raises(
        ValueError, match="model holds .DS_Store, which cmjax did not write"
    ):
        open_folder(begun, CONFIG, FINGERPRINT, 500)


def test_a_lock_of_another_program_keeps_its_content(tmp_path):
    (tmp_path / "theirs").write_text("mine")
    (tmp_path / "out").mkdir()
    for make in (os.symlink, shutil.copy):
        make(tmp_path / "theirs", tmp_path / "out" / ".lock")
        with pytest.raises(ValueError, match=".lock is (a symbolic link|there, but cmjax)"):
            locked(tmp_path / "out")
        assert (tmp_path / "out" / ".lock").read_text() == "mine"
        (tmp_path / "out" / ".lock").unlink()
    assert (tmp_path / "theirs").read_text() == "mine"


def test_checkpoints_are_not_deleted_through_a_link(tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "checkpoints").symlink_to(tmp_path / "theirs")
    with pytest.raises(ValueError, match="checkpoints is a symbolic link"):
        Checkpoints(tmp_path)


def test_a_second_run_is_kept_out(tmp_path):
    with locked(tmp_path), pytest.raises(ValueError, match="another run is at work in"):
        locked(tmp_path)

"""Folders of samples that hold what cmjax did not write, or were made to mislead it."""

import json
import os
import shutil
import zipfile

import numpy as np
import pytest
from click.testing import CliRunner

import cmjax
from cmjax import cli
from cmjax.generation import Request, manifest, verify
from cmjax.generation.manifest import read_manifest
from cmjax.generation.shards import Shards
from cmjax.image_files import write_shard
from tests.support.cli import assert_one_line, succeeded
from tests.support.generation import CLASSES, export_of, make, shards_of
from tests.support.networks import tiny_model

PNG = "samples_24x8x8x1_png"
NPZ = "samples_24x8x8x1.npz"


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def finished(tmp_path_factory, model):
    """A run of 24 samples."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    make(folder, model)
    return folder


@pytest.fixture
def out(tmp_path, finished):
    """A copy of that run, to be harmed."""
    return shutil.copytree(finished, tmp_path / "out")


def content(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ("log.jsonl", ".lock")
    }


def command(*options):
    arguments = ["generate", "--compilation-cache", "none", *map(str, options)]
    return CliRunner().invoke(cli.main, arguments)


# What the user has put into the folder.


@pytest.mark.parametrize("kind", ["png", "npz"])
def test_no_export_takes_the_place_of_what_is_there(model, tmp_path, out, kind):
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "holiday.jpg").write_bytes(b"mine")
    place = out / (PNG if kind == "png" else NPZ)
    if kind == "npz":
        place.unlink()
        place.write_bytes(b"mine")
        (out / "SHA256SUMS").unlink()
    else:
        shutil.copytree(victim, place)
    before = content(tmp_path)
    with pytest.raises(ValueError, match=f"{place.name} is there, but cmjax did not write"):
        make(out, model, formats=[kind])
    assert content(tmp_path) == before

    # Nor through a link, to a folder, a file or nothing.
    for target in (victim, victim / "holiday.jpg", victim / "nothing"):
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
        else:
            place.unlink()
        place.symlink_to(target)
        with pytest.raises(ValueError, match=f"{place.name} is a symbolic link to"):
            make(out, model, formats=[kind])
        assert content(victim) == {"holiday.jpg": b"mine"}


def test_pictures_of_the_user_stay_among_those_of_a_run(model, out):
    make(out, model, formats=["png"])
    (out / PNG / "mine.png").write_bytes(b"mine")
    make(out, model, formats=["png"])  # nothing has to be written

    # Without the last line, its picture could be the user's.
    sums = out / "SHA256SUMS"
    lines = sums.read_text().splitlines(keepends=True)
    sums.write_text("".join(lines[:-1]))
    with pytest.raises(ValueError, match="holds 000023.png, which cmjax did not write"):
        make(out, model, formats=["png"])
    sums.write_text("".join(lines)[:-1])
    with pytest.raises(ValueError, match="SHA256SUMS is damaged"):
        make(out, model, formats=["png"])
    sums.write_text("".join(lines))

    (out / PNG / "000003.png").write_bytes(b"damaged")
    before = content(out)
    with pytest.raises(ValueError, match="holds mine.png, which cmjax did not write"):
        make(out, model, formats=["png"])
    assert content(out) == before


def test_shards_of_another_run_are_moved_aside_and_reported(model, tmp_path, out):
    other = tmp_path / "other"
    make(other, model, request=Request(labels=CLASSES, seed=1))
    make(tmp_path / "large", model, shard_size=12)
    moved = []
    for folder in (other, tmp_path / "large"):
        for path in shards_of(folder):
            shutil.copy(path, out / "shards")
            moved.append(path)
    strangers = ["1-2-results.npz", "0-1²-x.npz", "000000000-999999999999-0.npz"]
    strangers += ["000000000-000000007-0123456789ABCDEF.npz", "notes.txt"]
    for name in strangers:
        (out / "shards" / name).write_bytes(b"mine")

    # They are named by --verify, and with --quiet too.
    damaged = {path.name for path in verify(out, model).damaged}
    assert damaged == {*strangers, *(path.name for path in moved)}
    cmjax.save(tmp_path / "model", model)
    options = ["--out", out, "--model", tmp_path / "model", "--num", 24, "--quiet"]
    result = succeeded(command(*options, "--batch-size", 2))
    lines = result.stderr.splitlines()
    assert result.stdout == "" and len(lines) == len(moved) == 5
    for path in moved:
        assert any(f"moved to {out}/shards/.removed/{path.name}" in line for line in lines)
        assert (out / "shards/.removed" / path.name).read_bytes() == path.read_bytes()
    for name in strangers:
        assert (out / "shards" / name).read_bytes() == b"mine"


@pytest.mark.parametrize("name", ["manifest.json", ".lock", "SHA256SUMS", "shards"])
def test_no_link_in_a_folder_is_followed(model, tmp_path, out, name):
    (out / name).rename(tmp_path / "elsewhere")
    (out / name).symlink_to(tmp_path / "elsewhere")
    before = content(tmp_path)
    with pytest.raises(ValueError, match=f"{name} is a symbolic link"):
        make(out, model, 40)
    assert content(tmp_path) == before


def test_a_lock_of_another_program_keeps_its_content(model, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / ".lock").write_text("pid 7")
    with pytest.raises(ValueError, match=".lock is there, but cmjax did not write it"):
        make(out, model)
    assert content(tmp_path) == {} and (out / ".lock").read_text() == "pid 7"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize(
    "name", ["manifest.json", "SHA256SUMS", "log.jsonl", ".lock", "shard", "shard link"]
)
def test_pipes_and_devices_make_nobody_wait(model, out, name):
    path = out / name
    if name.startswith("shard"):
        path = shards_of(out)[1]
    path.unlink()
    if name == "shard link":
        path.symlink_to("/dev/zero")
    else:
        os.mkfifo(path)
    if name.startswith("shard"):
        assert verify(out, model).damaged == [path]
        assert make(out, model, report=[].append).num_made == 8
        assert os.path.lexists(out / "shards" / ".removed" / path.name)
    else:
        with pytest.raises(ValueError, match=f"{name} is "):
            make(out, model)


# What was made to mislead. A digest is no signature: these have right ones.


def rewrite(folder, **changes):
    """Changes the settings in a manifest, and its digest."""
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    del content["digest"]
    source = changes.pop("source", content["source"])
    content = {"settings": content["settings"] | changes, "source": source}
    digest = manifest._digest(content)
    path.write_text(json.dumps({**content, "digest": digest}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": []}, "schedule"),
        ({"schedule": {"depth": 1}}, "schedule"),
        ({"schedule": {"num_inference_steps": 2**31 - 1}}, "2147483647 steps"),
        ({"schedule": {"sigmas": "123"}}, "sigmas"),
        ({"schedule": {"sigmas": [float("nan")]}}, "sigmas"),
        ({"labels": {}}, "labels"),
        ({"labels": 3}, "labels"),
        ({"seed": 2**80}, "seed"),
        ({"dtype": []}, "dtype"),
        ({"scheduler": 3}, "scheduler"),
        ({"sigmas": [None]}, "sigmas"),
        ({"timesteps": "x"}, "timesteps"),
        ({"shape": [8, 8, 10**40]}, "another model"),
        ({"shape": [8, -8, 1]}, "shape"),
        ({"platform": []}, "platform"),
        ({"matmul_precision": 1.5}, "matmul_precision"),
        ({"versions": None}, "versions"),
        ({"shard_size": 0}, "shard_size"),
        ({"shard_size": 1.5}, "shard_size"),
        ({"shard_size": 10**30}, "shard_size"),
        ({"model": 7}, "model"),
        ({"source": 7}, "source"),
        ({"more": 7}, "another version"),
    ],
)
def test_settings_that_no_run_has_are_refused(model, out, changes, message):
    rewrite(out, **changes)
    with pytest.raises(ValueError, match=message):
        verify(out, model)
    with pytest.raises(ValueError, match="another model|other settings|choose another"):
        make(out, model, shard_size=None)


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "3", '{"digest": 1}', "[" * 10**5, "9" * 10**4, b"\xff\xfe"]
)
def test_a_manifest_that_is_none_is_damaged(model, out, text):
    path = out / "manifest.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    for use in (lambda: verify(out, model), lambda: make(out, model)):
        with pytest.raises(ValueError, match="manifest.json is damaged"):
            use()


def test_a_shard_that_claims_what_it_does_not_hold_is_no_shard(model, out):
    """Shards with right digests, the last of more samples than there is memory for."""
    rewrite(out, shard_size=2**32)
    (out / "SHA256SUMS").unlink()
    export_of(out).unlink()
    for path in shards_of(out):
        path.unlink()
    shards = Shards(out, read_manifest(out).settings)
    claimed = range(0, 2**32)
    path = out / "shards" / "shard"

    def named():
        """Gives the file the name of that shard."""
        name = f"{0:09}-{2**32 - 1}-{shards._digest(claimed, path.read_bytes())}.npz"
        return path.rename(path.with_name(name))

    with path.open("wb") as file:
        write_shard(file, {"images": np.zeros((3, 8, 8, 1), np.uint8)})
    path = named()
    with pytest.raises(ValueError, match=r"is no shard: it holds uint8\[3, 8"):
        verify(out, model)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", bytes(10**6))
    named()
    with pytest.raises(ValueError, match="is no shard: it is compressed"):
        verify(out, model)


def test_a_name_far_away_leaves_one_gap(model, out):
    rewrite(out, shard_size=1)
    last = out / "shards" / f"{2**32 - 1:09}-{2**32 - 1:09}-0123456789abcdef.npz"
    last.touch()
    gap = out / "shards" / f"{0:09}-{2**32 - 2:09}-*.npz"
    assert {last, gap} <= set(verify(out, model).damaged)


def test_a_file_of_digests_without_an_end_is_refused(out):
    with (out / "SHA256SUMS").open("wb") as file:
        file.truncate(2**40)  # sparse: it takes no room
    with pytest.raises(ValueError, match="SHA256SUMS is damaged"):
        list(cmjax.generation.sums.damaged_exports(out))


# Where the model is.


def test_verify_asks_no_hub_on_the_manifests_word(model, out, monkeypatch):
    def download(source):
        raise AssertionError("asked the hub")

    monkeypatch.setattr("cmjax.checkpoints.hub.download", download)
    for source in (
        "owner/name",
        "https://evil.example/x",
        "../nothing",
        "/etc",
        "a\x1b[2Jb",
    ):
        rewrite(out, source=source)
        result = command("--verify", out)
        assert_one_line(result, "give it as --model MODEL")
        assert "\x1b" not in result.stderr


def test_a_manifest_has_no_absolute_paths(model, tmp_path, monkeypatch):
    cmjax.save(tmp_path / "models" / "mine", model)
    out = tmp_path / "runs" / "out"
    options = ["--num", 8, "--batch-size", 2, "--shard-size", 8]
    succeeded(command("--out", out, "--model", tmp_path / "models" / "mine", *options))
    assert str(tmp_path) not in (out / "manifest.json").read_text()
    assert read_manifest(out).source == "../../models/mine"
    succeeded(command("--verify", out, "--batch-size", 2))

    # From another folder, to which they were moved together, by relative names.
    (tmp_path / "other").mkdir()
    for name in ("models", "runs"):
        shutil.move(tmp_path / name, tmp_path / "other" / name)
    monkeypatch.chdir(tmp_path / "other" / "runs")
    succeeded(command("--verify", "out", "--batch-size", 2))
    options = ["--out", "out", "--model", "../models/mine", "--num", 9, "--batch-size", 2]
    assert "8 of 9 samples were there" in succeeded(command(*options)).stderr


@pytest.mark.parametrize(
    ("source", "expected"),
    [("", ""), ("owner/name", "owner/name"), ("/nowhere/at/all", "all"), ("/dev", "dev")],
)
def test_other_sources_are_names(tmp_path, source, expected):
    assert manifest._portable(source, tmp_path / "out") == expected


def test_a_folder_of_another_program_stays_as_it_is(model, tmp_path):
    out = tmp_path / "out"
    (out / "shards").mkdir(parents=True)
    (out / "manifest.json").write_text('{"name": "an app"}')
    (out / ".stop-0123abcd").touch()
    with pytest.raises(ValueError, match="manifest.json is damaged"):
        make(out, model)
    names = sorted(path.name for path in out.iterdir())
    assert names == [".stop-0123abcd", "manifest.json", "shards"]

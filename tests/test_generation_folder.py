"""A folder of samples: what happens to it meanwhile is noticed, and made good."""

import errno
import shutil
import signal
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import cmjax
from cmjax import cli
from cmjax.generation import Request, exports, folder, verify
from cmjax.generation.batches import BatchSampler
from cmjax.generation.manifest import read_manifest
from cmjax.generation.settings import RunSettings
from cmjax.generation.shards import Shards
from cmjax.generation.sums import damaged_exports
from tests.support.cli import assert_one_line
from tests.support.generation import (
    CLASSES,
    REQUEST,
    events,
    export_of,
    images,
    make,
    on_a_full_disk,
    shards_of,
)
from tests.support.networks import tiny_model


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


# Folders of earlier versions.

SETTINGS = {
    "model": "0123456789abcdef0123456789abcdef",
    "scheduler": {
        "_class_name": "CMStochasticIterativeScheduler",
        "num_train_timesteps": 40,
    },
    "schedule": {"sigmas": [70, 1.5]},
    "sigmas": [70.0, 1.5, 0.0020000000949949026],
    "timesteps": [1062.123779296875, 101.36627960205078],
    "labels": [3, 1],
    "seed": 7,
    "dtype": "float32",
    "shape": [2, 2, 1],
    "platform": "cpu",
    "matmul_precision": None,
    "versions": {"cmjax": "0.1.0", "jax": "0.10.2", "jaxlib": "0.10.2"},
    "shard_size": 4,
}


def test_a_shard_is_what_version_0_1_wrote(tmp_path):
    """Name and content are frozen: of another digest, every shard there is would be damaged."""
    settings = RunSettings.from_json(SETTINGS)
    assert settings.to_json() == SETTINGS
    (tmp_path / "shards").mkdir()
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 2, 2, 1)
    shards = Shards(tmp_path, settings)
    shards.write(range(4, 7), pixels)
    (path,) = shards_of(tmp_path)

    # Before 3.11.4, Python's zipfile declared large members otherwise.
    digest = "d75c4921c8590fbe" if sys.version_info >= (3, 11, 4) else "deff5e83e8d4a9cd"
    assert path.name == f"000000004-000000006-{digest}.npz"
    np.testing.assert_array_equal(shards.read(range(4, 7), path), pixels)
    with np.load(path) as arrays:
        assert list(arrays) == ["images", "labels"]
        assert arrays["labels"].tolist() == [3, 1, 3] and arrays["labels"].dtype == np.int32


def test_a_folder_of_a_version_with_other_settings_is_refused(tmp_path):
    with pytest.raises(ValueError, match="another version of cmjax differ in depth"):
        RunSettings.from_json(SETTINGS | {"depth": 1})


def test_a_scheduler_that_writes_down_more_options_is_the_same(model):
    settings = RunSettings.of(model, REQUEST)
    fewer = {k: v for k, v in settings.scheduler.items() if k != "rho"}
    before = RunSettings.from_json(settings.to_json() | {"scheduler": fewer})
    assert before.differences(settings) == []
    other = RunSettings.from_json(
        settings.to_json() | {"scheduler": settings.scheduler | {"rho": 5.0}}
    )
    assert other.differences(settings) == ["scheduler.rho was 5.0, now 7.0"]
    solver = RunSettings.from_json(
        settings.to_json() | {"scheduler": {"_class_name": "EDMHeunScheduler"}}
    )
    differences = solver.differences(settings)
    assert len(differences) == 1
    assert differences[0].startswith('scheduler.class was "EDMHeunScheduler", now "CMSto')

    # Of a folder with fewer options, only what differs.
    older = fewer | {"sigma_max": 40.0}
    before = RunSettings.from_json(settings.to_json() | {"scheduler": older})
    assert before.differences(settings) == ["scheduler.sigma_max was 40.0, now 80.0"]


# More samples, and other formats.


def test_more_samples_are_added(model, tmp_path):
    out = tmp_path / "out"
    make(tmp_path / "whole", model, 90)
    # The last, short shard of the first run is made again.
    for num, resumed in ((20, 0), (90, 16), (90, 90)):
        outcome = make(out, model, num)
        assert (outcome.num_resumed, outcome.num_done) == (resumed, num)
    result = out / "samples_90x8x8x1.npz"
    assert result.read_bytes() == export_of(tmp_path / "whole").read_bytes()
    assert verify(out, model)[:2] == ([], 90)

    # The short shard is of nobody's use now, but still checked; so is what else lies there.
    short = next((out / "shards").glob("000000016-000000019-*"))
    short.write_bytes(b"")
    doubled = short.with_name("000000000-000000007-0123456789abcdef.npz")
    doubled.write_bytes(b"")
    stranger = short.with_name("notes.txt")
    stranger.touch()
    assert verify(out, model)[:2] == ([short, doubled, stranger], 90)
    stranger.unlink()
    make(out, model, 90, shard_size=None, report=[].append)  # as the message says
    assert verify(out, model)[:2] == ([], 90)


def test_devices_share_what_is_made_again(model, out, monkeypatch):
    sizes = []

    def sampler(*args, **kwargs):
        made = BatchSampler(*args, **kwargs)
        sizes.append(made.size)
        return made

    # 24 samples on eight devices, not 64 on each.
    monkeypatch.setattr("cmjax.generation.verification.BatchSampler", sampler)
    assert verify(out, model)[:2] == ([], 24)
    assert sizes == [24]


def test_other_formats_hold_the_same_samples(model, out):
    from array_record.python.array_record_data_source import ArrayRecordDataSource
    from flax.serialization import msgpack_restore

    expected = images(out)
    outcome = make(out, model, formats=("png", "array-record"))
    assert outcome.num_made == 0
    folder, records = outcome.paths
    paths = sorted(folder.iterdir())
    assert [path.name for path in paths] == [f"{i:06}.png" for i in range(24)]
    pictures = [np.asarray(Image.open(path)) for path in paths]
    np.testing.assert_array_equal(np.stack(pictures)[..., None], expected)
    with ArrayRecordDataSource([str(records)]) as source:
        for i in range(24):
            record = msgpack_restore(source[i])
            np.testing.assert_array_equal(record["image"], expected[i])
            assert record["label"] == i % 10


def test_shards_may_go_once_something_is_made_of_them(model, out):
    shutil.rmtree(out / "shards")
    assert verify(out, model) == ([], 0, 0, True)
    assert make(out, model, shard_size=None).num_made == 24
    assert verify(out, model)[:2] == ([], 24)


# Harm.


@pytest.mark.parametrize("harm", ["truncated", "flipped", "foreign", "moved"])
def test_a_damaged_shard_is_named_and_made_again(model, tmp_path, out, harm):
    before = export_of(out).read_bytes()
    shards = shards_of(out)
    content = bytearray(shards[1].read_bytes())
    if harm == "truncated":
        content = content[:-100]
    elif harm == "flipped":
        content[len(content) // 2] ^= 1
    elif harm == "moved":  # a whole shard, with its digest, in the place of another
        shards[1].unlink()
        shards[1] = shards[1].with_name(
            "000000008-000000015-" + shards[0].name.split("-")[-1]
        )
        content = shards[0].read_bytes()
    else:  # a whole shard of a run with another seed
        make(tmp_path / "other", model, request=Request(labels=CLASSES, seed=1))
        content = shards_of(tmp_path / "other")[1].read_bytes()
    shards[1].write_bytes(content)
    assert verify(out, model).damaged == [shards[1]]

    export_of(out).unlink()
    messages = []
    outcome = make(out, model, report=messages.append)
    aside = out / "shards" / ".removed" / shards[1].name
    assert messages == [
        f"{shards[1]} is damaged or of another run; it was moved to {aside}, and its samples are "
        "made again"
    ]
    assert aside.read_bytes() == content
    assert outcome.num_resumed == 16
    assert export_of(out).read_bytes() == before
    verified = verify(out, model)  # in batches of another size, which may round differently
    assert (verified.damaged, verified.num_samples, verified.reproduced) == ([], 24, True)


def test_a_damaged_result_is_named_and_made_again(model, out):
    path = export_of(out)
    before = path.read_bytes()
    path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    damaged = path.read_bytes()
    assert list(damaged_exports(out)) == [path]
    messages = []
    make(out, model, report=messages.append)
    assert path.read_bytes() == before
    aside = out / ".removed" / path.name
    assert messages == [f"{path} is damaged; it was moved to {aside} and is made again"]
    assert aside.read_bytes() == damaged


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("manifest.json", '"seed": 0', '"seed": 1'),
        ("manifest.json", "{", ""),
        ("SHA256SUMS", "  ", " "),
    ],
)
def test_what_guards_a_folder_is_guarded_itself(model, out, name, before, after):
    path = out / name
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after, 1))
    for use in (lambda: verify(out, model), lambda: make(out, model)):
        with pytest.raises(ValueError, match=f"{path} is damaged"):
            use()


def test_what_is_missing_or_was_never_made_is_named(model, out):
    make(out, model, formats=("npz", "png"))
    result = export_of(out)
    extra = out / "samples_24x8x8x1_png/mine.png"
    old = out / "samples_9x8x8x1.npz"
    for path in (extra, old):
        path.touch()
    result.unlink()
    shards_of(out)[1].unlink()
    gap = out / "shards/000000008-000000015-*.npz"
    assert verify(out, model).damaged == [gap, result, extra, old]

    # What is the user's stays, and does not disturb as long as nothing has to take its place.
    make(out, model, formats=("npz", "png"))
    assert verify(out, model).damaged == [extra, old]
    for path in (extra, old):
        path.unlink()
    assert verify(out, model).damaged == []
    result.unlink()  # what is not wanted any more is forgotten when something else is made
    make(out, model, 20)
    assert verify(out, model).damaged == []


def test_bfloat16_is_verified_within_its_rounding(model, tmp_path):
    out = tmp_path / "out"
    make(out, model, request=Request(labels=CLASSES, dtype="bfloat16"), shard_size=24)
    assert verify(out, model, batch_size=1).reproduced
    (path,) = shards_of(out)
    shards = Shards(out, read_manifest(out).settings)
    others = shards.read(range(24), path)[np.arange(24) - 10]  # of the same classes
    path.unlink()
    shards.write(range(24), others)
    assert not verify(out, model, batch_size=1).reproduced


# Full disks, locks and signals.


@pytest.mark.parametrize(
    ("owner", "name", "size", "what"),
    [
        (Shards, "write", 100, "-0"),
        (exports.FORMATS["array-record"], "write", 1000, "samples_24x8x8x1.array_record"),
    ],
)
def test_a_full_disk_is_named_and_leaves_no_half_file(
    model, tmp_path, monkeypatch, owner, name, size, what
):
    limited = on_a_full_disk(getattr(owner, name), size)
    if owner is Shards:
        monkeypatch.setattr(Shards, "write", limited)
    else:
        monkeypatch.setitem(exports.FORMATS, "array-record", owner._replace(write=limited))
    with pytest.raises(OSError) as caught:
        make(tmp_path / "out", model, formats=["array-record"])
    assert "too large" in str(caught.value) and what in str(caught.value)
    assert not list((tmp_path / "out").rglob(".cmjax-*"))
    assert not list((tmp_path / "out").glob("samples_*"))
    assert events(tmp_path / "out")[-1]["event"] == "failed"
    monkeypatch.undo()
    assert make(tmp_path / "out", model, formats=["array-record"]).num_done == 24


def test_a_full_disk_under_pictures_is_named(model, out, monkeypatch):
    def full(*_):  # as Pillow passes it on, without a name
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("cmjax.image_files.save_png", full)
    with pytest.raises(
        OSError, match=f"No space left on device: '{out}/samples_24x8x8x1_png'"
    ):
        make(out, model, formats=["png"])
    last = events(out)[-1]
    assert last["event"] == "failed" and "No space left" in last["error"]


def test_a_file_system_without_locks_is_used_without(model, tmp_path, monkeypatch):
    def acquire(*_, **__):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("filelock.FileLock.acquire", acquire)
    assert make(tmp_path / "out", model).num_done == 24


def test_a_signal_stops_after_the_batch_and_the_run_resumes(model, tmp_path, monkeypatch):
    cmjax.save(tmp_path / "model", model)
    write = Shards.write

    def signalled(shards, shard, images):
        if shard.start == 0:  # once: a second signal would end this process
            signal.raise_signal(signal.SIGTERM)
        write(shards, shard, images)

    command = ["generate", "--model", tmp_path / "model", "--out", tmp_path / "out"]
    command += ["--num", 5000, "--batch-size", 2, "--shard-size", 8, "--quiet"]
    command += ["--compilation-cache", tmp_path / "cache"]
    with monkeypatch.context() as patched:
        patched.setattr(Shards, "write", signalled)
        result = CliRunner().invoke(cli.main, [*map(str, command)])
    assert result.exit_code == 130
    assert "of 5,000 samples are in" in result.stderr
    assert "the same command resumes" in result.stderr
    assert events(tmp_path / "out")[-1]["event"] == "stopped"
    outcome = make(tmp_path / "out", model, 40)
    assert outcome.num_resumed > 0 and (outcome.num_done, outcome.stopped) == (40, False)


def test_a_signal_while_the_result_is_written_stops_that_too(model, tmp_path, monkeypatch):
    export = folder.export

    def signalled(*args):
        signal.raise_signal(signal.SIGINT)
        return export(*args)

    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(folder, "export", signalled)
        with pytest.raises(KeyboardInterrupt):
            make(out, model)
    assert events(out)[-1]["event"] == "stopped"
    names = {path.name for path in out.iterdir()}
    assert names <= {".lock", "log.jsonl", "manifest.json", "shards"}
    outcome = make(out, model)
    assert (outcome.num_resumed, outcome.stopped, len(outcome.paths)) == (24, False, 1)


# The command.


def test_the_command_makes_and_verifies_a_folder(model, tmp_path):
    cmjax.save(tmp_path / "model", model)

    def run(*options):
        command = ["generate", "--compilation-cache", "none", "--batch-size", "2", *options]
        return CliRunner().invoke(cli.main, [str(part) for part in command])

    out = tmp_path / "out"
    # The earlier name of --num is taken, too.
    result = run("--model", tmp_path / "model", "--num-samples", 24, "--out", out)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"24 samples in {out}/samples_24x8x8x1.npz, ")
    make(tmp_path / "alone", model)
    np.testing.assert_array_equal(images(out), images(tmp_path / "alone"))

    result = run("--verify", out)  # the manifest says which model it was
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(
        f"{out}: 24 samples in shards, all files whole; those made again are equal"
    )
    assert run("--verify", out, "--quiet").output == ""
    shards_of(out)[0].write_bytes(b"")
    assert_one_line(run("--verify", out), "damaged, missing or unknown: shards/000000000-")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "--out DIR says where the samples go"),
        ("--out {tmp}/a --steps 2 --sigmas 80", "--steps and --sigmas"),
        ("--out {tmp}/a --steps 41", "--steps must be an integer"),
        ("--out {tmp}/a --timesteps 0,22", "--timesteps: "),
        ("--out {tmp}/a --labels 11", "--labels: "),
        ("--out {tmp}/a --format jpeg", "--format"),
        ("--out {tmp}", "must be new or empty"),
        (
            "--out {tmp}/copied",
            "copied holds shards without the manifest.json of their run",
        ),
        ("--out /proc/self/a", "/proc/self/a"),
        ("--verify {tmp}", "cmjax generate has not made it"),
        ("--verify {tmp} --num 3", "--num does not go with --verify"),
        ("--verify {tmp} --trust", "cmjax generate has not made it"),
        ("--verify {tmp} --vae x --batch-size 3 --quiet", "cmjax generate has not made it"),
        ("--out {tmp}/a --coordinator localhost:1", "--num-processes"),
        ("--out {tmp}/a --coordinator auto", "--coordinator auto: "),
    ],
)
def test_misuse_is_one_line(tmp_path, options, message):
    (tmp_path / "something").touch()
    (tmp_path / "copied/shards").mkdir(parents=True)
    arguments = options.format(tmp=tmp_path).split()
    result = CliRunner().invoke(
        cli.main, ["generate", "--compilation-cache", "none", *arguments]
    )
    assert_one_line(result, message)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copied", "something"]

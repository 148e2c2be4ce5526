"""Files and folders that are replaced whole: whatever happens, there is the old or the new."""

import errno
import os
import random
import signal
import stat
import subprocess
import sys
import textwrap
import time

import jax
import numpy as np
import pytest

import cmjax
from cmjax import files, system
from cmjax.files import read_regular, replacing, replacing_folder, set_aside
from cmjax.models import AutoencoderTinyConfig
from tests.support import checkpoints as tiny

try:
    import resource
except ImportError:  # Windows
    resource = None


def content(folder):
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in folder.rglob("*")
        if path.is_file()
    }


def fill(folder, text):
    (folder / "deep").mkdir()
    (folder / "a").write_text(text)
    (folder / "deep" / "b").write_text(text)


def anything(name):
    """For `replacing_folder`: whatever a folder holds may be removed with it."""
    return True


@pytest.fixture(params=["exchange", "no exchange"])
def either_system(request, monkeypatch):
    """With and without the system call that swaps two names."""
    if request.param == "no exchange":
        monkeypatch.setattr(system.sys, "platform", "other")


def test_names_are_paths_where_the_locale_is_not_utf_8(tmp_path):
    (tmp_path / "Bücher").touch()
    code = "from cmjax.files import path_of; assert path_of('B\\xfccher').exists()"
    no_utf_8 = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    for env in ({}, no_utf_8):
        command = [sys.executable, "-c", code]
        subprocess.run(command, cwd=tmp_path, env={**os.environ, **env}, check=True)


@pytest.mark.parametrize("value", [None, 3, b"folder", ["folder"], "", "a\0b"])
def test_what_is_no_path_is_refused_by_the_name_of_its_argument(value):
    model = cmjax.load()
    config = AutoencoderTinyConfig()
    autoencoder = cmjax.Autoencoder(config, {})
    with pytest.raises(ValueError, match="path must be a path, got"):
        cmjax.save(value, model)
    with pytest.raises(ValueError, match="path must be a path, got"):
        cmjax.save_autoencoder(value, autoencoder)
    for load in (cmjax.load, cmjax.load_autoencoder):
        if load is cmjax.load and value is None:
            continue  # the bundled model
        with pytest.raises(ValueError, match="source must be a folder, a file or a hub id"):
            load(value)


def test_a_folder_is_made_and_replaced(tmp_path, either_system):
    target = tmp_path / "not" / "there" / "yet"
    for text in ("one", "two", "three"):
        with replacing_folder(target, anything) as folder:
            assert folder.parent == target.parent
            fill(folder, text)
            if text != "one":
                assert content(target)["a"] != text
        assert content(target) == {"a": text, "deep/b": text}
        assert [path.name for path in target.parent.iterdir()] == ["yet"]


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt])
@pytest.mark.parametrize("there", [True, False])
def test_a_failure_inside_leaves_what_was_there(tmp_path, error, there):
    target = tmp_path / "x"
    if there:
        target.mkdir()
        fill(target, "old")
    with pytest.raises(error), replacing_folder(target, anything) as folder:
        fill(folder, "new")
        raise error
    assert [path.name for path in tmp_path.iterdir()] == ["x"] * there
    assert not there or content(target) == {"a": "old", "deep/b": "old"}


def test_a_failure_of_the_exchange_leaves_what_was_there(tmp_path, monkeypatch):
    target = tmp_path / "x"
    target.mkdir()
    fill(target, "old")

    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(files, "exchange", fail)
    with pytest.raises(OSError, match="Input/output"):
        with replacing_folder(target, anything) as folder:
            fill(folder, "new")
    assert content(target)["a"] == "old" and [path.name for path in tmp_path.iterdir()] == [
        "x"
    ]


def test_a_file_is_not_replaced_by_a_folder(tmp_path):
    (tmp_path / "x").write_text("old")
    with pytest.raises(NotADirectoryError, match="is a file; give the name of a folder"):
        with replacing_folder(tmp_path / "x"):
            pytest.fail("went on")
    with pytest.raises(OSError), replacing_folder(tmp_path / "x" / "y"):
        pytest.fail("went on")
    assert content(tmp_path) == {"x": "old"}


def test_no_link_is_followed(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "mine").write_text("mine")
    for name, target in (("folder", "real"), ("file", "real/mine"), ("dangling", "later")):
        (tmp_path / name).symlink_to(target)
        for write in (replacing, replacing_folder):
            with pytest.raises(ValueError, match=f"{name} is a symbolic link to {target}"):
                with write(tmp_path / name):
                    pytest.fail("went on")
        with pytest.raises(ValueError, match="symbolic link"):
            files.append(tmp_path / name, "line")
    assert content(tmp_path / "real") == {"mine": "mine"}
    assert not (tmp_path / "later").exists()

    # A link on the way there is a part of the name, as anywhere.
    with replacing(tmp_path / "folder" / "new") as file:
        file.write(b"new")
    assert content(tmp_path / "real") == {"mine": "mine", "new": "new"}


def test_what_is_not_ours_is_not_replaced(tmp_path):
    target = tmp_path / "x"
    target.mkdir()
    fill(target, "mine")
    for is_ours in (lambda name: False, lambda name: name in ("a", "deep")):
        with pytest.raises(
            ValueError, match="x holds (a|deep/b), which cmjax did not write"
        ):
            with replacing_folder(target, is_ours):
                pytest.fail("went on")

    # What came while the new folder was being written, and a link to what is ours.
    with pytest.raises(ValueError, match="x holds late"):
        with replacing_folder(target, lambda name: name != "late") as folder:
            fill(folder, "new")
            (target / "late").touch()
    (target / "late").unlink()
    (target / "link").symlink_to("deep")
    with (
        pytest.raises(ValueError, match="x holds link"),
        replacing_folder(target, anything),
    ):
        pytest.fail("went on")
    assert content(target) == {"a": "mine", "deep/b": "mine"}
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_what_is_set_aside_overwrites_nothing(tmp_path):
    for text in ("one", "two"):
        (tmp_path / "a").write_text(text)
        set_aside(tmp_path / "a")
    assert content(tmp_path) == {".removed/a": "one", ".removed/a.1": "two"}

    # A link is moved itself; and is not what files are moved to.
    (tmp_path / "link").symlink_to(tmp_path / ".removed" / "a")
    assert set_aside(tmp_path / "link").is_symlink()
    assert content(tmp_path)[".removed/a"] == "one"
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b").write_text("b")
    (tmp_path / "deep" / ".removed").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="symbolic link"):
        set_aside(tmp_path / "deep" / "b")
    assert (tmp_path / "deep" / "b").exists()


def test_only_what_killed_processes_left_is_cleared(tmp_path):
    for name in (
        ".cmjax-0123abcd",
        ".cmjax-0123abcd.png",
        ".cmjax-notes",
        ".cmjax-0123abcde",
    ):
        (tmp_path / name).write_text("a")
    (tmp_path / ".cmjax-00000000").mkdir()
    (tmp_path / ".cmjax-11111111").symlink_to(".cmjax-notes")
    files.clear_unfinished(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".cmjax-0123abcde",
        ".cmjax-11111111",
        ".cmjax-notes",
    ]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_only_regular_files_are_read_and_written(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "device", "folder"):
        with pytest.raises(ValueError, match=f"{name} is a .*, not a "):
            read_regular(tmp_path / name, 10)
        with pytest.raises(ValueError, match=f"{name} is "), replacing(tmp_path / name):
            pytest.fail("went on")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["device", "folder", "pipe"]

    # Links to files are read; sizes are bounded; what is missing is the system's error.
    (tmp_path / "file").write_bytes(b"0123456789")
    (tmp_path / "link").symlink_to("file")
    assert read_regular(tmp_path / "link", 10) == b"0123456789"
    with pytest.raises(ValueError, match="more than 9 bytes"):
        read_regular(tmp_path / "file", 9)
    with pytest.raises(FileNotFoundError):
        read_regular(tmp_path / "missing", 9)


def test_left_over_names_do_not_disturb(tmp_path):
    for name in (".cmjax-00000000", ".cmjax-12345678"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_text("half")
    with replacing_folder(tmp_path / "x", anything) as folder:
        fill(folder, "new")
    assert content(tmp_path / "x") == {"a": "new", "deep/b": "new"}
    assert content(tmp_path / ".cmjax-12345678") == {"a": "half"}


@pytest.mark.skipif(resource is None, reason="needs limits of a process")
@pytest.mark.parametrize("to", ["cmjax", "diffusers"])
def test_a_full_disk_leaves_the_old_model(tmp_path, to):
    target = tmp_path / "x"
    cmjax.save(target, tiny.model(0), to=to)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for room in (10, 600, 2000, 9000):  # full at the first file, or a later one
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
        try:
            with pytest.raises(OSError, match="File too large"):
                cmjax.save(target, tiny.model(1), to=to)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert_is(cmjax.load(target), 0)
        assert [path.name for path in tmp_path.iterdir()] == ["x"]
    signal.signal(signal.SIGXFSZ, handler)


def assert_is(loaded, seed):
    assert jax.tree.all(
        jax.tree.map(np.array_equal, loaded.params, tiny.model(seed).params)
    )


def which(loaded):
    """The seed of the model that it is exactly."""
    (seed,) = [
        s
        for s in (0, 1)
        if jax.tree.all(jax.tree.map(np.array_equal, loaded.params, tiny.model(s).params))
    ]
    return seed


@pytest.mark.process
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_process_leaves_the_old_or_the_new(tmp_path):
    """One that saves two models in turn, killed at random moments within its writing."""
    target = tmp_path / "models" / "x"
    code = """
        import sys
        import cmjax
        from tests.support import checkpoints as tiny
        models = tiny.model(0), tiny.model(1)
        while True:
            for model in models:
                cmjax.save(sys.argv[1], model)
                print(end=".", flush=True)
    """
    rng = random.Random(0)
    root = os.path.dirname(os.path.dirname(cmjax.__file__))
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), str(target)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": root},
        )
        assert (
            process.stdout.read(2) == b".."
        )  # at least two are written, and both can be there
        time.sleep(rng.uniform(0, 0.1))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert which(cmjax.load(target)) in (0, 1)
        assert all(
            path.name.startswith(".cmjax-")
            for path in target.parent.iterdir()
            if path != target
        )
    cmjax.save(target, tiny.model(1))  # whatever was left over
    assert which(cmjax.load(target)) == 1


def test_a_failed_write_says_where_and_other_errors_are_as_they_were(tmp_path):
    with pytest.raises(OSError) as caught, replacing(tmp_path / "a"):
        raise OSError(28, "No space left on device")
    assert caught.value.filename == str(tmp_path / "a")
    with pytest.raises(OSError) as caught, replacing(tmp_path / "no" / "a"):
        pass
    assert caught.value.filename == str(tmp_path / "no" / "a")  # and no temporary name
    with pytest.raises(OSError, match=f"^cannot write {tmp_path}/b/c: full$"):
        with replacing_folder(tmp_path / "b") as folder:
            raise OSError(f"cannot write {folder / 'c'}: full")
    with pytest.raises(OSError, match="^cannot encode$"), replacing(tmp_path / "a"):
        raise OSError("cannot encode")


def test_a_line_that_was_cut_short_does_not_spoil_the_next(tmp_path):
    log = tmp_path / "log"
    files.append(log, "one")
    with log.open("a") as file:
        file.write("tw")  # as a full disk or a kill may leave it
    for line in ("three", "four"):
        files.append(log, line)
    assert log.read_text() == "one\ntw\nthree\nfour\n"


def test_a_file_system_that_cannot_flush_folders_is_written_all_the_same(
    tmp_path, monkeypatch
):
    flush = os.fsync

    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with replacing(tmp_path / "a") as file:
        file.write(b"one")
    with replacing_folder(tmp_path / "b") as folder:
        fill(folder, "two")
    assert (tmp_path / "a").read_bytes() == b"one" and content(tmp_path / "b")["a"] == "two"


def test_a_name_that_is_too_long_is_not_writable(tmp_path):
    # From Python 3.14 on, no question about such a path raises an error.
    with pytest.raises(OSError, match="too long"):
        files.check_writable(tmp_path / ("x" * 300))


def test_a_name_in_no_folder_is_left_to_those_who_write_it(tmp_path):
    (tmp_path / "file").touch()
    files.check_writable(tmp_path / "missing" / "new")
    files.check_writable(tmp_path / "file" / "new")


def test_a_name_has_the_same_letters_in_every_locale(monkeypatch):
    # Where the locale is not UTF-8, Python writes the bytes of other letters as surrogates.
    in_c = "Käse".encode().decode("ascii", "surrogateescape")
    monkeypatch.setattr(
        os, "fsencode", lambda name: name.encode("ascii", "surrogateescape")
    )
    assert files.text_of(in_c) == "Käse"
    monkeypatch.undo()
    assert files.text_of("Käse") == "Käse"
    assert files.text_of(os.fsdecode(b"K\xe4se")) == os.fsdecode(b"K\xe4se")

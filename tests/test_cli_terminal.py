"""What the commands print: nothing of a file or a server controls the terminal."""

import dataclasses
import json
import sys

import jax
import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

import cmjax
from cmjax import cli
from cmjax.cli import compilation
from cmjax.printing import one_line, printable
from tests.support import checkpoints as tiny
from tests.support.cli import assert_one_line, program, succeeded

# Clears the screen, sets the title, goes back, C1's CSI, a line of its own, and from right to left.
EVIL = "a\x1b[2J\x1b]0;owned\x07\r\b\x9b31m\nnetwork  safe\u2028\u202eb"


def run(*arguments):
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


def assert_harmless(text):
    assert all(character.isprintable() or character == "\n" for character in text), text


def test_only_visible_characters_are_printed():
    assert printable("café 漢字 ok") == "café 漢字 ok"
    assert printable(EVIL).startswith("a\\x1b[2J\\x1b]0;owned\\x07\\r\\x08\\x9b31m\\n")
    assert printable("a\nb", keep="\n") == "a\nb"
    assert printable("\udce9\u202e") == "\\udce9\\u202e"
    assert one_line("a\n\x1b b  " + "c" * 9000, 4000) == f"a \\x1b b {'c' * 3991} ..."


def test_names_of_tensors(tmp_path):
    cmjax.save(tmp_path / "m", tiny.model())
    weights = tmp_path / "m" / "model.safetensors"
    save_file(load_file(weights) | {EVIL: np.zeros(2, np.float32)}, weights)
    for command in (("info",), ("sample", "--model"), ("convert",)):
        destination = [tmp_path / "d"] if command == ("convert",) else []
        result = run(*command, tmp_path / "m", *destination)
        assert_one_line(result, "unexpected a\\x1b[2J")
        assert_harmless(result.stderr)


def test_names_of_classes_and_strings_of_configs(tmp_path):
    names = (EVIL, "b")
    cmjax.save(tmp_path / "m", dataclasses.replace(tiny.model(), class_names=names))
    result = succeeded(run("info", tmp_path / "m"))
    assert_harmless(result.output)
    plain = succeeded(run("info"))
    rows = [line.split("  ")[0] for line in result.stdout.splitlines()]
    assert rows.count("network") == 1 and len(rows) <= len(plain.stdout.splitlines())
    assert_harmless(run("sample", "--model", tmp_path / "m", "--labels", "x\x1b[2J").stderr)

    tiny.edit(tmp_path / "m" / "config.json", **{EVIL: 1})
    assert_harmless(run("info", tmp_path / "m").stderr)
    (tmp_path / "m" / "config.json").write_text(json.dumps({"_class_name": EVIL}))
    assert_harmless(run("info", tmp_path / "m").stderr)


def test_answers_of_servers(monkeypatch):
    def download(source):
        raise ValueError(f"model {source!r}: the hub answers: {EVIL}")

    monkeypatch.setattr("cmjax.checkpoints.hub.download", download)
    result = run("info", "owner/name")
    assert_one_line(result, "the hub answers: a\\x1b[2J")
    assert_harmless(result.stderr)


@pytest.mark.parametrize("arguments", [("info", "no\x1b[2Jthing"), ("no\x1b[2Jthing",)])
def test_what_was_typed(arguments):
    result = run(*arguments)
    assert_one_line(result, "\\x1b[2J")
    assert_harmless(result.stderr)


@pytest.mark.skipif(sys.platform == "win32", reason="names of files are texts there")
def test_file_names_that_are_no_text():
    with program("info", b"/nowhere/caf\xe9/x") as process:
        _, stderr = process.communicate()
    assert process.returncode == 2
    assert stderr.startswith(b"Error: ") and b"caf\\udce9" in stderr


def test_nothing_needs_a_terminal_s_streams(monkeypatch, tmp_path):
    # Python has none of them in a service, or where a shell closed them.
    cmjax.save(tmp_path / "m", tiny.model())
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    out = tmp_path / "s.npz"
    arguments = [
        "sample",
        "--model",
        str(tmp_path / "m"),
        "--num",
        "2",
        "--batch-size",
        "1",
    ]
    with pytest.raises(SystemExit) as end:
        cli.main([*arguments, "--out", str(out)])
    assert not end.value.code and out.exists()


@pytest.mark.parametrize("cache", ["a file", "relative"])
def test_no_program_is_kept_where_there_is_no_folder_for_it(monkeypatch, tmp_path, cache):
    (tmp_path / "a file").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(
        "XDG_CACHE_HOME", str(tmp_path / cache) if cache == "a file" else cache
    )
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        compilation.keep_compiled(None)
        assert jax.config.jax_compilation_cache_dir is None
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
    assert not (tmp_path / "relative").exists()

"""Damaged and hostile folders: an error of ours that names the file, in bounded time and memory."""

import json
import os
import struct
import subprocess
import sys
import textwrap
import time
import zipfile
import zlib

import jax
import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

import cmjax
from cmjax import cli
from cmjax.checkpoints import diffusers_weights, open_checkpoint, torch_file
from tests.support import checkpoints as tiny
from tests.support import torch_zip as tz
from tests.support.draws import draws


@pytest.fixture(params=tiny.KINDS)
def kind(request, tmp_path):
    """(what to open, the file of its tensors, how to load it)."""
    path, weights = tiny.write(tmp_path, request.param)
    config = tiny.CONFIG if path.is_file() else None
    return path, weights, lambda: open_checkpoint(path, config=config).load()


def assert_same(loaded):
    jax.tree.map(np.testing.assert_array_equal, loaded.params, tiny.model().params)


def test_every_kind_loads_equal(kind):
    assert_same(kind[2]())


def header(path):
    content = path.read_bytes()
    (length,) = struct.unpack_from("<Q", content)
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def with_header(path, content, data):
    encoded = (content if isinstance(content, str) else json.dumps(content)).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + data)


def change(path, name, **fields):
    content, data = header(path)
    content[name] |= fields
    with_header(path, content, data)


@pytest.fixture
def weights(tmp_path):
    return tiny.write(tmp_path, "cmjax")[1]


FIRST = "conv_in.bias"
UNREADABLE = {
    "empty": lambda p: p.write_bytes(b""),
    "text": lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\n"),
    "truncated header": lambda p: p.write_bytes(p.read_bytes()[:100]),
    "truncated data": lambda p: p.write_bytes(p.read_bytes()[:-1]),
    "more data": lambda p: p.write_bytes(p.read_bytes() + b"\0"),
    "no length": lambda p: p.write_bytes(p.read_bytes()[8:]),
    "length too small": lambda p: p.write_bytes(struct.pack("<Q", 9) + p.read_bytes()[8:]),
    "length too large": lambda p: p.write_bytes(
        struct.pack("<Q", p.stat().st_size) + p.read_bytes()[8:]
    ),
    "length of 1 TB": lambda p: p.write_bytes(
        struct.pack("<Q", 2**40) + p.read_bytes()[8:]
    ),
    "length of 16 EB": lambda p: p.write_bytes(b"\xff" * 8 + p.read_bytes()[8:]),
    "unknown dtype": lambda p: change(p, FIRST, dtype="F128"),
    "negative shape": lambda p: change(p, FIRST, shape=[-2]),
    "shape of 1 TB": lambda p: change(p, FIRST, shape=[2**40]),
    "shape that overflows": lambda p: change(p, FIRST, shape=[2**32, 2**32, 2]),
    "shape of text": lambda p: change(p, FIRST, shape="2"),
    "overlapping": lambda p: change(p, FIRST, data_offsets=[0, 8]),
    "beyond the end": lambda p: change(p, FIRST, data_offsets=[2**40, 2**40 + 8]),
    "backwards": lambda p: change(p, FIRST, data_offsets=[8, 0]),
    "not JSON": lambda p: with_header(p, "{", b""),
    "a list": lambda p: with_header(p, [], b""),
    "nested": lambda p: with_header(p, "[" * 10**5, b""),
    "no offsets": lambda p: with_header(p, {FIRST: {"dtype": "F32", "shape": [2]}}, b""),
}


@pytest.mark.parametrize("which", UNREADABLE)
def test_safetensors_that_cannot_be_read(weights, which):
    UNREADABLE[which](weights)
    with pytest.raises(
        ValueError, match="model.safetensors is not a readable safetensors file"
    ):
        open_checkpoint(weights.parent)


@pytest.mark.parametrize(
    ("dtype", "size"), [("F8_E4M3", 1), ("U64", 8), ("U16", 2), ("C64", 8)]
)
def test_dtypes_that_are_not_ours(weights, dtype, size):
    with_header(
        weights,
        {"x": {"dtype": dtype, "shape": [2], "data_offsets": [0, 2 * size]}},
        bytes(2 * size),
    )
    with pytest.raises(
        ValueError, match=rf"tensor x has dtype {dtype}; known are F64|not a readable"
    ):
        open_checkpoint(weights.parent)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", [0, -1])
def test_values_that_are_not_finite(weights, value, where):
    tensors = load_file(weights)
    tensors["conv_in.kernel"].reshape(-1)[where] = value
    save_file(tensors, weights)
    with pytest.raises(
        ValueError,
        match="model.safetensors: tensor conv_in.kernel has values that are not finite",
    ):
        cmjax.load(weights.parent)


def test_values_that_the_dtype_cannot_hold(weights):
    tensors = load_file(weights)
    tensors["conv_in.bias"] = np.array([1e300, 1])
    save_file(tensors, weights)
    with pytest.raises(
        ValueError, match="tensor conv_in.bias has values too large for float32"
    ):
        cmjax.load(weights.parent)
    with pytest.raises(
        ValueError,
        match="tensor conv_in.bias as float64 needs jax_enable_x64; or ask for another",
    ):
        open_checkpoint(weights.parent).load(keep_dtypes=True)
    tensors["conv_in.bias"] = np.array([1e5, 1], np.float32)
    save_file(tensors, weights)
    assert cmjax.load(weights.parent).params["conv_in"]["bias"][0] == 1e5
    with pytest.raises(
        ValueError, match="tensor conv_in.bias has values too large for float16"
    ):
        cmjax.load(weights.parent, dtype="float16")


@pytest.mark.parametrize(
    "dtype", [np.int64, np.int32, np.int16, np.int8, np.uint8, np.bool_]
)
def test_integers_are_not_parameters(kind, dtype):
    path, weights, load = kind
    if weights.suffix == ".safetensors":
        tensors = load_file(weights)
        save_file({name: tensor.astype(dtype) for name, tensor in tensors.items()}, weights)
    else:
        tz.save(
            weights,
            {
                name: t.read().astype(dtype)
                for name, t in torch_file.open_torch(weights).items()
            },
        )
    with pytest.raises(
        ValueError,
        match=rf"{weights.name}: 75 tensors do not fit.*, not floating-point numbers",
    ):
        load()


def test_tensors_of_another_network(kind):
    path, weights, load = kind
    (tz.save if weights.suffix != ".safetensors" else lambda p, t: save_file(t, p))(
        weights, {"input_blocks.0.0.weight": np.zeros((2, 1, 3, 3), np.float32)}
    )
    with pytest.raises(
        ValueError,
        match=rf"{weights.name}: \d+ tensors do not fit the network: (missing|misshapen) ",
    ):
        load()


# ---- configs

ABSURD = [
    0,
    -1,
    2**31,
    10**18,
    10**30,
    10**400,
    1.5,
    1e308,
    -1e308,
    float("inf"),
    float("nan"),
    True,
    False,
    None,
]
ABSURD += [
    "",
    "8",
    "x" * 10**5,
    [],
    [[]],
    [[8]],
    [8, "8"],
    [None],
    [10**400],
    [8] * 10**4,
    {},
    {"a": 1},
]
ABSURD += [json.loads("[" * 50 + "]" * 50)]


@pytest.mark.parametrize("kind", ["cmjax", "diffusers"], indirect=True)
@pytest.mark.parametrize(
    "value", ABSURD, ids=lambda value: f"{str(value)[:12]}-{len(str(value))}"
)
def test_absurd_options(kind, value):
    """Options of network and scheduler in turn: it loads, or the error names the file."""
    path, weights, load = kind
    for file in sorted(path.rglob("*config.json")):
        was = file.read_text()

        # Drawn anew for each value, so that every option is tried with some of them.
        names = sorted(json.loads(was))
        random = np.random.default_rng(zlib.crc32(repr(value).encode()))
        for name in random.choice(names, draws(len(names)), replace=False):
            file.write_text(json.dumps(json.loads(was) | {name: value}))
            start = time.process_time()
            try:
                load()
            except ValueError as error:
                assert str(file) in str(error) or str(weights) in str(error), (name, error)
                assert len(str(error)) < 10**4
            assert time.process_time() - start < 10, name
        file.write_text(was)


@pytest.mark.parametrize("width", [10**4, 2**16])
def test_a_huge_network_is_only_described(weights, width):
    tiny.edit(weights.parent / "config.json", block_out_channels=[width])
    with pytest.raises(
        ValueError,
        match=rf"misshapen conv_in.bias: \(2,\) in the file, \({width},\) in the network",
    ):
        cmjax.load(weights.parent)


def test_a_deep_network_is_not_built_for_a_small_file(weights):
    levels = {
        "down_block_types": ["DownBlock2D"] * 16,
        "up_block_types": ["UpBlock2D"] * 16,
    }
    tiny.edit(
        weights.parent / "config.json",
        sample_size=2**16,
        block_out_channels=[2] * 16,
        layers_per_block=64,
        **levels,
    )
    start = time.process_time()
    with pytest.raises(
        ValueError, match="model.safetensors has 75 tensors, but the config has 2064 blocks"
    ):
        cmjax.load(weights.parent)
    assert time.process_time() - start < 10


def test_a_head_that_does_not_fit_names_the_file(weights):
    tiny.edit(weights.parent / "config.json", attention_head_dim=3)
    with pytest.raises(
        ValueError,
        match="model.safetensors: the config makes no network: attention_head_dim 3 does",
    ):
        cmjax.load(weights.parent)


TEXTS = {
    "empty": "",
    "list": "[]",
    "number": "1" * 5000,
    "nested": '{"a":' * 10**5,
    "nested and whole": '{"a":' * 500 + "1" + "}" * 500,
    "latin-1": b'{"_class_name": "\xe9"}',
    "a lone surrogate": '{"_class_name": "\\ud800", "\\ud800": 1}',
    "a zero byte": "{\0}",
    "a byte order mark": b"\xef\xbb\xbf{}",
    "utf-16": "{}".encode("utf-16"),
    "too large": " " * (16 * 2**20) + "{}",
}


@pytest.mark.parametrize("which", TEXTS)
@pytest.mark.parametrize("kind", ["cmjax", "diffusers"], indirect=True)
def test_texts_that_are_no_config(kind, which):
    path, _, load = kind
    content = TEXTS[which].encode() if isinstance(TEXTS[which], str) else TEXTS[which]
    for file in path.rglob("*.json"):
        was = file.read_bytes()
        file.write_bytes(content)
        with pytest.raises(ValueError) as caught:
            load()
        assert str(file) in str(caught.value) and len(str(caught.value)) < 10**4
        file.write_bytes(was)


def pipe(path):
    os.mkfifo(path)


NOT_FILES = {
    "folder": lambda p: p.mkdir(),
    "dangling": lambda p: p.symlink_to("nowhere"),
    "loop": lambda p: p.symlink_to(p.name),
    "pipe": pipe,
    "endless": lambda p: p.symlink_to("/dev/zero"),
    "missing": lambda p: None,
}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes and /dev/zero")
@pytest.mark.parametrize("which", NOT_FILES)
@pytest.mark.parametrize("kind", ["cmjax", "diffusers", "bin"], indirect=True)
def test_what_is_not_a_file(kind, which):
    path, weights, load = kind
    for file in [file for file in path.rglob("*.*") if file.is_file()]:
        file.rename(path.parent / "aside")
        NOT_FILES[which](file)
        with pytest.raises(ValueError) as caught:
            load()
        gone = file.name == "model_index.json" and which == "missing"  # then no pipeline
        assert ("config.json" if gone else file.name) in str(caught.value) and str(
            file.parent
        ) in str(caught.value)
        if which == "folder":
            file.rmdir()
        else:
            file.unlink(missing_ok=True)
        (path.parent / "aside").rename(file)
    assert_same(load())


@pytest.mark.parametrize(
    "shard",
    [
        "../m.safetensors",
        "/etc/passwd",
        "a/b",
        "..",
        ".",
        "",
        "\0",
        "\ud800",
        "x" * 300,
        3,
        None,
    ],
)
def test_shards_outside_of_the_folder(tmp_path, shard):
    path, weights = tiny.write(tmp_path, "diffusers")
    weights.rename(tmp_path / "m.safetensors")  # whole, and where an index must not look
    index = weights.with_name(f"{diffusers_weights.SAFETENSORS}.index.json")
    index.write_text(json.dumps({"weight_map": {"conv_in.weight": shard}}))
    with pytest.raises(
        ValueError, match="weight_map must map|has no|is not a file"
    ) as caught:
        cmjax.load(path)
    assert str(weights.parent) in str(caught.value)


@pytest.mark.parametrize(
    "source", ["", ".", "x" * 5000, "a\0b", "a/" + "b" * 5000, "/", "\ud800"]
)
def test_sources_that_are_no_models(tmp_path, monkeypatch, source):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError):
        open_checkpoint(source)


# ---- names that are given twice


def test_a_tensor_under_its_old_and_its_new_name(tmp_path):
    path, weights = tiny.write(tmp_path, "diffusers")
    tensors = load_file(weights)
    tensors["mid_block.attentions.0.query.weight"] = (
        tensors["mid_block.attentions.0.to_q.weight"] + 1
    )
    save_file(tensors, weights)
    with pytest.raises(
        ValueError, match="two tensors for mid_block.attentions.0.to_q.weight"
    ):
        cmjax.load(path)


def test_an_openai_tensor_that_is_there_twice(tmp_path):
    path, _ = tiny.write(tmp_path, "pt")
    tensors = {name: tensor.read() for name, tensor in torch_file.open_torch(path).items()}
    tz.save(path, {**tensors, "conv_in.weight": tensors["input_blocks.0.0.weight"] + 1})
    with pytest.raises(ValueError, match="two tensors for conv_in.weight"):
        open_checkpoint(path, config=tiny.CONFIG)


@pytest.mark.parametrize("number", ["-1", "-5", "0", "9" * 30, "9" * 5000, "x", "١"])
def test_names_that_tell_no_network(tmp_path, number):
    names = [
        "input_blocks.0.0.weight",
        f"output_blocks.{number}.1.conv.weight",
        f"output_blocks.{number}.2.conv.weight",
    ]
    tz.save(tmp_path / "x.pt", {name: np.zeros((1, 1, 1, 1), np.float32) for name in names})
    with pytest.raises(
        ValueError,
        match=r"x\.pt: the tensors are not those of OpenAI's network.*name a preset",
    ):
        open_checkpoint(tmp_path / "x.pt")


# ---- memory


@pytest.mark.thorough
@pytest.mark.skipif(sys.platform != "linux", reason="needs limits of a process, and /proc")
def test_large_claims_take_little_memory(tmp_path):
    """Each in a folder of its own, opened and loaded in one process of bounded memory."""
    for i, damage in enumerate(UNREADABLE.values()):
        (tmp_path / f"st{i}").mkdir()
        damage(tiny.write(tmp_path / f"st{i}", "cmjax")[1])
    many = {
        str(i): tz.tensor(tz.storage("FloatStorage", "0", 2**18), (2**18,))
        for i in range(1000)
    }
    tz.write(
        tmp_path / "shared.pt", tz.program(tz.dict_(many)), {"0": bytes(2**20)}
    )  # 1 GiB out of one MiB
    with (tmp_path / "sparse.pt").open("wb") as file:
        tz.write(file, tz.program(b"N"))
        file.truncate(2**36)
    for i, options in enumerate(
        [{"block_out_channels": [10**9]}, {"num_class_embeds": 2**31 - 1}]
    ):
        (tmp_path / f"config{i}").mkdir()
        tiny.edit(
            tiny.write(tmp_path / f"config{i}", "cmjax")[0] / "config.json", **options
        )
    (tmp_path / "json" / "cmjax").mkdir(parents=True)
    with (tmp_path / "json" / "cmjax" / "config.json").open("wb") as file:
        file.truncate(2**36)
    code = """
        import resource, sys
        from pathlib import Path
        from cmjax.checkpoints import open_checkpoint
        open_checkpoint().check()  # what JAX needs of its own
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 320 * 2**20,) * 2)
        for path in sorted(Path(sys.argv[1]).iterdir()):
            try:
                open_checkpoint(path if path.is_file() else path / "cmjax").load()
            except ValueError as error:
                assert "emory" not in str(error), error
                print(path.name)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert sorted(done.stdout.split()) == sorted(path.name for path in tmp_path.iterdir())


# ---- the command line


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """Sources by name, and the file that the error must name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    root = tmp_path / "models"

    def folder(name, damage, kind="cmjax"):
        (root / name).mkdir()
        path, weights = tiny.write(root / name, kind)
        damage(path, weights)
        return path

    evil = tz.call(tz.name("os", "system"), tz.text("touch ran"))
    return {
        "pickle": (tz.write(root / "evil.pt", tz.program(evil)), "evil.pt"),
        "legacy": (
            (root / "old.pt", (root / "old.pt").write_bytes(b"\x80\x02.\n"))[0],
            "old.pt",
        ),
        "not a zip": (
            (root / "text.pt", (root / "text.pt").write_text("hello"))[0],
            "text.pt",
        ),
        "other tensors": (
            tz.save(root / "other.pt", {"x\nyé\x1b[2J": np.zeros(2)}),
            "other.pt",
        ),
        "evil bin": (
            folder("bin", lambda p, w: tz.write(w, tz.program(evil)), "bin"),
            "diffusion_pytorch_model.bin",
        ),
        "truncated": (
            folder("cut", lambda p, w: UNREADABLE["truncated data"](w)),
            "model.safetensors",
        ),
        "1 TB": (
            folder("claim", lambda p, w: UNREADABLE["length of 1 TB"](w)),
            "model.safetensors",
        ),
        "wrong config": (
            folder("config", lambda p, w: tiny.edit(p / "config.json", in_channels=3)),
            "model.safetensors",
        ),
        "absurd": (
            folder("absurd", lambda p, w: tiny.edit(p / "config.json", norm_eps=10**400)),
            "config.json",
        ),
        "heads": (
            folder(
                "heads", lambda p, w: tiny.edit(p / "config.json", attention_head_dim=7)
            ),
            "model.safetensors",
        ),
        "index": (
            folder(
                "index", lambda p, w: (p / "model_index.json").write_text("{"), "diffusers"
            ),
            "model_index.json",
        ),
        "scheduler": (
            folder(
                "sched",
                lambda p, w: tiny.edit(p / "scheduler" / "scheduler_config.json", rho=[]),
                "diffusers",
            ),
            "scheduler_config.json",
        ),
        "odd names": (
            folder("names", lambda p, w: save_file({"x\n\x1b[2J\0": np.zeros(2)}, w)),
            "model.safetensors",
        ),
    }


@pytest.mark.parametrize("command", ["info", "convert"])
def test_one_line_that_names_the_file_and_nothing_written(broken, tmp_path, command):
    for case, (source, file) in broken.items():
        result = CliRunner().invoke(
            cli.main, [command, str(source), *["out"] * (command == "convert")]
        )
        assert isinstance(result.exception, SystemExit), (case, result.exception)
        assert (result.exit_code, result.stdout) == (2, ""), case
        assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1, case
        assert str(source) in result.stderr and file in result.stderr, (case, result.stderr)
        assert [path.name for path in tmp_path.iterdir()] == ["models"], case


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits of a process")
def test_a_full_disk_is_one_line(weights, tmp_path):
    import resource

    _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))
    try:
        result = CliRunner().invoke(
            cli.main, ["convert", str(weights.parent), str(tmp_path / "out")]
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (
        result.exit_code == 2
        and result.stderr.count("\n") == 1
        and "File too large" in result.stderr
    )
    assert [path.name for path in tmp_path.iterdir()] == ["cmjax"]


def test_not_finite_values_are_not_converted(weights, tmp_path, monkeypatch):
    tensors = load_file(weights)
    tensors["conv_in.bias"][:] = np.nan
    save_file(tensors, weights)
    result = CliRunner().invoke(
        cli.main, ["convert", str(weights.parent), str(tmp_path / "out")]
    )
    assert (
        result.exit_code == 2
        and result.stderr.count("\n") == 1
        and str(weights) in result.stderr
    )
    assert [path.name for path in tmp_path.iterdir()] == ["cmjax"]


@pytest.mark.parametrize("name", ["\x1b[2J", "\u202e", "x\ny", "x" * 5000])
def test_names_of_tensors_are_shown_in_one_short_printable_line(tmp_path, name):
    path, weights = tiny.write(tmp_path, "cmjax")
    tensors = load_file(weights)
    save_file({**tensors, name: np.zeros(2)}, weights)
    with pytest.raises(ValueError, match="1 tensors do not fit the network") as caught:
        open_checkpoint(path).load()
    assert str(caught.value).isprintable() and len(str(caught.value)) < 1000


def test_names_in_an_archive_are_shown_printable(tmp_path):
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl\x1b[2J\u202e", b"N" * 100)
    with pytest.raises(
        ValueError, match=r"its entry x/data.pkl\\x1b\[2J\\u202e is compressed"
    ) as caught:
        open_checkpoint(path)
    assert str(caught.value).isprintable()

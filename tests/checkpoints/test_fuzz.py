"""Mutated files: each loads or is an error of cmjax; a warning is an error of pytest."""

import functools
import json
import shutil
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmjax.checkpoints import checkpoint, open_checkpoint, openai
from cmjax.checkpoints.tensors import StoredTensor
from cmjax.checkpoints.torch_file import open_torch
from tests.support import checkpoints as tiny
from tests.support import torch_zip as tz
from tests.support.mutations import fuzz, mutations

MEMORY = 64 * 2**20  # bytes; the files have some kB
COUNTS = {}  # what became of the files, for whoever wants to know: pytest -s


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """For each kind: what to open, the file of its tensors, the bytes of every file."""
    root = tmp_path_factory.mktemp("fuzz")
    made = {}
    for kind in tiny.KINDS:
        path, weights = tiny.write(root, kind)
        files = (
            [path]
            if path.is_file()
            else [file for file in path.rglob("*") if file.is_file()]
        )
        made[kind] = path, weights, {file: file.read_bytes() for file in files}
    yield made
    for what, counts in sorted(COUNTS.items()):
        print(f"\n{what}: {counts}", end="")
    shutil.rmtree(root)


@pytest.fixture(scope="module", autouse=True)
def one_network():
    """Making the network takes most of the time of a load, so it is made once a config."""
    with pytest.MonkeyPatch.context() as patch:
        made_once = functools.lru_cache(64)(checkpoint.function_and_shapes)
        patch.setattr(checkpoint, "function_and_shapes", made_once)
        yield


def outcome(what, path, config):
    """Loads: "loaded" or "refused"; whatever else is raised goes on to fail the test."""
    counts = COUNTS.setdefault(what, {"loaded": 0, "refused": 0})
    tracemalloc.start()
    try:
        open_checkpoint(path, config=config).load()
        counts["loaded"] += 1
    except ValueError as error:
        assert type(error) is ValueError, repr(
            error
        )  # UnicodeDecodeError and its like are not ours
        assert str(path) in str(error) and len(str(error)) < 10**5, error
        counts["refused"] += 1
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < MEMORY


def load_mutated(sources, kind, file, content, what=None):
    """Loads with one file's content replaced, then puts it back."""
    path, _, contents = sources[kind]
    file.write_bytes(content)
    try:
        outcome(what or f"{kind} {file.name}", path, tiny.CONFIG if kind == "pt" else None)
    finally:
        file.write_bytes(contents[file])


@pytest.mark.parametrize("kind", tiny.KINDS)
@fuzz(120)
@given(data=st.data())
def test_bytes_of_the_file_of_tensors(sources, kind, data):
    _, weights, contents = sources[kind]
    load_mutated(sources, kind, weights, data.draw(mutations(contents[weights])))


@pytest.mark.parametrize("kind", ["pt", "bin"])
@fuzz(200)
@given(data=st.data())
def test_bytes_of_the_pickle(sources, kind, data):
    """With sums that are right again, or none of these would be read."""
    _, weights, contents = sources[kind]
    tensors = {name: tensor.read() for name, tensor in open_torch(weights).items()}
    pickled, storages = tz.parts(tensors)
    content = data.draw(mutations(pickled))
    aside = tz.write(weights.with_name("aside"), content, storages)
    whole = aside.read_bytes()
    aside.unlink()
    load_mutated(sources, kind, weights, whole, f"{kind} pickle")


OPCODES = [bytes([code]) for code in b"(.0]})tRbQuasqhrj\x85\x86\x87\x88\x89\x93\x94N"]
PIECES = OPCODES + [
    b"q\0",
    b"h\0",
    tz.text("x"),
    tz.text("storage"),
    tz.number(2),
    tz.number(-1),
    tz.number(2**62),
    tz.name("torch", "FloatStorage"),
    tz.name("torch._utils", "_rebuild_tensor_v2"),
    tz.name("torch._utils", "_rebuild_parameter"),
    tz.name("collections", "OrderedDict"),
    tz.name("os", "system"),
    tz.storage("FloatStorage", "0", 2),
    tz.tensor(tz.storage("FloatStorage", "0", 2)),
    tz.dict_({"x": tz.tensor(tz.storage("FloatStorage", "0", 2))}),
]


@fuzz(300)
@given(pieces=st.lists(st.sampled_from(PIECES), max_size=30))
def test_pickles_put_together_at_random(tmp_path, pieces):
    path = tz.write(tmp_path / "x.pt", tz.program(b"".join(pieces)), {"0": bytes(8)})
    outcome("pickles of random instructions", path, tiny.CONFIG)


JSONS = ["config.json", "scheduler_config.json", "model_index.json"]
NUMBERS = st.one_of(
    st.integers(-2, 9),
    st.sampled_from(
        [
            2**31 - 1,
            2**31,
            2**63,
            10**30,
            10**400,
            1e308,
            -1e308,
            5e-324,
            float("nan"),
            float("inf"),
        ]
    ),
    st.floats(),
)
WORDS = st.one_of(
    st.sampled_from(
        [
            "UNet2D",
            "UNet2DModel",
            "AttnDownBlock2D",
            "AttnUpBlock2D",
            "ResnetDownsampleBlock2D",
            "resnet",
        ]
    ),
    st.sampled_from(["scale_shift", "default", "conv", "", "\0", "../../etc", "x" * 1000]),
    st.text(max_size=8),
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, WORDS),
    lambda inside: st.one_of(
        st.lists(inside, max_size=4), st.dictionaries(WORDS, inside, max_size=3)
    ),
    max_leaves=6,
)


def json_files(sources):
    return [
        (kind, file)
        for kind in ("cmjax", "diffusers")
        for file in sources[kind][2]
        if file.name in JSONS
    ]


@fuzz(300)
@given(data=st.data())
def test_values_of_the_json_files(sources, data):
    kind, file = data.draw(st.sampled_from(json_files(sources)))
    content = json.loads(sources[kind][2][file])
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.one_of(st.sampled_from(sorted(content) or ["x"]), WORDS))
        match data.draw(st.sampled_from(["set", "set", "set", "remove", "swap"])):
            case "set":
                content[name] = data.draw(VALUES)
            case "remove":
                content.pop(name, None)
            case "swap":
                other = data.draw(st.sampled_from(sorted(content) or ["x"]))
                content[name], content[other] = content.get(other), content.get(name)
    load_mutated(
        sources, kind, file, json.dumps(content).encode(), f"{kind} {file.name}, values"
    )


@fuzz(200)
@given(data=st.data())
def test_bytes_of_the_json_files(sources, data):
    kind, file = data.draw(st.sampled_from(json_files(sources)))
    load_mutated(
        sources,
        kind,
        file,
        data.draw(mutations(sources[kind][2][file])),
        f"{kind} {file.name}, bytes",
    )


@fuzz(100)
@given(data=st.data())
def test_header_of_safetensors(sources, data):
    kind = data.draw(st.sampled_from(["cmjax", "diffusers"]))
    _, weights, contents = sources[kind]
    content = contents[weights]
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    name = data.draw(st.sampled_from(sorted(header)))
    if data.draw(st.booleans()):
        header[data.draw(WORDS)] = header.pop(name)
    else:
        field = data.draw(st.sampled_from(["dtype", "shape", "data_offsets"]))
        values = st.one_of(
            VALUES,
            st.sampled_from(["BF16", "F16", "F64", "I32"]),
            st.lists(st.integers(0, 2**64), max_size=4),
        )
        header[name] = {**header[name], field: data.draw(values)}
    encoded = json.dumps(header).encode()
    whole = len(encoded).to_bytes(8, "little") + encoded + content[8 + length :]
    load_mutated(sources, kind, weights, whole, f"{kind} safetensors header")


@fuzz(200)
@given(data=st.data())
def test_networks_recognised_by_names_and_shapes(data):
    """OpenAI's files do not name their network: mutated names and shapes, then inference."""
    counts = COUNTS.setdefault("inferred networks", {"loaded": 0, "refused": 0})
    shapes = dict(data.draw(st.sampled_from(list(OPENAI.values()))))
    number = st.sampled_from(["0", "1", "2", "3", "-1", "7", "x", "", "99999999999"])
    for _ in range(data.draw(st.integers(1, 6))):
        name = data.draw(st.sampled_from(sorted(shapes)))
        shape = shapes.pop(name)
        parts = name.split(".")
        match data.draw(st.sampled_from(["remove", "rename", "reshape", "renumber"])):
            case "rename":
                shapes[data.draw(WORDS) + name[data.draw(st.integers(0, len(name))) :]] = (
                    shape
                )
            case "reshape":
                shapes[name] = data.draw(st.lists(st.integers(0, 200), max_size=5))
            case "renumber" if len(parts) > 1:
                shapes[".".join([parts[0], data.draw(number), *parts[2:]])] = shape
    tensors = {
        name: StoredTensor(tuple(s), np.dtype(np.float16), lambda: None)
        for name, s in shapes.items()
    }
    try:
        openai.from_tensors(tiny.NO_FILE, tensors).check()
        counts["loaded"] += 1
    except ValueError as error:
        assert type(error) is ValueError and str(tiny.NO_FILE) in str(error), repr(error)
        counts["refused"] += 1


NAMES = json.loads((tiny.GOLDEN / "openai_names.json").read_text())
OPENAI = {name: NAMES[name]["openai"] for name in ("small", "small256")}


def test_one_bit_of_a_value_loads(sources):
    """Or all of the above could be refusals of something else."""
    for kind in tiny.KINDS:
        path, weights, contents = sources[kind]
        content = bytearray(contents[weights])
        content[
            content.index(np.asarray(tiny.model().params["conv_in"]["bias"][...]).tobytes())
        ] ^= 1
        load_mutated(sources, kind, weights, bytes(content), f"{kind} one bit")
        assert COUNTS[f"{kind} one bit"] == {"loaded": 1, "refused": 0}
        assert contents[weights] == weights.read_bytes()

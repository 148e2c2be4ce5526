"""Files of PyTorch read without it: values bit for bit, and nothing in a file ever runs."""

import copyreg
import pickle
import struct
import subprocess
import sys
import textwrap
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest

from cmjax.checkpoints.torch_file import LARGEST_PICKLE, STORAGES, open_torch
from tests.support import torch_zip as tz

PAIR = np.array([1.5, -2], np.float32)
PAIR_STORAGE = tz.storage("FloatStorage", "0", 2)


def pair_file(path, body, **options):
    """A file with one storage of two floats."""
    return tz.write(path, tz.program(body), {"0": PAIR.tobytes()}, **options)


def read(path):
    return {name: tensor.read() for name, tensor in open_torch(path).items()}


def bits(array):
    return array.shape, array.dtype, array.tobytes()


@pytest.mark.parametrize("dtype", STORAGES.values(), ids=str)
def test_every_dtype_bit_for_bit(tmp_path, dtype):
    count = 30
    raw = np.random.default_rng(0).integers(0, 256, count * dtype.itemsize, np.uint8)
    array = (
        (raw & 1 if dtype.kind == "b" else raw).view(dtype).reshape(2, 3, 5)
    )  # NaNs and subnormals among them
    arrays = {"a.weight": array, "empty": np.zeros((0, 3), dtype), "scalar": array[0, 0, 0]}
    stored = open_torch(tz.save(tmp_path / "x.pt", arrays))
    assert list(stored) == list(arrays)
    for name, expected in arrays.items():
        assert (stored[name].shape, stored[name].dtype) == (expected.shape, expected.dtype)
        assert bits(stored[name].read()) == bits(np.asarray(expected))


def test_bfloat16_is_not_mistaken_for_float16(tmp_path):
    array = np.array([1.0, 3.140625], ml_dtypes.bfloat16)
    assert read(tz.save(tmp_path / "x.pt", {"x": array}))["x"].astype(float).tolist() == [
        1.0,
        3.140625,
    ]


def test_views_of_one_storage(tmp_path):
    base = np.arange(24, dtype=np.float32)
    stored = tz.storage("FloatStorage", "0", 24)
    body = tz.dict_(
        {
            "all": tz.tensor(stored, (4, 6), (6, 1)),
            "transposed": tz.tensor(stored, (6, 4), (1, 6)),
            "offset": tz.tensor(stored, (2, 3), (6, 1), offset=9),
            "every other": tz.tensor(stored, (12,), (2,), offset=1),
            "expanded": tz.tensor(stored, (5, 3), (0, 1), offset=2),
            "one": tz.tensor(
                stored, (1, 1), (2**62, 2**62), offset=23
            ),  # strides of axes of length one play no part
            "none": tz.tensor(stored, (0, 7), (7, 1), offset=24),
            "scalar": tz.tensor(stored, (), (), offset=7),
        }
    )
    made = read(tz.write(tmp_path / "x.pt", tz.program(body), {"0": base.tobytes()}))
    grid = base.reshape(4, 6)
    expected = {
        "all": grid,
        "transposed": grid.T,
        "offset": grid[1:3, 3:6],
        "every other": base[1::2],
        "expanded": np.tile(base[2:5], (5, 1)),
        "one": base[23:].reshape(1, 1),
        "none": np.empty((0, 7), np.float32),
        "scalar": base[7],
    }
    assert set(made) == set(expected)
    for name in expected:
        np.testing.assert_array_equal(made[name], expected[name], err_msg=name)
        assert made[name].flags.owndata


def test_parameters_ordered_dictionaries_and_metadata(tmp_path):
    ordered = tz.call(tz.name("collections", "OrderedDict"))
    parameter = tz.call(
        tz.name("torch._utils", "_rebuild_parameter"),
        tz.tensor(PAIR_STORAGE),
        b"\x88",
        ordered,
    )
    metadata = tz.dict_(
        {
            "_metadata": ordered
            + b"("
            + tz.text("")
            + tz.dict_({"version": tz.number(1)})
            + b"u"
        }
    )
    body = ordered + b"(" + tz.text("x") + parameter + b"u" + metadata + b"b"
    assert read(pair_file(tmp_path / "x.pt", body))["x"].tolist() == PAIR.tolist()


def test_the_folder_in_the_archive_may_have_any_name(tmp_path):
    body = tz.dict_({"x": tz.tensor(PAIR_STORAGE)})
    assert (
        read(pair_file(tmp_path / "x.pt", body, folder="cd_imagenet64 (1)/é"))["x"].tolist()
        == PAIR.tolist()
    )


def test_tensors_are_read_when_asked_for(tmp_path):
    path = tz.save(tmp_path / "x.pt", {"x": np.zeros(2**20, np.float32)})
    tracemalloc.start()
    tensors = open_torch(path)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    assert tensors["x"].shape == (2**20,)


# ---- what would run, in a reader that lets it


def payloads(marker):
    """Programs that touch a file.

    (instructions, what the refusal must name, whether pickle.loads runs them as they are)
    """
    touch, python = (
        tz.text(f"touch {marker}"),
        tz.text(f"__import__('pathlib').Path({str(marker)!r}).touch()"),
    )
    system, argument = (
        tz.name("os", "system"),
        b"\x8c" + bytes([len(f"touch {marker}")]) + f"touch {marker}".encode(),
    )
    short = [
        b"\x8c" + bytes([len(word)]) + word
        for word in (b"os", b"system", b"path.os.system", b"torch")
    ]
    partial = tz.call(tz.name("functools", "partial"), tz.name("builtins", "print"))
    state = tz.tuple_(system, tz.tuple_(touch), b"}", b"N")
    return {
        "os.system": (tz.call(system, touch), "os.system", True),
        "posix.system": (tz.call(tz.name("posix", "system"), touch), "posix.system", True),
        "eval": (tz.call(tz.name("builtins", "eval"), python), "builtins.eval", True),
        "python 2's eval": (
            tz.call(tz.name("__builtin__", "eval"), python),
            "__builtin__.eval",
            True,
        ),
        "exec": (tz.call(tz.name("builtins", "exec"), python), "builtins.exec", True),
        "getattr": (
            tz.call(tz.name("builtins", "getattr"), system, tz.text("x")),
            "builtins.getattr",
            False,
        ),
        "Popen": (
            tz.call(
                tz.name("subprocess", "Popen"),
                tz.tuple_(tz.text("touch"), tz.text(str(marker))),
            ),
            "Popen",
            True,
        ),
        "STACK_GLOBAL": (
            short[0] + short[1] + b"\x93" + b"(" + argument + b"tR",
            "os.system",
            True,
        ),
        "STACK_GLOBAL, dotted": (
            short[0] + short[2] + b"\x93" + b"(" + argument + b"tR",
            "os.path.os.system",
            True,
        ),
        "STACK_GLOBAL below torch": (
            short[3] + short[2] + b"\x93" + b"(" + argument + b"tR",
            "torch.path.os.system",
            False,
        ),
        "GLOBAL, dotted": (
            tz.call(tz.name("torch", "os.system"), touch),
            "torch.os.system",
            False,
        ),
        "GLOBAL below a known name": (
            tz.call(tz.name("torch._utils", "_rebuild_tensor_v2.__globals__"), touch),
            "torch._utils._rebuild_tensor_v2.__globals__",
            False,
        ),
        "INST": (b"(" + touch + b"ios\nsystem\n", "INST", True),
        "OBJ": (b"(" + system + touch + b"o", "os.system", True),
        "OBJ of a known name": (
            b"(" + tz.name("collections", "OrderedDict") + b"o",
            "OBJ",
            False,
        ),
        "NEWOBJ": (tz.name("builtins", "object") + b")\x81", "builtins.object", False),
        "NEWOBJ of a known name": (
            tz.name("collections", "OrderedDict") + b")\x81",
            "NEWOBJ",
            False,
        ),
        "NEWOBJ_EX": (
            tz.name("collections", "OrderedDict") + b")}\x92",
            "NEWOBJ_EX",
            False,
        ),
        "EXT1": (b"\x82\xf7" + b"(" + touch + b"tR", "EXT1", True),
        "EXT2": (b"\x83\xf7\x00" + b"(" + touch + b"tR", "EXT2", True),
        "EXT4": (b"\x84\xf7\x00\x00\x00" + b"(" + touch + b"tR", "EXT4", True),
        "BUILD with __setstate__": (
            tz.call(partial + state + b"b"),
            "functools.partial",
            True,
        ),
        "BUILD of a name": (
            tz.name("collections", "OrderedDict") + b"}b",
            "makes no sense",
            False,
        ),
        "REDUCE of text": (
            tz.call(tz.text("os.system"), touch),
            "calls os.system with arguments",
            False,
        ),
        "REDUCE of a tensor": (
            tz.call(tz.tensor(PAIR_STORAGE), touch),
            "calls a _Tensor with arguments",
            False,
        ),
        "REDUCE of a storage": (
            tz.call(tz.name("torch", "FloatStorage"), tz.number(9)),
            "torch.FloatStorage",
            False,
        ),
        "OrderedDict of a call": (
            tz.call(tz.name("collections", "OrderedDict"), tz.call(system, touch)),
            "os.system",
            False,
        ),
        "in the values": (tz.dict_({"x": tz.call(system, touch)}), "os.system", True),
        "after a tensor": (
            tz.dict_({"x": tz.tensor(PAIR_STORAGE), "y": tz.call(system, touch)}),
            "os.system",
            False,
        ),
        "in a shape": (
            tz.dict_(
                {
                    "x": tz.tensor(PAIR_STORAGE).replace(
                        tz.numbers((2,)), tz.tuple_(tz.call(system, touch)), 1
                    )
                }
            ),
            "os.system",
            False,
        ),
        "in a storage": (
            tz.tuple_(tz.text("storage"), tz.call(system, touch)) + b"Q",
            "os.system",
            False,
        ),
        "in _metadata": (
            tz.dict_({}) + tz.dict_({"_metadata": tz.call(system, touch)}) + b"b",
            "os.system",
            False,
        ),
        "thrown away": (tz.call(system, touch) + b"0" + tz.dict_({}), "os.system", True),
        "torch.load within": (
            tz.call(tz.name("torch", "load"), tz.text("x")),
            "torch.load",
            False,
        ),
        "a whole module": (
            tz.name("torch.nn.modules.linear", "Linear") + b")\x81}b",
            "torch.nn.modules.linear.Linear",
            False,
        ),
        "persistent id as text": (b"Pos.system\n", "PERSID", False),
    }


@pytest.mark.parametrize("which", payloads("x"))
def test_nothing_runs(tmp_path, which):
    marker = tmp_path / "ran"
    body, refused, live = payloads(marker)[which]
    if live:  # the payload is a real one
        copyreg.add_extension("os", "system", 0xF7)
        try:
            done = pickle.loads(tz.program(body, 4 if "dotted" in which else 2))
            if isinstance(done, subprocess.Popen):
                done.wait()
        finally:
            copyreg.remove_extension("os", "system", 0xF7)
        assert marker.exists()
        marker.unlink()
    with pytest.raises(ValueError) as caught:
        open_torch(pair_file(tmp_path / "x.pt", body))
    assert refused in str(caught.value) and str(tmp_path / "x.pt") in str(caught.value)
    assert not marker.exists()


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        import os

        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "wrap",
    [lambda e: e, lambda e: {"x": e}, lambda e: [(e,)]],
    ids=["bare", "dict", "list"],
)
def test_reduce_does_not_run(tmp_path, protocol, wrap):
    marker = tmp_path / "ran"
    content = pickle.dumps(wrap(Evil(marker)), protocol)
    with pytest.raises(
        ValueError, match="posix.system|nt.system" if protocol else "system|instruction"
    ):
        open_torch(tz.write(tmp_path / "x.pt", content))
    assert not marker.exists()
    pickle.loads(content)
    assert marker.exists()


# ---- what makes no sense


@pytest.mark.parametrize(
    ("description", "message"),
    [
        (
            tz.tuple_(tz.text("module"), tz.name("torch", "FloatStorage"), tz.text("0")),
            r"refers to \(module, torch.Fl",
        ),
        (
            tz.tuple_(
                tz.text("storage"),
                tz.text("FloatStorage"),
                tz.text("0"),
                tz.text("cpu"),
                tz.number(2),
            ),
            "refers",
        ),
        (
            tz.tuple_(
                tz.text("storage"),
                tz.name("collections", "OrderedDict"),
                tz.text("0"),
                tz.text("cpu"),
                tz.number(2),
            ),
            "refers",
        ),
        (
            tz.storage("FloatStorage", "0", 2)[:-1].replace(tz.text("0"), tz.number(0)),
            "refers",
        ),
        (
            tz.storage("FloatStorage", "0", 2)[:-1].replace(tz.number(2), tz.text("2")),
            "refers",
        ),
        (tz.text("storage"), "refers to storage"),
        (tz.number(3), "refers to a int"),
        (b")", "refers to a tuple"),
    ],
)
def test_persistent_ids_that_are_not_storages(tmp_path, description, message):
    with pytest.raises(ValueError, match=message):
        open_torch(
            pair_file(tmp_path / "x.pt", tz.dict_({"x": tz.tensor(description + b"Q")}))
        )


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (tz.storage("FloatStorage", "1", 2), "storage of tensor x is missing"),
        (tz.storage("FloatStorage", "../data.pkl", 2), "storage of tensor x is missing"),
        (tz.storage("FloatStorage", "/etc/passwd", 2), "storage of tensor x is missing"),
        (tz.storage("FloatStorage", "0", 3), "not of the size that it claims"),
        (tz.storage("FloatStorage", "0", 2**60), "not of the size that it claims"),
        (tz.storage("FloatStorage", "0", -2), "not of the size that it claims"),
        (tz.storage("DoubleStorage", "0", 2), "not of the size that it claims"),
        (tz.storage("ComplexDoubleStorage", "0", 1), "torch.ComplexDoubleStorage"),
        (tz.storage("UntypedStorage", "0", 8), "torch.UntypedStorage"),
    ],
)
def test_storages_that_are_not_there(tmp_path, stored, message):
    with pytest.raises(ValueError, match=message):
        open_torch(pair_file(tmp_path / "x.pt", tz.dict_({"x": tz.tensor(stored)})))


@pytest.mark.parametrize(
    ("shape", "strides", "offset", "message"),
    [
        ((3,), (1,), 0, "reaches beyond"),
        ((2,), (1,), 1, "reaches beyond"),
        ((2,), (2,), 0, "reaches beyond"),
        ((), (), 2, "reaches beyond"),
        ((1,), (1,), 2**62, "reaches beyond"),
        ((2**62,), (1,), 0, "reaches beyond"),
        ((2,), (2**62,), 0, "reaches beyond"),
        ((2**31, 2**31), (1, 1), 0, "reaches beyond"),
        ((-1,), (1,), 0, "makes no sense"),
        ((2,), (-1,), 1, "makes no sense"),
        ((2,), (1,), -1, "makes no sense"),
        ((2**63,), (0,), 0, "makes no sense"),
        ((2,), (2**2000,), 0, "makes no sense"),
        ((2,), (1, 1), 0, "makes no sense"),
        ((2,), (), 0, "makes no sense"),
        ((1,) * 33, (0,) * 33, 0, "makes no sense"),
        ((2**62,), (0,), 0, "repeating values; save contiguous tensors"),
        ((2**40,) * 30, (0,) * 30, 0, "repeating values"),
    ],
)
def test_tensors_beyond_their_storage(tmp_path, shape, strides, offset, message):
    with pytest.raises(ValueError, match=message):
        open_torch(
            pair_file(
                tmp_path / "x.pt",
                tz.dict_({"x": tz.tensor(PAIR_STORAGE, shape, strides, offset)}),
            )
        )


@pytest.mark.parametrize(
    "body",
    [
        tz.tensor(PAIR_STORAGE),
        tz.dict_({"x": tz.number(1)}),
        tz.dict_({"model": tz.dict_({"x": tz.tensor(PAIR_STORAGE)})}),
        tz.dict_({"x": PAIR_STORAGE}),
        b"]",
        b"N",
        b"(",
    ],
    ids=["a tensor", "a number", "nested", "a storage", "a list", "nothing", "a mark"],
)
def test_what_is_not_a_state_dict(tmp_path, body):
    with pytest.raises(
        ValueError, match=r"does not hold a state dict.*save model.state_dict\(\)"
    ):
        open_torch(pair_file(tmp_path / "x.pt", body))


def test_values_that_are_to_be_negated_are_refused(tmp_path):
    """PyTorch writes a negative view (a conjugate's imaginary part) as its storage and a note."""
    body = tz.tensor(PAIR_STORAGE)
    noted = body[:-2] + tz.dict_({"neg": b"\x88"}) + body[-2:]
    with pytest.raises(
        ValueError, match="_rebuild_tensor_v2 with arguments it does not take"
    ):
        open_torch(pair_file(tmp_path / "x.pt", tz.dict_({"x": noted})))


@pytest.mark.parametrize(
    "body",
    [
        b"0",
        b"t",
        b"R",
        b"u",
        b"a",
        b"h\x05",
        b"((0",
        b"}(" + tz.text("x") + b"u",
        b"X\xff\xff\xff\x7fabc",
        b"\x8d" + struct.pack("<Q", 2**63) + b"abc",
        b"\x8a\x08abc",
        b"\xff",
        b"I" + b"9" * 5000 + b"\n",
        b"\x95" + struct.pack("<Q", 2**63),
    ],
)
def test_programs_that_make_no_sense(tmp_path, body):
    with pytest.raises(ValueError, match="not a readable PyTorch file: its pickle"):
        open_torch(pair_file(tmp_path / "x.pt", body))


def test_names_in_messages_are_cut(tmp_path):
    with pytest.raises(ValueError, match="torch.aaa") as caught:
        open_torch(pair_file(tmp_path / "x.pt", tz.name("torch", "a" * 10**6)))
    assert len(str(caught.value)) < 1000
    with pytest.raises(ValueError, match="dictionary whose keys are not names"):
        open_torch(
            pair_file(
                tmp_path / "x.pt", b"}(" + tz.number(1) + tz.tensor(PAIR_STORAGE) + b"u"
            )
        )


# ---- archives


def legacy(path):
    path.write_bytes(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.")


def duplicated(path):
    with (
        zipfile.ZipFile(path, "w") as archive,
        pytest.warns(UserWarning, match="Duplicate name"),
    ):
        archive.writestr("a/data.pkl", tz.program(tz.dict_({})))
        archive.writestr("a/data/0", b"12345678")
        archive.writestr("a/data/0", b"12345678")


def overlapping(path):
    """The central directory gives every storage the same place: a small file claims much."""
    pair_file(
        path,
        tz.dict_(
            {
                str(i): tz.tensor(tz.storage("ByteStorage", str(i), 2**16), (2**16,))
                for i in range(64)
            }
        ),
    )
    with zipfile.ZipFile(path, "w") as archive:
        items = {
            str(i): tz.tensor(tz.storage("ByteStorage", str(i), 2**16), (2**16,))
            for i in range(64)
        }
        archive.writestr("a/data.pkl", tz.program(tz.dict_(items)))
        archive.writestr("a/data/0", bytes(2**16))
        for i in range(1, 64):
            entry = zipfile.ZipInfo(f"a/data/{i}")
            first = archive.getinfo("a/data/0")
            entry.header_offset, entry.file_size = first.header_offset, first.file_size
            entry.compress_size, entry.CRC = first.compress_size, first.CRC
            archive.filelist.append(entry)


def claiming(path):
    pair_file(path, tz.dict_({"x": tz.tensor(PAIR_STORAGE)}))
    content = bytearray(path.read_bytes())
    at = content.rindex(b"PK\x01\x02")  # of the storage
    content[at + 20 : at + 28] = struct.pack("<II", 2**31, 2**31)
    path.write_bytes(content)


def elsewhere(path):
    """The storage's place in the central directory is that of no entry."""
    pair_file(path, tz.dict_({"x": tz.tensor(PAIR_STORAGE)}))
    content = bytearray(path.read_bytes())
    at = content.rindex(b"PK\x01\x02")
    content[at + 42 : at + 46] = struct.pack("<I", 5)
    path.write_bytes(content)


def shifted(path):
    """The central directory claims to start later, which puts entries before the file."""
    pair_file(path, tz.dict_({"x": tz.tensor(PAIR_STORAGE)}))
    content = bytearray(path.read_bytes())
    at = content.rindex(b"PK\x05\x06")
    (start,) = struct.unpack_from("<I", content, at + 16)
    struct.pack_into("<I", content, at + 16, start + 10)
    path.write_bytes(content)


ARCHIVES = {
    "legacy": (legacy, "as before PyTorch 1.6; load and save it with a newer one"),
    "empty": (lambda path: path.write_bytes(b""), "not a zip file"),
    "text": (
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"),
        "not a zip file",
    ),
    "no pickle": (lambda path: zipfile.ZipFile(path, "w").close(), "no single data.pkl"),
    "two pickles": (
        lambda path: pair_file(path, tz.dict_({}), others={"b/data.pkl": b"."}),
        "no single data.pkl",
    ),
    "compressed": (
        lambda path: pair_file(
            path, tz.dict_({}), others={"x": bytes(9)}, compression=zipfile.ZIP_DEFLATED
        ),
        "is compressed",
    ),
    "bzip2": (
        lambda path: pair_file(path, tz.dict_({}), compression=zipfile.ZIP_BZIP2),
        "is compressed",
    ),
    "big-endian": (
        lambda path: pair_file(path, tz.dict_({}), others={"byteorder": b"big"}),
        "big-endian",
    ),
    "duplicated": (duplicated, "two entries with the same name"),
    "overlapping": (overlapping, "repeating values|verlap"),
    "claiming": (claiming, "more than there are|verlap"),
    "elsewhere": (elsewhere, "not where the archive says|verlap|differ"),
    "shifted": (shifted, "not a readable PyTorch file"),
}


@pytest.mark.parametrize("which", ARCHIVES)
def test_archives_that_are_not_pytorchs(tmp_path, which):
    make, message = ARCHIVES[which]
    make(tmp_path / "x.pt")
    with pytest.raises(ValueError, match=message) as caught:
        read(tmp_path / "x.pt")
    assert str(tmp_path / "x.pt") in str(caught.value)


def test_what_is_not_a_file(tmp_path):
    with pytest.raises(ValueError, match="has no x.pt"):
        open_torch(tmp_path / "x.pt")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="link is a link to .*nowhere, which is not there"):
        open_torch(tmp_path / "link")
    with pytest.raises(ValueError, match="is a folder, not a file"):
        open_torch(tmp_path)


@pytest.mark.parametrize("keep", [0.02, 0.3, 0.6, 0.9, 0.999])
def test_truncated_files(tmp_path, keep):
    path = tz.save(tmp_path / "x.pt", {"x": np.arange(100.0)})
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(ValueError, match=r"x\.pt is not a readable PyTorch file"):
        open_torch(path)


# ---- bombs


def doubled(levels):
    """A tuple of a tuple twice, of a tuple twice, ...: 2**levels items to walk, in few bytes."""
    return b")" + b"q\x00" + b"h\x00\x86q\x00" * levels


BOMBS = {
    "memo index": b"Nr\xff\xff\xff\xff",
    "text of 1 TB": b"\x8d" + struct.pack("<Q", 2**40),
    "bytes of 1 TB": b"\x8e" + struct.pack("<Q", 2**40),
    "bytearray of 1 TB": b"\x96" + struct.pack("<Q", 2**40),
    "frame of 1 TB": b"\x95" + struct.pack("<Q", 2**40) + b"N",
    "integer of 2 GB": b"\x8b" + struct.pack("<i", 2**31 - 1),
    "integer of 1 MB": b"\x8b" + struct.pack("<i", 2**20) + b"\xff" * 2**20,
    "nested tuples": b")" + b"\x85" * 10**5,
    "nested tuples as a key": b"}(" + b")" + b"\x85" * 10**6 + b"Nu",
    "nested lists": b"]" * 10**5 + b"a" * (10**5 - 1),
    "nested dicts": (b"}" + tz.text("a")) * 10**5 + b"N" + b"s" * 10**5,
    "nested tuples as a storage": b")" + b"\x85" * 10**5 + b"Q",
    "nested tuples called": b")" + b"\x85" * 10**5 + b")R",
    "doubled tuples as a key": b"}(" + doubled(60) + b"Nu",
    "doubled tuples as one key": b"}" + doubled(60) + b"Ns",
    "doubled tuples as a storage": doubled(60) + b"Q",
    "doubled tuples called": doubled(60) + b")R",
    "doubled tuples as a module": doubled(60) + b"h\x00\x93",
    "doubled tuples as a shape": tz.dict_(
        {"x": tz.tensor(PAIR_STORAGE).replace(tz.numbers((2,)), doubled(60), 1)}
    ),
    "keys of one hash": b"}("
    + b"".join(tz.number(i * (2**61 - 1)) + b"N" for i in range(10**5))
    + b"u",
    "many axes": tz.dict_(
        {
            "x": tz.tensor(PAIR_STORAGE).replace(
                tz.numbers((2,)), tz.numbers([2**62] * 10**5), 1
            )
        }
    ),
    "empty dicts": b"}" * (LARGEST_PICKLE - 4) + b"N",
    "too long": b"N" * LARGEST_PICKLE,
}


@pytest.mark.thorough
def test_bombs_are_quick_and_take_little_memory(tmp_path):
    """All in one process, of bounded memory on Linux, which a bomb that goes off would end."""
    for i, body in enumerate(BOMBS.values()):
        pair_file(tmp_path / f"{i}.pt", body)
    bomb = tz.write(
        tmp_path / "zip.pt",
        tz.program(b"N"),
        others={"byteorder": bytes(2**28)},
        compression=zipfile.ZIP_DEFLATED,
    )
    assert bomb.stat().st_size < 2**20
    sparse = tmp_path / "sparse.pt"
    tz.write(sparse, tz.program(b"N"), others={"byteorder": bytes(2**20)})
    code = """
        import sys, time
        from pathlib import Path
        from cmjax.checkpoints.torch_file import open_torch
        if sys.platform == "linux":
            import resource
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            used = pages * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + 640 * 2**20,) * 2)
        for path in sorted(Path(sys.argv[1]).glob("*.pt")):
            start = time.process_time()
            try:
                open_torch(path)
            except ValueError as error:
                assert "MemoryError" not in str(error), error
                assert path.name in str(error) and len(str(error)) < 1000, path
                print(path.name)
            # They are seconds at most, or for ever.
            assert time.process_time() - start < 20, path
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert sorted(done.stdout.split()) == sorted(
        path.name for path in tmp_path.glob("*.pt")
    )

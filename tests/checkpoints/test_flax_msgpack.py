"""Flax's msgpack files: what Flax writes is read, and hostile bytes end in one line."""

import tracemalloc

import flax.serialization
import jax.numpy as jnp
import msgpack
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from cmjax.checkpoints.flax_msgpack import is_msgpack, open_msgpack, read_contents
from tests.support.draws import draws
from tests.support.mutations import mutations

TREE = {
    "conv": {
        "kernel": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
        "bias": np.ones(4),
    },
    "norm": {"scale": jnp.ones((300,), jnp.bfloat16), "half": np.zeros((0, 2), np.float16)},
    "x" * 40: {"scalar": np.float32(3.0).reshape(())},
}
CONTENT = flax.serialization.to_bytes(TREE)
MEMORY = 16 * 2**20  # bytes; the files have two kB


def write(folder, content):
    path = folder / "x.msgpack"
    path.write_bytes(content)
    return path


def test_arrays_that_flax_wrote(tmp_path):
    tensors = open_msgpack(write(tmp_path, CONTENT))
    assert set(tensors) == {
        "conv.kernel",
        "conv.bias",
        "norm.scale",
        "norm.half",
        "x" * 40 + ".scalar",
    }
    for name, tensor in tensors.items():
        above, leaf = name.split(".")
        expected = np.asarray(TREE[above][leaf])
        assert (tensor.shape, tensor.dtype) == (expected.shape, expected.dtype)
        np.testing.assert_array_equal(tensor.read(), expected)


def test_what_is_no_array_is_listed_too(tmp_path):
    others = {
        "step": 3,
        "count": np.int32(3),
        "key": np.ones(2, np.uint32),
        "rate": 0.5,
        "z": 1 + 2j,
        "name": "x" * 300,
        "raw": b"x" * 300,
        "fewer": -5,
        "many": 2**40,
        "none": None,
        "yes": True,
        "empty": {},
    }
    path = write(tmp_path, flax.serialization.msgpack_serialize({**TREE, **others}))
    contents = read_contents(path)
    assert set(contents.arrays) == {*open_msgpack(write(tmp_path, CONTENT)), "count"}
    assert set(contents.others) == set(others) - {"count", "empty"}
    assert contents.others["step"] == "step is not an array"
    assert "key has a dtype other than" in contents.others["key"]


def test_files_that_begin_with_a_map(tmp_path):
    path = write(tmp_path, CONTENT)
    assert is_msgpack(path) and is_msgpack(write(tmp_path, b"\xde\0\x10"))
    for other in (b"", b"\x80\x02", b"PK\3\4", b"\x90", b"\x93NUMPY", b"{}"):
        assert not is_msgpack(write(tmp_path, other)), other


def array(shape, dtype, content):
    return msgpack.ExtType(1, msgpack.packb((shape, dtype, content), use_bin_type=True))


def nested(depth):
    content = msgpack.packb(0)
    for _ in range(depth):
        content = b"\x81\xa1x" + content
    return content


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it ends too early"),
        (b"\xdf\xff\xff\xff\xff", "it ends too early"),
        (CONTENT[:-1], "reaches beyond its end"),
        (CONTENT + b"\0", "bytes follow its end"),
        (msgpack.packb([1]), "something else where a map belongs"),
        (msgpack.packb({1: 2}), "something else where a name belongs"),
        (msgpack.packb({"step": 3}), "step is not an array"),
        (msgpack.packb({"x": msgpack.ExtType(2, b"\x92\1\1")}), "x is not an array"),
        (msgpack.packb({"x": array((2,), "float32", b"\0" * 4)}), "4 bytes, not those of"),
        (msgpack.packb({"x": array((2**40, 2**40), "float32", b"")}), "0 bytes, not those"),
        (msgpack.packb({"x": array((1,), "object", b"\0" * 8)}), "a dtype other than"),
        (
            msgpack.packb({"x": array((-1,), "float32", b"")}),
            "a number that makes no sense",
        ),
        (msgpack.packb({"x": array((1,) * 99, "int8", b"\0")}), "x has 99 axes"),
        (msgpack.packb({"x" * 300: {}}), "a name of 300 bytes"),
        (b"\x81\xa1\xff\x80", "a name that is not printable text"),
        (msgpack.packb({"a\nb": {}}), "a name that is not printable text"),
        (
            b"\x82" + msgpack.packb({"x": array((), "int8", b"\0")})[1:] * 2,
            "two arrays for x",
        ),
        (b"\x81\xa1x\xdb\xff\xff\xff\xff", "x reaches beyond its end"),
        (b"\x81\xa1x\xcf\0", "x reaches beyond its end"),
        (b"\x81\xa1x\x91\1", "x is neither an array nor a number or a text"),
        (b"\x82" + msgpack.packb({"x": 1})[1:] * 2, "two arrays for x"),
        (nested(2000), "nested more than 32 deep"),
        (b"\xdf\0\0\xff\xff" + b"\xa1x\x80" * 65535, "more than 40000 names"),
    ],
)
def test_hostile_files_are_an_error_of_one_line(tmp_path, content, words):
    path = write(tmp_path, content)
    with pytest.raises(ValueError, match=words) as caught:
        open_msgpack(path)
    assert type(caught.value) is ValueError
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


@settings(
    max_examples=draws(1000),
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(content=mutations(CONTENT))
def test_mutated_files_are_read_or_refused(tmp_path, content):
    path = write(tmp_path, content)
    tracemalloc.start()
    try:
        tensors = open_msgpack(path)
        for tensor in tensors.values():
            assert tensor.read().shape == tensor.shape
    except ValueError as error:
        assert type(error) is ValueError, repr(error)
        assert str(path) in str(error) and len(str(error)) < 2000, error
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < MEMORY

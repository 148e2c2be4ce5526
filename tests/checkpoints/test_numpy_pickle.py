"""Pickles of arrays: what Python wrote is read, and nothing in a file ever runs."""

import collections
import os
import pickle
import tracemalloc

import flax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmjax.checkpoints import open_checkpoint
from cmjax.checkpoints.numpy_pickle import open_pickle
from tests.support.flax_files import write_pickle
from tests.support.mutations import fuzz, mutations

ARRAYS = {
    "float32": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "float16": np.zeros((0, 2), np.float16),
    "int": np.array(7, np.int32),
    "bool": np.array([True, False]),
}


def write(folder, value, protocol=4):
    path = folder / "x"
    path.write_bytes(pickle.dumps(value, protocol))
    return path


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_arrays_that_python_wrote(tmp_path, protocol):
    others = {"step": 3, "rate": 0.5, "none": None, "list": [1, (2,)], "text": "x"}
    tree = {"a": {"b": ARRAYS}, **others, "scalar": np.float32(3), "twice": ARRAYS["int"]}
    found = open_pickle(write(tmp_path, tree, protocol))
    assert found.keys() == {*(f"a.b.{name}" for name in ARRAYS), "twice"}
    for name, expected in ARRAYS.items():
        tensor = found[f"a.b.{name}"]
        assert (tensor.shape, tensor.dtype) == (expected.shape, expected.dtype)
        np.testing.assert_array_equal(tensor.read(), expected)


def test_arrays_of_jax_and_dictionaries_of_flax(tmp_path):
    tree = flax.core.freeze({"w": jnp.arange(3.0), "deep": {"b": jnp.ones((2, 2))}})
    found = open_pickle(write(tmp_path, {"params": tree}))
    np.testing.assert_array_equal(found["params.w"].read(), [0, 1, 2])
    np.testing.assert_array_equal(found["params.deep.b"].read(), np.ones((2, 2)))


def test_the_state_of_an_optimizer_is_passed_over(tmp_path):
    found = open_pickle(write_pickle(tmp_path / "x", "shortcut"))
    parts = {name.split(".")[1] for name in found}
    assert parts == {"params", "params_ema", "step"}


class Evil:
    def __reduce__(self):
        return os.system, ("touch ran",)


def cycle():
    tree = {}
    tree["x"] = tree
    return tree


def crossed(depth):
    """A tree of 2**depth paths, in little memory."""
    tree = {"x": np.ones(1)}
    for _ in range(depth):
        tree = {"a": tree, "b": tree}
    return tree


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"x": Evil()}, r"asks for (posix|nt).system, which .*: refused, nothing was run"),
        ({"x": collections.Counter()}, "asks for collections.Counter"),
        ([np.ones(2)], "it holds a list, not a dictionary"),
        ({1: np.ones(2)}, "a dictionary whose keys are not names"),
        ({"x": np.array([None])}, "refused"),
        ({"x": np.ones(2, ">f4")}, "its pickle has a state that no"),
        ({"x": np.ones(2, np.complex64)}, "its pickle calls numpy.dtype"),
        ({"a\nb": np.ones(2)}, "a name that is not printable text"),
        ({"a": {"b": np.ones(1)}, "a.b": np.ones(1)}, "it has two arrays for a.b"),
        (cycle(), "more than 40000 names, or too deep ones"),
        (crossed(25), "more than 40000 names"),
        ({"x" * 100_000: np.ones(1)}, "a name of 100000 bytes"),
    ],
)
def test_pickles_of_other_things(tmp_path, monkeypatch, value, words):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, value)
    with pytest.raises(ValueError, match=words) as caught:
        open_pickle(path)
    assert type(caught.value) is ValueError and str(path) in str(caught.value)
    assert "\n" not in str(caught.value) and not (tmp_path / "ran").exists()


def test_arrays_that_share_their_values(tmp_path):
    array = np.ones(2**16, np.float32)
    path = write(tmp_path, {str(i): array for i in range(100)})
    with pytest.raises(ValueError, match="its arrays claim 26214400 bytes by repeating"):
        open_pickle(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80",
        b"\x80\x04",
        b"\x80\x04.",
        pytest.param(b"\x80\x04]" + b"]" * 500_000, marks=pytest.mark.thorough),
        b"\x80\x04B\xff\xff\xff\xff",
        b"\x80\x04\x8e" + b"\xff" * 8,
        b"\x80\x04X\xff\xff\xff\xffabc",
        b"\x80\x04cos\nsystem\n(S'touch ran'\ntR.",
        b"\x80\x04c" + b"x" * 2**20,
        b"\x80\x04" + b"I" + b"9" * 70_000 + b"\n.",
    ],
)
def test_programs_that_make_no_sense(tmp_path, content):
    path = tmp_path / "x"
    path.write_bytes(content)
    tracemalloc.start()
    with pytest.raises(ValueError) as caught:
        open_pickle(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert len(str(caught.value)) < 2000 and peak < 64 * 2**20


TREE = {"train_state": {"params": ARRAYS, "step": np.array(3)}, "_timestamp": 0.5}
CONTENTS = [pickle.dumps(TREE, protocol) for protocol in (4, 5)]


@fuzz(1000)
@given(data=st.data())
def test_mutated_files_are_read_or_refused(tmp_path, data):
    path = tmp_path / "x"
    path.write_bytes(data.draw(mutations(data.draw(st.sampled_from(CONTENTS)))))
    tracemalloc.start()
    try:
        for tensor in open_pickle(path).values():
            assert tensor.read().shape == tensor.shape
    except ValueError as error:
        assert type(error) is ValueError, repr(error)
        assert str(path) in str(error) and len(str(error)) < 2000, error
        assert "\n" not in str(error), error
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 64 * 2**20


def test_a_pickle_that_asks_for_more_is_refused_by_every_door(tmp_path):
    path = write(tmp_path, {"x": Evil()})
    with pytest.raises(ValueError, match="refused, nothing was run"):
        open_checkpoint(path)

"""Orbax's folders and zips of them: what its versions wrote is read, and damaged ones refused."""

import json
import shutil
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmjax.checkpoints import open_checkpoint
from cmjax.checkpoints.archives import Unpacked
from cmjax.checkpoints.flax_names import used_parameters
from cmjax.checkpoints.orbax_folder import (
    ZARR_3,
    _description,
    find_checkpoint,
    open_orbax,
)
from tests.support.flax_files import write_orbax
from tests.support.flax_networks import GOLDEN
from tests.support.mutations import fuzz, mutations

# What is in both archives, which flax 0.8.5 wrote by Orbax 0.4.4 and 0.6.4: ema_params, params
# (those plus 1), and the state of optax.adamw.
STORED = {
    "a.kernel": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a.bias": np.zeros(3, np.float32),
    "b.scale": np.full(2, 2, np.float32),
}


def check(tensors):
    used, note = used_parameters(tensors)
    assert note.startswith(
        "ema_params, the moving average of the parameters, is used; ignored"
    )
    assert used.keys() == STORED.keys()
    for name, expected in STORED.items():
        found = used[name].read()
        assert found.dtype == used[name].dtype and found.shape == used[name].shape
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(tensors["params.a.bias"].read(), np.ones(3))


@pytest.mark.parametrize("version", ["0_4", "0_6"])
def test_folders_of_old_versions(tmp_path, version):
    with zipfile.ZipFile(GOLDEN / f"orbax_{version}.zip") as archive:
        archive.extractall(tmp_path)
    folder = find_checkpoint(tmp_path)
    assert folder == tmp_path / "checkpoint_3"
    check(open_orbax(folder))


@pytest.mark.parametrize("version", ["0_4", "0_6"])
def test_zips_are_unpacked_for_as_long_as_they_are_needed(version):
    unpacked = Unpacked(GOLDEN / f"orbax_{version}.zip")
    folder = unpacked.folder
    tensors = unpacked.keep_for(open_orbax(find_checkpoint(folder)))
    del unpacked
    check(tensors)
    del tensors
    assert not folder.exists()


def test_the_folder_of_today_and_of_the_last_step(tmp_path):
    tree = {"params": {"w": np.ones((2, 3), np.float32)}, "step": 3, "none": None}
    write_orbax(tmp_path, tree)
    shutil.copytree(tmp_path / "checkpoint_3", tmp_path / "checkpoint_12" / "default")
    assert find_checkpoint(tmp_path) == tmp_path / "checkpoint_12" / "default"
    tensors = open_orbax(tmp_path / "checkpoint_3")
    np.testing.assert_array_equal(tensors["params.w"].read(), np.ones((2, 3)))


@pytest.fixture(scope="module")
def zarr_3(tmp_path_factory):
    """A folder of today's Orbax with arrays in zarr 3."""
    params = {
        "w": np.arange(6, dtype=np.float32).reshape(2, 3),
        "half": np.arange(3).astype(ml_dtypes.bfloat16),
        "is_on": np.array([True, False]),
    }
    path = tmp_path_factory.mktemp("zarr_3")
    write_orbax(path, {"params": params, "step": 3}, use_zarr3=True)
    return path / "checkpoint_3", params


def test_arrays_in_zarr_3(zarr_3):
    folder, params = zarr_3
    tensors = open_orbax(folder)
    for name, expected in params.items():
        tensor = tensors[f"params.{name}"]
        found = tensor.read()
        assert found.dtype == tensor.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


def _changed(**changes):
    description = {
        "data_type": "float32",
        "shape": [2, 3],
        "chunk_grid": {"configuration": {"chunk_shape": [2, 3]}},
    }
    return description | changes


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ([], "its description is no object"),
        (_changed(data_type="complex64"), "its dtype is 'complex64'"),
        (_changed(data_type="<f4"), "its dtype is '<f4'"),
        (_changed(chunk_grid=None), "its chunk_grid is None"),
        (_changed(chunk_grid={}), "its chunk_grid is {}"),
        (_changed(chunk_grid={"configuration": {}}), "its chunk_shape is None"),
        (
            _changed(chunk_grid={"configuration": {"chunk_shape": [2, 2**30]}}),
            "do not fit its shape",
        ),
        (_changed(shape=[2, -3]), "its shape is"),
    ],
)
def test_descriptions_in_zarr_3_that_make_no_sense(description, message):
    with pytest.raises(ValueError, match=message):
        _description(description, ZARR_3)


def test_folders_that_are_none(tmp_path):
    assert find_checkpoint(tmp_path) is None
    (tmp_path / "a" / "b" / "c" / "d" / "e").mkdir(parents=True)
    assert find_checkpoint(tmp_path) is None
    with pytest.raises(ValueError, match="has no config.json"):
        open_checkpoint(tmp_path)


@pytest.fixture
def folder(tmp_path):
    with zipfile.ZipFile(GOLDEN / "orbax_0_6.zip") as archive:
        archive.extractall(tmp_path)
    return tmp_path / "checkpoint_3"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tree: tree.clear(), "tree_metadata must have"),
        (lambda tree: tree["tree_metadata"].update(x=3), "describes no array"),
        (
            lambda tree: tree["tree_metadata"].update(
                x={"key_metadata": [{"key": "a\nb"}], "value_metadata": {"value_type": ""}}
            ),
            "is the name of no array",
        ),
        (
            lambda tree: tree["tree_metadata"].update(
                x={
                    "key_metadata": [{"key": "../../x"}],
                    "value_metadata": {"value_type": "np.ndarray"},
                }
            ),
            "the array ../../x is missing",
        ),
    ],
)
def test_names_that_make_no_sense(folder, change, message):
    metadata = json.loads((folder / "_METADATA").read_text())
    change(metadata)
    (folder / "_METADATA").write_text(json.dumps(metadata))
    with pytest.raises(ValueError, match=message) as caught:
        open_orbax(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def zipped(path, entries, **options):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries:
            archive.writestr(name, content, **options)
    return path


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([("../checkpoint", b"x")], "a file of the name '../checkpoint'"),
        ([("/checkpoint", b"x")], "a file of the name '/checkpoint'"),
        ([("a\\checkpoint", b"x"), ("checkpoint", b"")], "a file of the name"),
        ([("checkpoint", b"x"), ("checkpoint", b"y")], "File exists"),
        (
            [("checkpoint", bytes(2**25))],
            "claims 1 files of 33554432 bytes, more than such",
        ),
        ([("a/checkpoint", b"x")], "holds no checkpoint of PyTorch or Orbax"),
    ],
)
def test_archives_that_are_none(tmp_path, entries, message):
    path = zipped(tmp_path / "x.zip", entries)
    with pytest.raises(ValueError, match=message) as caught:
        open_checkpoint(path)
    assert str(path) in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == ["x.zip"]


@pytest.mark.parametrize("slashes", ["/", "//", "///"])
def test_no_file_is_written_elsewhere(tmp_path, slashes):
    """A path of two slashes is absolute, and not of the same parts as that of one."""
    outside = tmp_path / "outside" / "x"
    name = slashes + str(outside).removeprefix("/")
    path = zipped(
        tmp_path / "x.zip", [(name, b"x"), ("checkpoint", b""), ("_METADATA", b"")]
    )
    with pytest.raises(ValueError, match="it has a file of the name"):
        open_checkpoint(path)
    assert [file.name for file in tmp_path.iterdir()] == ["x.zip"]


@pytest.fixture(scope="module")
def traced():
    """Allocations are traced, in one go: CPython 3.11 can crash where tracing stops while a thread
    of TensorStore, which reads zarr 3, frees what it allocated."""
    tracemalloc.start()
    yield
    tracemalloc.stop()


def read_all(path, open_it):
    """Reads all tensors or is refused, in bounded memory. It needs `traced`."""
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    try:
        for tensor in open_it(path).values():
            assert tensor.read().shape == tensor.shape
    except ValueError as error:
        assert type(error) is ValueError, repr(error)
        assert str(path) in str(error) and len(str(error)) < 2000, error
        assert "\n" not in str(error)
    peak = tracemalloc.get_traced_memory()[1]
    assert peak - before < 64 * 2**20


@fuzz(100)
@given(data=st.data())
def test_mutated_folders_are_read_or_refused(tmp_path, zarr_3, traced, data):
    copy = tmp_path / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    folder = copy / "checkpoint_3"
    if data.draw(st.booleans()):
        shutil.copytree(zarr_3[0], folder)
    else:
        with zipfile.ZipFile(GOLDEN / "orbax_0_6.zip") as archive:
            archive.extractall(copy)
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    for _ in range(data.draw(st.integers(1, 2))):
        file = data.draw(st.sampled_from(files))
        file.write_bytes(data.draw(mutations(file.read_bytes())))
    read_all(folder, open_orbax)


@fuzz(100)
@given(data=st.data())
def test_mutated_zips_are_read_or_refused(tmp_path, data):
    version = data.draw(st.sampled_from(["0_4", "0_6"]))
    path = tmp_path / "x.zip"
    path.write_bytes(data.draw(mutations((GOLDEN / f"orbax_{version}.zip").read_bytes())))
    with pytest.raises(ValueError) as caught:
        open_checkpoint(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)

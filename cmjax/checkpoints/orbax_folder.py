"""Folders of Orbax, as `flax.training.checkpoints` writes training states by it.

Orbax up to 0.4 writes all arrays to one MessagePack file, `checkpoint`. Later versions write a
database, OCDBT, with an entry for the description of every array, of zarr in version 2 or 3, and
one for its values. TensorStore, which Orbax writes by, reads it; what it is asked to read is
checked here first.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from cmjax.checkpoints.archives import MOST_GROWTH
from cmjax.checkpoints.flax_msgpack import open_msgpack
from cmjax.checkpoints.json_files import read_json
from cmjax.checkpoints.tensors import StoredTensor
from cmjax.configs import shown
from cmjax.printing import one_line

METADATA = "_METADATA"  # names of all arrays
DATABASE = "manifest.ocdbt"
ARRAYS = "checkpoint"  # the file of old versions
STEP = re.compile(r"(?:\w+_)?([0-9]{1,18})")  # folders of a step: "checkpoint_3", or "3"

# Bounds for files that are damaged or hostile.
MOST_ARRAYS = 40_000
LONGEST_NAME = 512
MOST_AXES = 32
DEEPEST = 4  # folders around a checkpoint
MOST_SECONDS = 600.0  # that the database may take for one answer

# The entry that describes an array, and TensorStore's driver, in both versions of zarr.
ZARR_2 = (".zarray", "zarr")
ZARR_3 = ("zarr.json", "zarr3")

DTYPES = {
    "<f8": np.dtype(np.float64),
    "<f4": np.dtype(np.float32),
    "<f2": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "<i8": np.dtype(np.int64),
    "<i4": np.dtype(np.int32),
    "<u4": np.dtype(np.uint32),
    "<i2": np.dtype(np.int16),
    "|i1": np.dtype(np.int8),
    "|u1": np.dtype(np.uint8),
    "|b1": np.dtype(np.bool_),
}
DTYPES_3 = {dtype.name: dtype for dtype in DTYPES.values()}


def find_checkpoint(path: Path) -> Path | None:
    """Returns the folder of a checkpoint, which is `path` or in it; None if there is none.

    Of the folders of several steps it is that of the last one.
    """
    for _ in range(DEEPEST):
        if (path / METADATA).exists() and any(
            (path / name).exists() for name in (DATABASE, ARRAYS)
        ):
            return path
        try:
            folders = [folder for folder in path.iterdir() if folder.is_dir()]
        except OSError:
            return None
        steps = {
            int(match[1]): folder
            for folder in folders
            if (match := STEP.fullmatch(folder.name))
        }
        if not steps and len(folders) != 1:
            return None
        path = steps[max(steps)] if steps else folders[0]
    return None


def open_orbax(folder: Path) -> dict[str, StoredTensor]:
    """Lists the arrays of a checkpoint by their dotted names, such as "params.conv_in.kernel".

    Raises:
        ValueError: if a file is missing or damaged, or the checkpoint holds anything else.
    """
    if not (folder / DATABASE).exists():
        return open_msgpack(folder / ARRAYS)
    names, version = _arrays(folder)
    entry, driver = version

    # All descriptions are asked for before the first is waited for.
    try:
        store = _database(folder)
        pending = {name: store.read(f"{name}/{entry}") for name in names}
        answers = {name: answer.result(MOST_SECONDS) for name, answer in pending.items()}
    # Nothing of the file runs, so a failure can only be a damaged file.
    except Exception as error:
        raise ValueError(f"{folder / DATABASE} is not readable: {_why(error)}") from None

    found = {}
    for name, answer in answers.items():
        if answer.state != "value":
            raise ValueError(f"{folder}: the array {name} is missing")
        try:
            description = _description(json.loads(answer.value), version)
            found[name] = _unread(folder, name, driver, *description)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{folder}: the array {name}: {_why(error)}") from None
    _check_claims(folder, found)
    return found


def _check_claims(folder: Path, tensors: Mapping[str, StoredTensor]) -> None:
    """Raises ValueError if arrays claim more memory than the files of a folder can hold."""
    claimed = sum(tensor.nbytes for tensor in tensors.values())
    held = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    if claimed > MOST_GROWTH * held + 2**20:
        raise ValueError(
            f"{folder} claims arrays of {claimed} bytes in files of {held}, more than such "
            "numbers grow to"
        )


def _arrays(folder: Path) -> tuple[list[str], tuple[str, str]]:
    """Returns the names of all arrays, and `ZARR_2` or `ZARR_3`.

    Values of other kinds are passed over.
    """
    where = folder / METADATA
    metadata = read_json(where)
    tree = metadata.get("tree_metadata")
    if not isinstance(tree, Mapping) or len(tree) > MOST_ARRAYS:
        raise ValueError(f"{where}: tree_metadata must have up to {MOST_ARRAYS} arrays")
    version = ZARR_3 if metadata.get("use_zarr3") is True else ZARR_2
    names = []
    for entry in tree.values():
        try:
            keys = [part["key"] for part in entry["key_metadata"]]
            kind = entry["value_metadata"]["value_type"]
        except (TypeError, KeyError):
            raise ValueError(f"{where}: {shown(entry)} describes no array") from None
        name = ".".join(map(str, keys[:32]))
        if len(keys) > 32 or len(name) > LONGEST_NAME or not name.isprintable():
            raise ValueError(f"{where}: {shown(keys)} is the name of no array")
        if kind in ("np.ndarray", "jax.Array"):
            names.append(name)
    return names, version


def _database(folder: Path) -> Any:
    """Returns the key-value store in a folder."""
    import tensorstore

    base = {"driver": "file", "path": f"{folder.resolve()}/"}
    opened = tensorstore.KvStore.open({"driver": "ocdbt", "base": base})
    return opened.result(MOST_SECONDS)


def _description(
    description: Any, version: tuple[str, str]
) -> tuple[tuple[int, ...], np.dtype]:
    """Returns shape and dtype of an array's description.

    Raises:
        ValueError: for a description that makes no sense.
    """
    if not isinstance(description, dict):
        raise ValueError("its description is no object")
    found = description.get("dtype")
    dtype = DTYPES.get(str(found))
    parts = description
    key = "chunks"

    # Version 3 has other names, and the parts of a regular grid in another place.
    if version == ZARR_3:
        found = description.get("data_type")
        dtype = DTYPES_3.get(str(found))
        grid = description.get("chunk_grid")
        parts = grid.get("configuration") if isinstance(grid, dict) else None
        key = "chunk_shape"
        if not isinstance(parts, dict):
            raise ValueError(f"its chunk_grid is {shown(grid)}")
    if dtype is None:
        raise ValueError(f"its dtype is {shown(found)}")
    shape = _sizes("shape", description)
    chunks = _sizes(key, parts)

    # A part is read whole: one larger than its array could take any memory.
    if len(chunks) != len(shape) or math.prod(chunks) > max(math.prod(shape), 1):
        raise ValueError(
            f"its parts of {shown(chunks)} do not fit its shape {shown(shape)}"
        )
    return shape, dtype


def _unread(folder, name, driver, shape, dtype):
    """Returns an array that TensorStore reads when it is asked for."""

    def read():
        import tensorstore

        base = {"driver": "file", "path": f"{folder.resolve()}/"}
        store = {"driver": "ocdbt", "base": base, "path": f"{name}/"}
        spec = {"driver": driver, "kvstore": store, "fill_missing_data_reads": False}
        try:
            array = tensorstore.open(spec, open=True).result(MOST_SECONDS)
            values = np.asarray(array.read().result(MOST_SECONDS))
        except Exception as error:
            raise ValueError(
                f"{folder}: the array {name} is not readable: {_why(error)}"
            ) from None
        if values.shape != shape or values.dtype != dtype:
            raise ValueError(f"{folder}: the array {name} has changed while it was read")
        return values

    return StoredTensor(shape, dtype, read)


def _sizes(name: str, description: dict[str, Any]) -> tuple[int, ...]:
    """Returns the numbers under a name of a description."""
    sizes = description.get(name)
    if not isinstance(sizes, list) or len(sizes) > MOST_AXES:
        raise ValueError(f"its {name} is {shown(sizes)}")
    if not all(type(size) is int and 0 <= size < 2**40 for size in sizes):
        raise ValueError(f"its {name} is {shown(sizes)}")
    return tuple(sizes)


def _why(error: Exception) -> str:
    """Returns an error in one line, shortened."""
    return one_line(str(error)) or type(error).__name__

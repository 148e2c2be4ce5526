"""Pickles of NumPy arrays, as of a training state in JAX, read without running what they contain.

`pickle_machine.py` runs the pickle without calling anything. The values of arrays stand within it,
often gigabytes of them: they are passed over, and read when they are asked for. The state of an
optimizer of optax may be there; it is passed over too.
"""

import dataclasses
import math
import pickletools
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Literal, cast

import numpy as np

from cmjax.checkpoints.pickle_machine import Machine, Name, RefusedError, brief
from cmjax.checkpoints.tensors import StoredTensor, check_file, stored_in
from cmjax.files import open_regular
from cmjax.printing import one_line

# NumPy's short names of dtypes, as pickles have them.
DTYPES = {
    name: np.dtype(name)
    for name in ("f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "b1")
}

# The functions by which arrays pickle themselves, in NumPy 1 and 2, and by protocol 5 of pickles.
MODULES = ("numpy.core", "numpy._core")
RECONSTRUCT = tuple(f"{module}.multiarray._reconstruct" for module in MODULES)
FROM_BUFFER = tuple(f"{module}.numeric._frombuffer" for module in MODULES)
SCALAR = tuple(f"{module}.multiarray.scalar" for module in MODULES)
OF_JAX = "jax._src.array._reconstruct_array"
FROZEN_DICT = "flax.core.frozen_dict.FrozenDict"
CALLS = (*RECONSTRUCT, *FROM_BUFFER, *SCALAR, OF_JAX, FROZEN_DICT)
CLASSES = ("numpy.ndarray", "numpy.dtype")
OPTIMIZER = "optax."

# First byte -> instruction.
INSTRUCTIONS = {opcode.code: opcode for opcode in pickletools.opcodes}

# Instructions with bytes -> how many bytes their length has.
BYTES = {"SHORT_BINBYTES": 1, "BINBYTES": 4, "BINBYTES8": 8, "BYTEARRAY8": 8}

# Bounds for files that are damaged or hostile. A network of 700 M parameters with its optimizer has
# some 100,000 instructions.
MOST_INSTRUCTIONS = 400_000
LARGEST_REST = 16 * 2**20  # bytes of the pickle besides the values of arrays
LONGEST = 64 * 1024  # bytes of a name
MOST_NAMES = 40_000
MOST_AXES = 32
DEEPEST = 32
MOST_SHARING = 4  # times the size of the file that arrays may claim by sharing values


def open_pickle(path: Path) -> dict[str, StoredTensor]:
    """Lists the arrays of a pickle of dictionaries by their dotted names, such as "params.w".

    Other values are passed over.

    Raises:
        ValueError: if the file is damaged, or asks for anything but arrays.
    """
    check_file(path)
    try:
        with open_regular(path) as file:
            tree = _Machine().run(_instructions(file, path.stat().st_size))
        found = _flattened(path, tree)
    except (OSError, ValueError) as error:
        reason = one_line(str(error), 1000)
        raise ValueError(f"{path} is not a readable pickle of arrays: {reason}") from None
    claimed = sum(array.nbytes for array in found.values())
    if claimed > MOST_SHARING * path.stat().st_size + 2**20:
        raise ValueError(f"{path}: its arrays claim {claimed} bytes by repeating values")
    return found


@dataclasses.dataclass(frozen=True)
class _Bytes:
    """Where bytes stand in the file."""

    start: int
    count: int


@dataclasses.dataclass(eq=False)
class _Dtype:
    """A dtype of numbers, which are little-endian."""

    dtype: np.dtype


@dataclasses.dataclass(eq=False)
class _Array:
    """An array; its shape is None until its state is known."""

    shape: tuple[int, ...] | None = None
    dtype: np.dtype | None = None
    values: _Bytes | None = None
    order: Literal["C", "F"] = "C"


class _Other:
    """A value that is no array, such as the state of an optimizer."""


class _Bounded:
    """A file that is read in small parts, up to a number of bytes altogether."""

    def __init__(self, file: IO[bytes]):
        self._file = file
        self._left = LARGEST_REST

    def read(self, size: int) -> bytes:
        if size > LONGEST:
            raise RefusedError(f"its pickle has a name of {size} bytes")
        return self._counted(self._file.read(size))

    def readline(self) -> bytes:
        return self._counted(self._file.readline(LONGEST))

    def _counted(self, content):
        self._left -= len(content)
        if self._left < 0:
            raise RefusedError(f"its pickle has more than {LARGEST_REST} bytes of no array")
        return content


def _instructions(file: IO[bytes], size: int) -> Iterator[tuple[str, Any]]:
    """Returns the instructions of a pickle with their arguments; of bytes, where they stand."""
    bounded = _Bounded(file)
    for _ in range(MOST_INSTRUCTIONS):
        opcode = INSTRUCTIONS[bounded.read(1).decode("latin-1")]
        if opcode.name in BYTES:
            count = int.from_bytes(bounded.read(BYTES[opcode.name]), "little")
            place = _Bytes(file.tell(), count)
            if place.start + count > size:
                raise RefusedError(f"its pickle claims {count} bytes, more than there are")
            file.seek(count, 1)
            yield opcode.name, place
        else:
            argument = None
            if opcode.arg is not None:
                argument = opcode.arg.reader(cast(IO[bytes], bounded))
            yield opcode.name, argument
    raise RefusedError(f"its pickle has more than {MOST_INSTRUCTIONS} instructions")


class _Machine(Machine):
    """The machine of pickles of arrays."""

    further = frozenset({"NEWOBJ", *BYTES})

    def knows(self, name: str) -> bool:
        """Whether a name is one of those that arrays, or an optimizer's state, need."""
        return name in CALLS or name in CLASSES or name.startswith(OPTIMIZER)

    def built(self, function: Any, arguments: Any) -> Any:
        """Returns what the function or class of that name would return for these arguments."""
        match function, arguments:
            case Name(name), (Name("numpy.ndarray"), *_) if name in RECONSTRUCT:
                return _Array()
            case Name(name), (
                _Bytes() as values,
                _Dtype() as kind,
                tuple() as shape,
                order,
            ) if name in FROM_BUFFER:
                return _array(shape, kind, values, order == "F")
            case Name("numpy.dtype"), (str() as name, *_) if name in DTYPES:
                return _Dtype(DTYPES[name])

            # An array of JAX is the one of NumPy that it holds, with its state.
            case Name(name), (Name(inner), (Name("numpy.ndarray"), *_), state, _) if (
                name == OF_JAX and inner in RECONSTRUCT
            ):
                array = _Array()
                self.set_state(array, state)
                return array
            case Name(name), (dict() as content,) if name == FROZEN_DICT:
                return content
            case Name(name), _ if name in SCALAR or name.startswith(OPTIMIZER):
                return _Other()
        return super().built(function, arguments)

    def set_state(self, value: Any, state: Any) -> None:
        """Does what `__setstate__` of an array or a dtype would do."""
        match value, state:
            case _Array(None), (
                int(),
                tuple() as shape,
                _Dtype() as kind,
                fortran,
                _Bytes() as v,
            ):
                made = _array(shape, kind, v, fortran is True)
                value.shape = made.shape
                value.dtype = made.dtype
                value.values = made.values
                value.order = made.order
            case _Dtype(), (int(), str() as order, None, None, None, *_) if order in "<|":
                pass
            case _Other(), _:
                pass
            case _:
                raise RefusedError(f"its pickle has a state that no {brief(value)} has")


def _array(shape: Any, kind: _Dtype, values: _Bytes, fortran: bool) -> _Array:
    """Returns an array whose values are as many bytes as its shape says."""
    sizes = all(type(size) is int and 0 <= size < 2**63 for size in shape)
    if not sizes or len(shape) > MOST_AXES:
        raise RefusedError("its pickle has an array whose shape makes no sense")
    if math.prod(shape) * kind.dtype.itemsize != values.count:
        raise RefusedError(
            f"its pickle has an array {shape} of {kind.dtype} with {values.count} bytes"
        )
    return _Array(shape, kind.dtype, values, "F" if fortran else "C")


def _flattened(path: Path, tree: Any) -> dict[str, StoredTensor]:
    """Returns the arrays in nested dictionaries by their dotted names."""
    if not isinstance(tree, dict):
        raise ValueError(f"it holds {brief(tree)}, not a dictionary")
    found: dict[str, StoredTensor] = {}
    waiting: list[tuple[str, dict[str, Any], int]] = [("", tree, 0)]

    # Counted, because a dictionary may hold itself, or others many times.
    names = 0
    while waiting:
        prefix, branch, depth = waiting.pop()
        for key, value in branch.items():
            names += 1
            name = f"{prefix}{key}"
            if names > MOST_NAMES or depth > DEEPEST or len(name) > LONGEST:
                raise ValueError(f"it has more than {MOST_NAMES} names, or too deep ones")
            if not name.isprintable():
                raise ValueError("it has a name that is not printable text")
            if isinstance(value, dict):
                waiting.append((f"{name}.", value, depth + 1))
                continue

            # Whatever is no array is passed over.
            if not isinstance(value, _Array) or value.shape is None:
                continue
            if name in found:
                raise ValueError(f"it has two arrays for {name[:200]}")
            found[name] = _stored(path, value)
    return found


def _stored(path: Path, array: _Array) -> StoredTensor:
    """Returns an array, unread."""
    assert array.shape is not None
    assert array.dtype is not None
    assert array.values is not None
    return stored_in(path, array.values.start, array.shape, array.dtype, array.order)

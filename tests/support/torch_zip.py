"""PyTorch's files made by hand, without PyTorch: a zip archive and the instructions of a pickle."""

import zipfile

import numpy as np

STORAGE = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int16": "ShortStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
    "complex64": "ComplexFloatStorage",
}


def text(value: str) -> bytes:
    encoded = value.encode("utf-8", "surrogatepass")
    return b"X" + len(encoded).to_bytes(4, "little") + encoded  # BINUNICODE


def number(value: int) -> bytes:
    encoded = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(encoded)]) + encoded  # LONG1


def name(module: str, what: str) -> bytes:
    return f"c{module}\n{what}\n".encode()  # GLOBAL


def tuple_(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"  # MARK ... TUPLE


def numbers(values) -> bytes:
    return tuple_(*map(number, values))


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + tuple_(*arguments) + b"R"  # REDUCE


def dict_(items: dict[str, bytes]) -> bytes:
    return (
        b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"
    )  # EMPTY_DICT MARK ... SETITEMS


def storage(kind: str, key: str, size: int) -> bytes:
    return (
        tuple_(text("storage"), name("torch", kind), text(key), text("cpu"), number(size))
        + b"Q"
    )  # BINPERSID


def tensor(stored: bytes, shape=(2,), strides=(1,), offset=0) -> bytes:
    hooks = call(name("collections", "OrderedDict"))
    rebuild = name("torch._utils", "_rebuild_tensor_v2")
    return call(
        rebuild, stored, number(offset), numbers(shape), numbers(strides), b"\x89", hooks
    )


def program(body: bytes, protocol: int = 2) -> bytes:
    return b"\x80" + bytes([protocol]) + body + b"."  # PROTO ... STOP


def write(
    path,
    pickled: bytes,
    storages=None,
    others=None,
    compression=zipfile.ZIP_STORED,
    folder="archive",
):
    """Writes the archive: the pickle, the bytes of each storage by key, other entries by name."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(f"{folder}/data.pkl", pickled)
        for key, content in (storages or {}).items():
            archive.writestr(f"{folder}/data/{key}", content)
        for entry, content in (others or {}).items():
            archive.writestr(f"{folder}/{entry}", content)
    return path


def parts(arrays) -> tuple[bytes, dict[str, bytes]]:
    """The pickle and the storages of a state dict of contiguous arrays."""
    items, storages = {}, {}
    for i, (key, array) in enumerate(arrays.items()):
        array = np.asarray(array)
        strides = [
            stride // array.itemsize
            for stride in np.empty(array.shape, array.dtype).strides
        ]
        stored = storage(STORAGE[array.dtype.name], str(i), array.size)
        items[key] = tensor(stored, array.shape, strides)
        storages[str(i)] = array.tobytes()
    return program(dict_(items)), storages


def save(path, arrays):
    """What `torch.save(state_dict, path)` writes."""
    pickled, storages = parts(arrays)
    return write(path, pickled, storages, {"byteorder": b"little", "version": b"3\n"})

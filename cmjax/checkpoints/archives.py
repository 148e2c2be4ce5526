"""Zip archives, read in bounded memory: a folder in one is unpacked where nobody else looks."""

import contextlib
import functools
import io
import shutil
import tempfile
import weakref
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import IO

from cmjax.checkpoints.tensors import StoredTensor
from cmjax.files import open_regular
from cmjax.printing import one_line

# Bytes of an archive's directory. That of the largest released model has under a tenth of one MiB.
LARGEST_DIRECTORY = 4 * 2**20
# Zeros, as of an optimizer that has not run, are packed to a thousandth; trained numbers to nine
# tenths.
MOST_GROWTH = 16
MOST_ENTRIES = 40_000


class BoundedReads(io.BufferedIOBase):
    """An open file that is read in small parts only.

    `zipfile` reads the directory of an archive in one call, whatever size the file claims for it.
    """

    def __init__(self, file: IO[bytes]):
        """Wraps a file that is open for reading bytes."""
        self.seek = file.seek
        self.tell = file.tell
        self._file = file

    def read(self, size: int | None = -1, /) -> bytes:
        """Returns up to `size` bytes; raises ValueError for more than a directory has."""
        size = -1 if size is None else size
        if size > LARGEST_DIRECTORY:
            raise ValueError(f"its directory claims {size} bytes")
        return self._file.read(size)


class Unpacked:
    """The files of an archive in a temporary folder, which goes with the object.

    Attributes:
        path: the archive.
        folder: the folder.
    """

    def __init__(self, path: Path):
        """Unpacks an archive.

        Raises:
            ValueError: if it is damaged, asks for files elsewhere, or grows to more than an archive
                of numbers would.
        """
        self.path = path
        self.folder = Path(tempfile.mkdtemp(prefix="cmjax-"))
        self._removed = weakref.finalize(
            self, shutil.rmtree, self.folder, ignore_errors=True
        )
        try:
            with open_regular(path) as file:
                with zipfile.ZipFile(BoundedReads(file)) as archive:
                    _unpack(archive, self.folder, MOST_GROWTH * path.stat().st_size + 2**20)
        # `zipfile` raises errors of many kinds for damaged archives; nothing of them runs.
        except Exception as error:
            self._removed()
            reason = one_line(str(error)) or type(error).__name__
            raise ValueError(f"{path} is not a readable archive: {reason}") from None

    @contextlib.contextmanager
    def named(self) -> Iterator[None]:
        """Names the archive in errors that name the temporary folder, of which no user knows."""
        try:
            yield
        except ValueError as error:
            message = str(error).replace(str(self.folder), str(self.path))
            raise ValueError(message) from None

    def keep_for(self, tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
        """Returns tensors in these files, which keep the folder as long as they are there."""

        def kept(tensor):
            return StoredTensor(
                tensor.shape, tensor.dtype, functools.partial(_read, self, tensor)
            )

        return {name: kept(tensor) for name, tensor in tensors.items()}


def _read(unpacked, tensor):
    """Reads a tensor of an archive, which is kept by this, and named by the errors."""
    with unpacked.named():
        return tensor.read()


def _unpack(archive: zipfile.ZipFile, folder: Path, largest: int) -> None:
    """Writes all files of an archive, which are together of at most `largest` bytes."""
    entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    claimed = sum(entry.file_size for entry in entries)
    if claimed > largest or len(entries) > MOST_ENTRIES:
        raise ValueError(
            f"it claims {len(entries)} files of {claimed} bytes, more than such numbers grow to"
        )
    for entry in entries:
        # "//x" is absolute too, and keeps both of its slashes as the first part.
        path = PurePosixPath(entry.filename)
        target = folder.joinpath(*path.parts)
        odd = path.is_absolute() or not path.parts or ".." in path.parts
        odd = odd or "\\" in entry.filename or ":" in entry.filename
        if odd or not entry.filename.isprintable() or not target.is_relative_to(folder):
            raise ValueError(f"it has a file of the name {entry.filename[:200]!r}")
        target.parent.mkdir(parents=True, exist_ok=True)

        # Written again, so that two entries cannot share a name; `zipfile` stops at the size that
        # the entry claims, and compares its checksum.
        with archive.open(entry) as source, target.open("xb") as copy:
            shutil.copyfileobj(source, copy, 2**20)

"""Atomic replacement of files and folders: a crash leaves the old or the new, never a part."""

import contextlib
import ctypes
import errno
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[IO[bytes]]:
    """Opens a temporary file that replaces `path` when the context ends without an error.

    A failure leaves `path` unchanged.

    Args:
        path: the file to write; its folder must exist.

    Yields:
        The temporary file, opened for writing bytes.

    Raises:
        OSError: if the file cannot be written. Its message names `path`.
    """
    # A symbolic link is followed, so that it stays a link. The temporary file is in the same
    # folder, since a rename is atomic only within one file system.
    path = Path(os.path.realpath(path))
    temporary = path.with_name(f".cmjax-{secrets.token_hex(4)}{path.suffix}")
    try:
        with temporary.open("xb") as file:
            yield file

            # Flushed before the rename: the name must never refer to data that a crash of the
            # machine can lose. Some file systems report a full disk only here.
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync(path.parent)
    except OSError as error:
        raise _named(error, path) from None
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(path: str | Path) -> Iterator[Path]:
    """Creates a temporary folder that replaces `path` when the context ends without an error.

    A failure leaves `path` unchanged.

    Args:
        path: the folder to write; its parents are created.

    Yields:
        The path of the temporary folder.

    Raises:
        OSError: if the folder cannot be written, or `path` is a file.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(20, "is a file; give the name of a folder", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".cmjax-{secrets.token_hex(4)}")
    temporary.mkdir()
    try:
        yield temporary

        # As for files: first the content, then the name.
        for file in [*temporary.rglob("*"), temporary]:
            _sync(file)

        # A rename cannot replace a folder that is not empty, so the two are exchanged; the old one
        # is then removed under the temporary name.
        if path.exists():
            _exchange(temporary, path)
        else:
            temporary.rename(path)
        _sync(path.parent)
    except OSError as error:
        raise _named(error, path) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def clear_unfinished(folder: Path) -> None:
    """Removes the temporary files and folders that killed processes left in a folder."""
    for path in folder.glob(".cmjax-*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def append(path: Path, line: str) -> None:
    """Appends a line to a file, in one write.

    If a full disk has cut the last line short, that line is ended first, so that only it is lost.

    Raises:
        OSError: if the line cannot be written.
    """
    # Unbuffered, so that a line is one system call: a kill leaves all of it or nothing.
    try:
        with path.open("ab+", buffering=0) as file:
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    line = f"\n{line}"
            content = f"{line}\n".encode()

            # An almost full disk takes a part of the line without an error.
            if file.write(content) < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        raise _named(error, path) from None


def _named(error: OSError, path: Path) -> OSError:
    """Adds the path to an error: that of a failed write says what is wrong, but not where."""
    if error.errno and not error.filename:
        error.filename = os.fspath(path)
    return error


def _sync(path: Path) -> None:
    """Flushes a file or folder to the disk, so that it survives a crash of the machine."""
    folder = path.is_dir()
    if folder and os.name == "nt":
        return  # Windows cannot open folders
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        # Some file systems cannot flush folders, and the user may lack permission to read one.
        # Either costs safety against a crash of the machine, not correctness.
        if not folder or error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EACCES):
            raise


def _exchange(one: Path, other: Path) -> None:
    """Exchanges the names of two folders, atomically on Linux and macOS.

    Python has no function for it, so the C library is called. With two renames instead, a process
    that is killed between them leaves nothing at the path of a model.
    """
    libc = ctypes.CDLL(None) if os.name == "posix" else None
    one_name = os.fsencode(one)
    other_name = os.fsencode(other)
    done = False
    if sys.platform == "linux" and hasattr(libc, "renameat2"):
        here = -100  # AT_FDCWD
        exchange = 2  # RENAME_EXCHANGE
        done = libc.renameat2(here, one_name, here, other_name, exchange) == 0
    elif sys.platform == "darwin" and hasattr(libc, "renamex_np"):
        swap = 2  # RENAME_SWAP
        done = libc.renamex_np(one_name, other_name, swap) == 0

    # Other systems, and file systems without the operation. A kill between these lines leaves the
    # old folder under a temporary name.
    if not done:
        aside = one.with_name(f"{one.name}-old")
        other.rename(aside)
        one.rename(other)
        aside.rename(one)

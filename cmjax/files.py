"""Safe reading, writing and replacing of files and folders.

* What is read is a regular file: a pipe would keep the reader waiting, a device may have no end.
* What is replaced is replaced whole: a crash leaves the old or the new, never a part.
* What cmjax did not write is neither replaced nor removed, and no symbolic link is followed.
"""

import contextlib
import errno
import io
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from cmjax.configs import shown
from cmjax.system import exchange, flush

MANIFEST = "manifest.json"  # in a folder of `generate_folder` or `encode_folder`
REMOVED = ".removed"  # folder that `set_aside` moves files to
TEMPORARY = r"\.cmjax-[0-9a-f]{8}(\.\w+)?"  # names of temporary files and folders


def as_path(name: str, value: Any, kind: str = "a path") -> Path:
    """Returns the path of a file or folder that a caller gave.

    Args:
        name: of the argument, for the error.
        value: its value.
        kind: what it must be, for the error.

    Raises:
        ValueError: for what cannot be a path.
    """
    # No path holds a zero byte, and an empty one would be the current folder.
    usable = isinstance(value, str | os.PathLike) and "\0" not in str(value)
    if not usable or not str(value):
        raise ValueError(f"{name} must be {kind}, got {shown(value)}")
    return path_of(value)


def path_of(name: str | os.PathLike) -> Path:
    """Returns the path of a file whose name stands in a text, such as a configuration.

    Where the locale is not UTF-8, Python cannot name every file by the letters of its name.
    """
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        # The bytes that the name has on disk, as Python writes those that it cannot decode.
        return Path(os.fsdecode(os.fspath(name).encode(errors="surrogateescape")))
    return Path(name)


def text_of(name: str) -> str:
    """Returns the letters of a name that is on disk, or that a shell passed; undoes `path_of`.

    So a class has one name, whether the locale in which its folder is read is UTF-8 or not. Bytes
    that are not UTF-8 stay as Python writes them.
    """
    try:
        return os.fsencode(name).decode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return name  # it has its letters already


def open_regular(path: str | Path) -> io.BufferedReader:
    """Opens a regular file for reading bytes; links to one are followed.

    Args:
        path: the file.

    Raises:
        ValueError: if it is a folder, a pipe, a device or a socket.
        OSError: if it is missing or cannot be read.
    """
    # Looked at before it is opened, since opening some devices has effects, and once more
    # afterwards, since the name may lead elsewhere by then. Opening never waits for a writer.
    check_regular(path)
    flags = os.O_RDONLY
    for name in ("O_NONBLOCK", "O_CLOEXEC", "O_BINARY"):  # which not every system has
        flags |= getattr(os, name, 0)
    file = open(os.open(path, flags), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise ValueError(f"{path} is not a regular file")
    return file


def identity(path: str | Path) -> tuple[int, ...]:
    """Returns numbers that tell a file or folder from another one that takes its place.

    Raises:
        OSError: if it is missing.
    """
    found = os.stat(path)
    if stat.S_ISDIR(found.st_mode):
        # Its size and time change with whatever is put into it.
        return found.st_dev, found.st_ino
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def read_regular(path: str | Path, largest: int) -> bytes:
    """Returns the content of a regular file of at most `largest` bytes.

    Raises:
        ValueError: if it is no regular file, or larger.
        OSError: if it is missing or cannot be read.
    """
    with open_regular(path) as file:
        # Not `read(largest + 1)` alone, which takes that much memory for any file. Some files of
        # the system, which say that they are empty, are not.
        size = max(os.fstat(file.fileno()).st_size, 2**20)
        content = file.read(min(size, largest) + 1)
    if len(content) > largest:
        raise ValueError(f"{path} has more than {largest} bytes, which it never needs")
    return content


def check_regular(path: str | Path) -> None:
    """Checks that `path`, or what a link there leads to, is a regular file.

    Raises:
        ValueError: if it is a folder, a pipe, a device or a socket, or a link that leads nowhere.
        OSError: if it is missing.
    """
    if os.path.isdir(path):
        raise ValueError(f"{path} is a folder, not a file")

    # Such links are what a cache of a hub leaves if its folder of links alone is copied.
    if os.path.islink(path) and not os.path.exists(path):
        raise ValueError(
            f"{path} is a link to {os.readlink(path)}, which is not there; copy the files "
            "themselves (cp -rL), or download them again"
        )
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError(f"{path} is a pipe, a device or a socket, not a regular file")


def check_writable(path: str | Path) -> None:
    """Checks that `path` is a regular file or nothing yet, so that it may be written.

    Raises:
        ValueError: if it is a symbolic link, which could lead to a file of somebody else's, or a
            folder, a pipe, a device or a socket.
        OSError: if no file can have that name, as when it is too long.
    """
    check_no_link(path)
    try:
        mode = os.lstat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    if not stat.S_ISREG(mode):
        raise ValueError(f"{path} is there and is not a regular file; give another name")


def check_no_link(path: str | Path) -> None:
    """Raises ValueError if the last part of `path` is a symbolic link."""
    if os.path.islink(path):
        target = os.readlink(path)
        raise ValueError(
            f"{path} is a symbolic link to {target}, which is not followed; "
            "remove it, or give the name that it leads to"
        )


def check_content(folder: str | Path, is_ours: Callable[[str], bool]) -> None:
    """Checks that a folder holds nothing but files and folders of cmjax.

    Args:
        folder: the folder.
        is_ours: says of a name within the folder, such as "unet/config.json", whether cmjax wrote
            it.

    Raises:
        ValueError: naming what else is there; links and pipes are always something else.
        OSError: if it cannot be listed.
    """
    folders = [Path(folder)]
    while folders:
        for entry in sorted(os.scandir(folders.pop()), key=lambda entry: entry.name):
            name = Path(entry.path).relative_to(folder).as_posix()
            is_usual = entry.is_dir() or entry.is_file()
            if entry.is_symlink() or not is_usual or not is_ours(name):
                raise ValueError(
                    f"{folder} holds {name}, which cmjax did not write; "
                    "move it away, or give another name"
                )
            if entry.is_dir():
                folders.append(Path(entry.path))


def set_aside(path: Path) -> Path:
    """Moves a file or folder into the folder `.removed` next to it, and returns its new path.

    Nothing that is there already is overwritten. A link is moved, not what it leads to.

    Raises:
        ValueError: if `.removed` is a link.
        OSError: if it cannot be moved.
    """
    removed = path.parent / REMOVED
    check_no_link(removed)
    removed.mkdir(exist_ok=True)

    # Of the same name there may be one from an earlier time.
    target = removed / path.name
    count = 1
    while os.path.lexists(target):
        target = removed / f"{path.name}.{count}"
        count += 1
    path.rename(target)
    return target


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[IO[bytes]]:
    """Opens a temporary file that replaces `path` when the context ends without an error.

    A failure leaves `path` unchanged.

    Args:
        path: the file to write; its folder must exist.

    Yields:
        The temporary file, opened for writing bytes.

    Raises:
        ValueError: if `path` is a symbolic link, or anything else that is no regular file.
        OSError: if the file cannot be written. Its message names `path`.
    """
    check_writable(path)
    path = Path(os.path.realpath(path))
    temporary = temporary_name(path, path.suffix)
    try:
        with temporary.open("xb") as file:
            yield file

            # Flushed before the rename: the name must never refer to data that a crash of the
            # machine can lose. Some file systems report a full disk only here.
            file.flush()
            os.fsync(file.fileno())
        check_writable(path)
        temporary.replace(path)
        flush(path.parent)
    except OSError as error:
        raise naming(error, path, temporary) from None
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(
    path: str | Path, is_ours: Callable[[str], bool] = lambda name: False
) -> Iterator[Path]:
    """Creates a temporary folder that replaces `path` when the context ends without an error.

    A failure leaves `path` unchanged.

    Args:
        path: the folder to write; its parents are created. What it holds is removed.
        is_ours: says of a name within the folder, such as "unet/config.json", whether it may be
            removed; by default nothing may, and the folder must be new or empty.

    Yields:
        The path of the temporary folder.

    Raises:
        ValueError: if `path` is a symbolic link, or holds anything that may not be removed.
        OSError: if the folder cannot be written, or `path` is a file.
    """
    check_no_link(path)
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(
            errno.ENOTDIR, "is a file; give the name of a folder", str(path)
        )
    if path.exists():
        check_content(path, is_ours)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        temporary.mkdir()
        yield temporary

        # As for files: first the content, then the name.
        for file in [*temporary.rglob("*"), temporary]:
            flush(file)

        # A rename cannot replace a folder that is not empty, so the two are exchanged; the old one
        # is then removed under the temporary name. Writing may have taken long, so that the old
        # folder is looked at once more.
        check_no_link(path)
        if path.exists():
            check_content(path, is_ours)
            exchange(temporary, path)
        else:
            temporary.rename(path)
        flush(path.parent)
    except OSError as error:
        raise naming(error, path, temporary) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def temporary_name(path: Path, suffix: str = "") -> Path:
    """Returns a new name next to `path`, of the kind that `clear_unfinished` removes."""
    # In the same folder: a rename is atomic only within one file system.
    return path.with_name(f".cmjax-{secrets.token_hex(4)}{suffix}")


def clear_unfinished(folder: Path) -> None:
    """Removes the temporary files and folders that killed processes left in a folder."""
    for path in folder.glob(".cmjax-*"):
        # Whatever else has such a name, or is a link, is not ours.
        if path.is_symlink() or not re.fullmatch(TEMPORARY, path.name):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def give_usual_mode(path: Path) -> None:
    """Gives a file the permissions of any new file, 0666 without the bits of the umask.

    Some libraries write through a temporary file that only its owner may read.

    Raises:
        OSError: if the permissions cannot be changed.
    """
    # Those of a file that is made here: the umask itself cannot be read without changing it for
    # all threads.
    example = temporary_name(path)
    try:
        with example.open("xb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
    finally:
        example.unlink(missing_ok=True)
    path.chmod(mode)


def append(path: Path, line: str) -> None:
    """Appends a line to a file, in one write.

    If a full disk has cut the last line short, that line is ended first, so that only it is lost.

    Raises:
        ValueError: if the file is a symbolic link, or anything else that is no regular file.
        OSError: if the line cannot be written.
    """
    check_writable(path)

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
        raise naming(error, path) from None


def naming(error: OSError, path: Path, temporary: Path | None = None) -> OSError:
    """Returns an error of writing a path, which names that path.

    A failed write says what is wrong, but not where; others name the temporary file in its place,
    which nobody asked for.
    """
    unnamed = not error.filename or str(error.filename) == str(temporary)
    if error.errno and unnamed:
        error.filename = os.fspath(path)
    elif temporary is not None and str(temporary) in str(error):
        # Some libraries have the name in their message only.
        return OSError(str(error).replace(str(temporary), str(path)))
    return error

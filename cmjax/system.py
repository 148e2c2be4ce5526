"""Calls to the operating system that Python's own functions lack or that differ between systems."""

import ctypes
import errno
import functools
import importlib.util
import os
import sys
from pathlib import Path


def at_terminal() -> bool:
    """Returns whether messages, which go to stderr, are read at a terminal."""
    # A service, or Python without a console, may have no stderr at all.
    return sys.stderr is not None and sys.stderr.isatty()


def write_message(line: str) -> None:
    """Writes a line to stderr, if there is one, where Python's streams cannot be used."""
    # The number of a stderr that was closed may be that of any file by now.
    if sys.stderr is not None:
        os.write(2, f"{line}\n".encode())


def flush(path: Path) -> None:
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


def keep_memory() -> bool:
    """Keeps memory that the process frees, for its own later use.

    In every call a program of JAX asks the C library for its temporary arrays. Once they are freed,
    glibc returns large blocks to the system at once, so that every call gets them again, page by
    page, which can take a fifth of a training step (docs/performance.md). After this call, which
    holds for the whole process, it keeps them: memory in use stays at the most that was ever
    needed, and somewhat more where new blocks do not fit into the gaps between old ones.

    glibc keeps large blocks of the main thread only. Programs of JAX on one CPU therefore run in
    the thread that calls them: `jax_cpu_enable_async_dispatch` is set to False, whatever the
    environment says, and a call returns when its results are there. Of programs that are called
    from other threads, or run on several devices, blocks above 64 MB are returned as before, and
    smaller ones are not always kept.

    Call it from the main thread, before JAX starts (`jax.devices()` starts it too). Later on JAX
    does not read the option, and large blocks are returned as before. A second call changes
    nothing.

    Returns:
        Whether the C library took all settings; only glibc has them.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(libc, "mallopt"):
        return False

    # Names and numbers are those of malloc.h. No block is mapped on its own, and the end of the
    # heap is never returned (-1 as a size is the largest threshold). The heaps of other threads
    # are limited to 64 MB, and their larger blocks are mapped all the same. One heap for all
    # (M_ARENA_MAX) would keep those too. But the compiler leaves it full of small gaps, which are
    # searched, by one thread at a time, for each of the 10,000 buffers that a step may ask for.
    m_mmap_max = -4
    m_trim_threshold = -1
    settings = {m_mmap_max: 0, m_trim_threshold: -1}
    done = [libc.mallopt(name, value) for name, value in settings.items()]

    # JAX starts late, and not in every command.
    import jax

    jax.config.update("jax_cpu_enable_async_dispatch", False)
    return all(done)


def computes_on_cpu() -> bool:
    """Returns whether JAX will compute on CPUs, without starting it.

    It does if `JAX_PLATFORMS` says so, or if nothing for another device is installed.
    """
    platforms = os.environ.get("JAX_PLATFORMS")
    if platforms:
        return platforms == "cpu"
    plugins = ("jax_plugins", "libtpu")  # those of GPUs share a package
    return not any(importlib.util.find_spec(name) for name in plugins)


@functools.cache
def has_amx() -> bool:
    """Returns whether the CPU multiplies matrices of bfloat16 by a unit of its own, Intel's AMX.

    Only Linux says so. JAX has no question for it.
    """
    try:
        return "amx_bf16" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def exchange(one: Path, other: Path) -> None:
    """Exchanges the names of two folders, atomically on Linux and macOS.

    Python has no function for it, so the C library is called. With two renames instead, a process
    that is killed between them leaves nothing at the path of a model.
    """
    libc = ctypes.CDLL(None) if os.name == "posix" else None
    one_name = os.fsencode(one)
    other_name = os.fsencode(other)
    done = False
    if sys.platform == "linux" and hasattr(libc, "renameat2"):
        here = -100  # AT_FDCWD: relative paths begin in the current folder
        rename_exchange = 2
        done = libc.renameat2(here, one_name, here, other_name, rename_exchange) == 0
    elif sys.platform == "darwin" and hasattr(libc, "renamex_np"):
        rename_swap = 2
        done = libc.renamex_np(one_name, other_name, rename_swap) == 0

    # Other systems, and file systems without the operation. A kill between these lines leaves the
    # old folder under a temporary name.
    if not done:
        aside = one.with_name(f"{one.name}-old")
        other.rename(aside)
        one.rename(other)
        aside.rename(one)

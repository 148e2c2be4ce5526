"""What long runs have in common: a cache of compiled programs, and loading on the host."""

import contextlib
import os

import click

cache_option = click.option(
    "--compilation-cache",
    metavar="DIR",
    help="Folder that keeps compiled programs; 'none' keeps none.  "
    "[default: ~/.cache/cmjax/compiled]",
)


def keep_compiled(folder: str | None) -> None:
    """Keeps compiled programs on disk, so that a resumed run need not compile.

    Args:
        folder: the cache; "none" for no cache; None for JAX's own setting, or else a folder in the
            user's cache.
    """
    import jax

    if folder is None and not getattr(jax.config, "jax_compilation_cache_dir", None):
        folder = _folder_of_user()
    if folder is not None:
        jax.config.update("jax_compilation_cache_dir", None if folder == "none" else folder)

    # JAX skips programs that compile in less than a second, which a small model's do.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _folder_of_user() -> str:
    """The folder of compiled programs in the user's cache; "none" if none can be made there."""
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = os.path.join(caches, "cmjax", "compiled")

    # A container's user may have no home, or one that is read-only: JAX would warn of every
    # program, and a "~" that is not known would become a folder of that name.
    if not os.path.isabs(folder):
        return "none"
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError:
        return "none"
    return folder if os.access(folder, os.W_OK) else "none"


def on_host() -> contextlib.AbstractContextManager:
    """Returns the context in which JAX puts arrays into the host's memory, if it can."""
    import jax

    # JAX puts arrays on the default device; for the time of the loading that is the CPU.
    with contextlib.suppress(RuntimeError):  # there may be no backend for the CPU
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    return contextlib.nullcontext()

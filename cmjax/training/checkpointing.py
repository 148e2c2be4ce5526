"""Checkpoints of a training run by Orbax: written in the background, whole or not at all.

Each holds a digest of its arrays, so that a damaged one is never taken for another state.
"""

import contextlib
import dataclasses
import gc
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from cmjax.configs import positive_int, shown
from cmjax.files import as_path, check_no_link
from cmjax.training.digests import DIGEST_SIZE, digest_of, leaves_by_path
from cmjax.training.train_step import TrainState, check_not_donated

STATE = "default"  # Orbax's name of the folder of the arrays in a checkpoint's
DIGEST = "digest"  # name of the digest among the arrays of a checkpoint
CLEANING = (
    "_target_setting_result"  # in the names of Orbax's threads that clean up, or write
)
LONGEST_CLEANING = 10.0  # seconds that are waited for each of them
SETTLING = 0.2  # seconds for the threads that read a checkpoint to end after an error


class Checkpoints:
    """The checkpoints of a run; a context manager, whose end waits until all are on disk."""

    def __init__(self, folder: str | Path, keep: int = 2):
        """Opens the checkpoints of a run, which may have none yet.

        Args:
            folder: folder of the run; the checkpoints are in `folder / "checkpoints"`.
            keep: how many checkpoints to keep; older ones are deleted.

        Raises:
            ValueError: if that folder is a symbolic link, or its path is not UTF-8; for a `keep`
                below 1.
        """
        self._silence = contextlib.ExitStack()
        folder = as_path("folder", folder)
        keep = positive_int("keep", keep, most=None)

        # Orbax would raise an error at the first checkpoint.
        try:
            str(Path(folder).absolute()).encode()
        except UnicodeEncodeError:
            raise ValueError(
                f"the path {shown(str(folder))} has letters that are not UTF-8, in which "
                "checkpoints cannot be written; choose another"
            ) from None

        # Orbax takes absolute paths only, and leaves unfinished folders when a process dies.
        self.folder = Path(folder).absolute() / "checkpoints"
        check_no_link(self.folder)  # older ones are deleted, wherever it leads
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, cleanup_tmp_directories=True
        )
        # With an explicit handler, shapes can be read before the arrays.
        handler = ocp.StandardCheckpointHandler()
        with _without_orbax_messages():
            self._manager = ocp.CheckpointManager(
                self.folder, options=options, item_handlers=handler
            )

    def __enter__(self) -> Self:
        """Returns itself."""
        # Threads of Orbax log what fails, at any time from here on.
        self._silence.enter_context(_without_orbax_messages())
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        """Waits until the last checkpoint is on disk.

        Raises:
            OSError: if it could not be written, unless there is an error already.
        """
        failure = None
        with self._silence:
            # Orbax removes unfinished folders in a thread, which fails if the manager is closed
            # first. Its own `join` would raise what the thread raised, or that it takes long.
            for thread in threading.enumerate():
                if CLEANING in thread.name:
                    threading.Thread.join(thread, LONGEST_CLEANING)
            try:
                self._manager.close()
            except Exception as error:
                failure = self._write_error(error)
            if failure is not None or kind is not None:
                _settle()
        if failure is not None and kind is None:
            raise failure

    def save(self, state: TrainState) -> None:
        """Writes a state in the background; older ones are deleted only once it is complete.

        Raises:
            ValueError: for another value, or a state that was given to an earlier step.
            OSError: if this state or the one before could not be written; older ones are intact.
        """
        _check_state("state", state)
        check_not_donated(state)
        try:
            # A copy: the training step donates the state, whose buffers are then reused.
            fields = jax.tree.map(jnp.copy, _fields(state))
            fields[DIGEST] = _digest(fields)
            with _without_orbax_messages():
                self._manager.save(int(state.step), args=ocp.args.StandardSave(fields))
        except (OSError, ValueError) as error:
            raise self._write_error(error) from None

    def wait(self) -> None:
        """Waits until all states are on disk.

        Raises:
            OSError: if a state could not be written.
        """
        # Orbax keeps errors of its background thread until they are asked for.
        try:
            with _without_orbax_messages():
                self._manager.wait_until_finished()
                self._manager.check_for_errors()
        except (OSError, ValueError) as error:
            raise self._write_error(error) from None

    def latest(self) -> int | None:
        """Returns the step of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def restore(self, like: TrainState) -> TrainState:
        """Returns the newest state, or `like` if there is none.

        Args:
            like: a state with the structure, shapes, dtypes and devices of the one to restore.

        Raises:
            ValueError: if the newest checkpoint is damaged, or of another network, optimizer, loss
                or dtype. The message names it, and says which one the run continues from without
                it.
        """
        _check_state("like", like)
        step = self.latest()
        if step is None:
            return like
        wanted = jax.tree.map(ocp.utils.to_shape_dtype_struct, _fields(like))
        wanted[DIGEST] = np.zeros(DIGEST_SIZE, np.uint8)

        if not (self.folder / str(step) / STATE).is_dir():
            raise self._damaged(step, "it holds no training state")

        # Shapes and dtypes are compared before any array is read, so that the error can name the
        # array that differs and say what to do. Orbax would convert dtypes.
        found, why = _attempt(lambda: _types_by_path(self._manager.item_metadata(step)))
        if why is not None:
            raise self._damaged(step, why)
        self._check_types(step, found, _types_by_path(wanted))
        args = ocp.args.StandardRestore(wanted)
        restored, why = _attempt(lambda: dict(self._manager.restore(step, args=args)))
        if why is not None:
            raise self._damaged(step, why)

        # Files may be readable and yet hold other numbers, or those of another step.
        digest = np.asarray(restored.pop(DIGEST))
        if not np.array_equal(digest, _digest(restored)):
            raise self._damaged(step, "its arrays do not have their digest")
        if int(restored["step"]) != step:
            raise self._damaged(step, f"it holds step {int(restored['step'])}")
        fields = {
            name: jax.tree.map(_as_key_like, value, getattr(like, name))
            for name, value in restored.items()
        }
        return dataclasses.replace(like, **fields)

    def _check_types(self, step, found, wanted):
        """Raises ValueError, naming the first array whose type differs or that is missing."""
        for name in sorted(found.keys() | wanted.keys()):
            if found.get(name) == wanted.get(name):
                continue
            has = _type_or_missing(found, name)
            needs = _type_or_missing(wanted, name)
            raise ValueError(
                f"the checkpoint {self.folder / str(step)} is of another run, or damaged: {name} "
                f"{has} there, and {needs} in this one; use the configuration it was made with, or "
                f"remove it, and the run continues from {self._before(step)}"
            )

    def _damaged(self, step, why):
        """Returns the error for a checkpoint that cannot be used, with the way out."""
        return ValueError(
            f"the checkpoint {self.folder / str(step)} is damaged or no checkpoint: {why}; "
            f"remove it, and the run continues from {self._before(step)}"
        )

    def _before(self, step):
        """Returns in words what the run continues from without the checkpoint of a step."""
        earlier = [known for known in self._manager.all_steps() if known < step]
        return f"step {max(earlier)}" if earlier else "its beginning"

    def _write_error(self, error):
        latest = self.latest()
        last = (
            "there is none yet" if latest is None else f"the last one is of step {latest}"
        )
        return OSError(
            f"cannot write a checkpoint in {self.folder}: {_first_line(error)}; {last}"
        )


def _check_state(name, state):
    """Raises ValueError unless an argument is a state of training."""
    if not isinstance(state, TrainState):
        raise ValueError(
            f"{name} must be a TrainState, as init and each step return it, got "
            f"{type(state).__name__}"
        )


def _attempt(read: Callable[[], Any]) -> tuple[Any, str | None]:
    """Returns (what `read` returns, None), or (None, why it failed)."""
    with _without_orbax_messages():
        # Orbax and the libraries below it raise errors of any kind where a file is damaged.
        try:
            return read(), None
        except Exception as error:
            why = _first_line(error)

        _settle()
    return None, why


def _settle() -> None:
    """Waits until what Orbax left of a failure has logged its errors, which are not shown."""
    # Each array has a task that logs its error when it is collected, which is now that the error
    # and its traceback are gone; the threads that still read or write have a moment to end.
    gc.collect()
    time.sleep(SETTLING)
    gc.collect()


@contextlib.contextmanager
def _without_orbax_messages() -> Iterator[None]:
    """Keeps pages of log and of ignored exceptions from the screen, where an error says it all."""
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    hook = sys.unraisablehook

    # Of absl's records, only Orbax's are dropped. Records of asyncio and errors of finalizers do
    # not say which library they are from: for as long as this lasts, all of them are.
    def keep(record):
        return "orbax" not in record.pathname and record.name != "asyncio"

    for logger in loggers:
        logger.addFilter(keep)
    sys.unraisablehook = lambda _: None
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(keep)
        sys.unraisablehook = hook


def _first_line(error: BaseException) -> str:
    """Returns the first line of an error, at most 300 characters of it."""
    # The lines after it, and the specification at its end, are for TensorStore's authors.
    said = str(error)
    for specification in (" [tensorstore_spec=", " See full TensorStore details:"):
        said = said.partition(specification)[0]
    lines = said.splitlines()
    return f"{lines[0]:.300}" if lines else type(error).__name__


def _digest(fields: Mapping[str, Any]) -> np.ndarray:
    """Returns the digest of a state's fields as an array, u8[DIGEST_SIZE]."""
    return np.frombuffer(digest_of(fields), np.uint8)


def _fields(state: TrainState) -> dict[str, Any]:
    """Returns the fields of a state that are not None, by name."""
    # A plain dict, so that what is on disk does not depend on the class, and has no empty fields.
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return {
        name: jax.tree.map(_without_key_type, value)
        for name, value in fields.items()
        if value is not None
    }


def _is_key(leaf: Any) -> bool:
    """Whether an array holds typed keys, as the state of an optimizer may."""
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _without_key_type(leaf: Any) -> Any:
    """Returns the raw data of typed keys, which files can hold, and other arrays as they are."""
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _as_key_like(leaf: Any, like: Any) -> Any:
    """Returns an array as typed keys where `like` is one; undoes `_without_key_type`."""
    if not _is_key(like):
        return leaf
    return jax.random.wrap_key_data(leaf, impl=jax.random.key_impl(like))


def _types_by_path(tree: Any) -> dict[str, str]:
    """Returns dtypes and shapes, "float32(3, 4)", by the path, such as "params/conv/kernel"."""
    types = {}
    for name, leaf in leaves_by_path(tree).items():
        types[name] = f"{jnp.dtype(leaf.dtype).name}{tuple(leaf.shape)}"
    return types


def _type_or_missing(types, name):
    """Returns what an error says of an array, such as "is float32(3,)"."""
    return f"is {types[name]}" if name in types else "is missing"

"""Checkpoints of a training run by Orbax: written in the background, whole or not at all."""

import dataclasses
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from cmjax.training.trainer import TrainState


class Checkpoints:
    """The checkpoints of a run; a context manager, whose end waits until all are on disk."""

    def __init__(self, folder: str | Path, keep: int = 2):
        """Opens the checkpoints of a run, which may have none yet.

        Args:
            folder: folder of the run; the checkpoints are in `folder / "checkpoints"`.
            keep: how many checkpoints to keep; older ones are deleted.
        """
        # Orbax takes absolute paths only, and leaves unfinished folders when a process dies.
        self.folder = Path(folder).absolute() / "checkpoints"
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, cleanup_tmp_directories=True
        )
        # With an explicit handler, shapes can be read before the arrays.
        handler = ocp.StandardCheckpointHandler()
        self._manager = ocp.CheckpointManager(
            self.folder, options=options, item_handlers=handler
        )

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Waits until the last checkpoint is on disk."""
        self._manager.close()

    def save(self, state: TrainState) -> None:
        """Writes a state in the background; older ones are deleted only once it is complete.

        Raises:
            OSError: if this state or the one before could not be written; older ones are intact.
        """
        try:
            # A copy: the training step donates the state, whose buffers are then reused.
            fields = jax.tree.map(jnp.copy, _fields(state))
            self._manager.save(int(state.step), args=ocp.args.StandardSave(fields))
        except (OSError, ValueError) as error:
            raise self._write_error(error) from error

    def wait(self) -> None:
        """Waits until all states are on disk.

        Raises:
            OSError: if a state could not be written.
        """
        # Orbax keeps errors of its background thread until they are asked for.
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except (OSError, ValueError) as error:
            raise self._write_error(error) from error

    def latest(self) -> int | None:
        """Returns the step of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def restore(self, like: TrainState) -> TrainState:
        """Returns the newest state, or `like` if there is none.

        Args:
            like: a state with the structure, shapes and devices of the one to restore.

        Raises:
            ValueError: if the checkpoint is of another network, optimizer or loss.
        """
        step = self.latest()
        if step is None:
            return like

        # Shapes are compared before any array is read, so that the error can name the array that
        # differs and say what to do.
        wanted = jax.tree.map(ocp.utils.to_shape_dtype_struct, _fields(like))
        found_shapes = _shapes_by_path(self._manager.item_metadata(step))
        _check_shapes(self.folder / str(step), found_shapes, _shapes_by_path(wanted))
        restored = self._manager.restore(step, args=ocp.args.StandardRestore(wanted))
        return dataclasses.replace(like, **restored)

    def _write_error(self, error):
        return OSError(
            f"cannot write a checkpoint in {self.folder}: {error}; "
            f"the last one is of step {self.latest()}"
        )


def _fields(state: TrainState) -> dict[str, Any]:
    """Returns the fields of a state that are not None, by name."""
    # A plain dict, so that what is on disk does not depend on the class, and has no empty fields.
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return {name: value for name, value in fields.items() if value is not None}


def _shapes_by_path(tree: Any) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of arrays by their path, such as "params/conv/kernel"."""
    # Orbax gives tuples and named tuples back as other containers, whose paths have other types of
    # keys: only what the keys are called is compared.
    shapes = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        names = (getattr(k, "key", getattr(k, "name", getattr(k, "idx", k))) for k in path)
        shapes["/".join(map(str, names))] = tuple(leaf.shape)
    return shapes


def _check_shapes(folder, found, wanted):
    """Raises ValueError, naming the first array whose shape differs or that is missing."""
    for name in sorted(found.keys() | wanted.keys()):
        if found.get(name) == wanted.get(name):
            continue
        has = _shape_or_missing(found, name)
        needs = _shape_or_missing(wanted, name)
        raise ValueError(
            f"the checkpoint {folder} is of another run: {name} {has} there, and {needs} in this "
            "one; use the configuration it was made with, or another folder"
        )


def _shape_or_missing(shapes, name):
    """Returns what an error says of an array, such as "has shape (3,)"."""
    return f"has shape {shapes[name]}" if name in shapes else "is missing"

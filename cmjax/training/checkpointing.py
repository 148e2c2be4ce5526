"""Checkpoints of a run, by Orbax: written in the background, whole or not at all."""

import dataclasses
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from cmjax.training.trainer import TrainState


class Checkpoints:
    """The checkpoints of a run; a context manager, which waits until the last one is written."""

    def __init__(self, folder: str | Path, keep: int = 2):
        """Opens the checkpoints in a folder of a run.

        Args:
            folder: of the run; the checkpoints are in `folder / "checkpoints"`.
            keep: how many to keep, the newest.
        """
        self.folder = Path(folder).absolute() / "checkpoints"
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
        # With an explicit handler, shapes can be read before the arrays.
        handler = ocp.StandardCheckpointHandler()
        self._manager = ocp.CheckpointManager(self.folder, options=options, item_handlers=handler)

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Waits until the last checkpoint is on disk."""
        self._manager.close()

    def save(self, state: TrainState) -> None:
        """Writes the state in the background; an older one is deleted only after it is complete.

        Raises:
            OSError: if it, or the one before, could not be written; the older ones are intact.
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
            OSError: if one could not be written.
        """
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except (OSError, ValueError) as error:
            raise self._write_error(error) from error

    def latest(self) -> int | None:
        """Returns the step of the newest checkpoint, or None."""
        return self._manager.latest_step()

    def restore(self, like: TrainState) -> TrainState:
        """Returns the newest state, or `like` if there is none.

        Args:
            like: a state with the structure, shapes and devices of the wanted one.

        Raises:
            ValueError: if the checkpoint is of another network, optimizer or loss.
        """
        step = self.latest()
        if step is None:
            return like
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
    """The fields of a state that hold something, by name."""
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return {name: value for name, value in fields.items() if value is not None}


def _shapes_by_path(tree: Any) -> dict[str, tuple[int, ...]]:
    """Shapes by path. Orbax turns tuples and named tuples into others, so names alone count."""
    shapes = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        names = (getattr(k, "key", getattr(k, "name", getattr(k, "idx", k))) for k in path)
        shapes["/".join(map(str, names))] = tuple(leaf.shape)
    return shapes


def _check_shapes(folder, found, wanted):
    """Raises ValueError, naming the first array that differs."""
    for name in sorted(found.keys() | wanted.keys()):
        if found.get(name) == wanted.get(name):
            continue
        has, needs = (
            f"has shape {shapes[name]}" if name in shapes else "is missing"
            for shapes in (found, wanted)
        )
        raise ValueError(
            f"the checkpoint {folder} is of another run: {name} {has} there, and {needs} in this "
            "one; use the configuration it was made with, or another folder"
        )

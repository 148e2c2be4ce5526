"""Checkpoints of a run, by Orbax: written in the background, whole or not at all, the newest few kept."""

import dataclasses
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from cmjax.training.trainer import TrainState


class Checkpoints:
    """The checkpoints under a folder; a context manager, which waits for the last one to be written."""

    def __init__(self, folder: str | Path, keep: int = 2):
        """Opens `folder / "checkpoints"`, where the newest `keep` are kept."""
        self.folder = Path(folder).absolute() / "checkpoints"
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
        handler = (
            ocp.StandardCheckpointHandler()
        )  # without it, shapes cannot be read before the arrays
        self._manager = ocp.CheckpointManager(self.folder, options=options, item_handlers=handler)

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Waits until the last checkpoint is on disk."""
        self._manager.close()

    def save(self, state: TrainState) -> None:
        """Writes the state in the background; an earlier one is only deleted once this one is complete.

        Raises:
            OSError: if it, or the one before, could not be written; the older ones are intact.
        """
        try:
            # The training step donates the state: what is being written must not be reused meanwhile.
            fields = jax.tree.map(jnp.copy, _fields(state))
            self._manager.save(int(state.step), args=ocp.args.StandardSave(fields))
        except (OSError, ValueError) as error:
            raise self._failed(error) from error

    def wait(self) -> None:
        """Waits until all states are on disk.

        Raises:
            OSError: if one could not be written.
        """
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except (OSError, ValueError) as error:
            raise self._failed(error) from error

    def latest(self) -> int | None:
        """Returns the step of the newest checkpoint, or None."""
        return self._manager.latest_step()

    def restore(self, like: TrainState) -> TrainState:
        """Returns the newest state, or `like` if there is none; `like` gives structure, shapes and devices.

        Raises:
            ValueError: if the checkpoint is of another network, optimizer or loss.
        """
        step = self.latest()
        if step is None:
            return like
        wanted = jax.tree.map(ocp.utils.to_shape_dtype_struct, _fields(like))
        _check_same(
            self.folder / str(step), _shapes(self._manager.item_metadata(step)), _shapes(wanted)
        )
        return dataclasses.replace(
            like, **self._manager.restore(step, args=ocp.args.StandardRestore(wanted))
        )

    def _failed(self, error):
        return OSError(
            f"cannot write a checkpoint in {self.folder}: {error}; the last one is of step {self.latest()}"
        )


def _fields(state: TrainState) -> dict[str, Any]:
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return {name: value for name, value in fields.items() if value is not None}


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Shapes by path; Orbax writes tuples and named tuples in its own way, so names alone count."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    names = lambda path: "/".join(
        str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path
    )  # noqa: E731
    return {names(path): tuple(leaf.shape) for path, leaf in leaves}


def _check_same(folder, found, wanted):
    for name in sorted(found.keys() | wanted.keys()):
        if found.get(name) != wanted.get(name):
            has, needs = (
                f"has shape {d[name]}" if name in d else "is missing" for d in (found, wanted)
            )
            raise ValueError(
                f"the checkpoint {folder} is of another run: {name} {has} there, and {needs} in this one; "
                "use the configuration it was made with, or another folder"
            )

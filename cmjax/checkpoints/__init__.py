"""Models on disk: one module for each kind of file."""

from cmjax.checkpoints.checkpoint import Checkpoint
from cmjax.checkpoints.loading import BUNDLED, load, open_checkpoint, save

__all__ = ["BUNDLED", "Checkpoint", "load", "open_checkpoint", "save"]

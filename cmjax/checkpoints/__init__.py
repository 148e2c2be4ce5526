"""Models on disk: one module for each kind of file."""

from cmjax.checkpoints.autoencoders import (
    load_autoencoder,
    open_autoencoder,
    save_autoencoder,
)
from cmjax.checkpoints.checkpoint import Checkpoint, StoredNetwork
from cmjax.checkpoints.loading import BUNDLED, load, open_checkpoint
from cmjax.checkpoints.saving import save

__all__ = [
    "BUNDLED",
    "Checkpoint",
    "StoredNetwork",
    "load",
    "load_autoencoder",
    "open_autoencoder",
    "open_checkpoint",
    "save",
    "save_autoencoder",
]

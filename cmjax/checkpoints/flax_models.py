"""Models in a single file of Flax, which names no network: its tensors tell which one it is."""

from pathlib import Path

from cmjax.checkpoints import ncsnpp
from cmjax.checkpoints.checkpoint import Checkpoint
from cmjax.checkpoints.flax_states import open_state
from cmjax.checkpoints.torch_models import Config, of_kind
from cmjax.models import NCSNppConfig


def open_file(path: Path, config: Config = None) -> Checkpoint:
    """Opens a training state, or parameters alone, of OpenAI's models of CIFAR-10.

    Args:
        path: the file.
        config: config of its network, or the name of a preset; None infers it from the tensors.

    Raises:
        ValueError: if the file is damaged or of another network.
    """
    state = open_state(path)
    if ncsnpp.FIRST in state.tensors:
        return ncsnpp.from_state(path, state, of_kind(NCSNppConfig, path, config))
    raise ValueError(
        f"{path} is not a checkpoint of a network that cmjax reads: it has no parameter "
        f"{ncsnpp.FIRST} (OpenAI's models of CIFAR-10)"
    )

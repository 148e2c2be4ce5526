"""Training states of Flax: which of their parameters to use, and their names in PyTorch's style.

The JAX code of MeanFlow, improved MeanFlow and Pixel MeanFlow has the modules of its PyTorch
branches under the names that Flax gives them, so that one reader serves the files of both.
"""

import re
from collections.abc import Mapping

from cmjax.checkpoints.tensors import StoredTensor, by_name
from cmjax.printing import one_line

# Parts of a training state: moving averages of the parameters first, since they are what is
# sampled.
AVERAGES = ("ema_params", "params_ema", "ema")
PARAMETERS = "params"
STATE = "train_state."

SEQUENCE = re.compile(r"(?<=\.)layers_([0-9]+)(?=\.)")  # of flax.linen.Sequential
LIST = re.compile(r"(?<=\.)(shared_blocks|u_heads|v_heads)_([0-9]+)(?=\.)")


def used_parameters(
    tensors: Mapping[str, StoredTensor],
) -> tuple[dict[str, StoredTensor], str]:
    """Returns the parameters to sample with, by their own names, and what is said of the others.

    These are a moving average if there is one. Tensors that are no training state are all
    parameters.
    """
    # Pickles of training states may hold other things besides the state.
    state = {name: x for name, x in tensors.items() if name.startswith(STATE)}
    if state:
        tensors = {name.removeprefix(STATE): tensor for name, tensor in state.items()}
    parts = {name.partition(".")[0] for name in tensors}
    chosen = next((part for part in (*AVERAGES, PARAMETERS) if part in parts), None)
    if chosen is None:
        return dict(tensors), ""

    # A state dict alone may be under "params" too.
    prefix = f"{chosen}."
    used = {}
    for name, tensor in tensors.items():
        if name.startswith(prefix):
            used[name.removeprefix(prefix)] = tensor

    note = "the parameters are used"
    if chosen in AVERAGES:
        note = f"{chosen}, the moving average of the parameters, is used"
    others = sorted(parts - {chosen})
    if others:
        ignored = one_line(", ".join(others), 200)
        count = len(tensors) - len(used)
        note = f"{note}; ignored: {ignored} ({count} arrays)"
    return used, note


def as_torch(where: object, tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Returns parameters of Flax under the names and in the shapes of the same PyTorch modules.

    For example, "net.blocks.layers_3.mlp.fc1.kernel" `[in, out]` becomes
    "net.blocks.3.mlp.fc1.weight" `[out, in]`.

    Args:
        where: the file, for the error.
        tensors: the parameters.

    Raises:
        ValueError: if two become the same.
    """
    return by_name(where, (_renamed(name, tensor) for name, tensor in tensors.items()))


def _renamed(name: str, tensor: StoredTensor) -> tuple[str, StoredTensor]:
    """Returns name and tensor as PyTorch has them."""
    name = SEQUENCE.sub(r"\1", name)
    name = LIST.sub(r"\1.\2", name)
    path, _, leaf = name.rpartition(".")
    if leaf not in ("kernel", "embedding"):
        return name, tensor

    # The table of Pixel MeanFlow has an axis of length 1 in front, and no module of its own.
    if leaf == "embedding" and len(tensor.shape) == 3 and tensor.shape[0] == 1:
        return f"{path}._flax_embedding.weight", tensor.reshaped(tensor.shape[1:])

    # Dense layers are [in, out] here, convolutions [height, width, in, out].
    if leaf == "kernel" and len(tensor.shape) == 2:
        tensor = tensor.transpose((1, 0))
    elif leaf == "kernel" and len(tensor.shape) == 4:
        tensor = tensor.transpose((3, 2, 0, 1))
    return f"{path}.weight", tensor

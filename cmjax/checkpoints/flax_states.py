"""Training states in Flax's `.msgpack` files: the parameters to sample with, of all that is stored.

A state holds the parameters several times: as they are trained, averaged over the training, and
once or twice in the optimizer. Samples are made with the averaged ones.
"""

import dataclasses
from pathlib import Path

from cmjax.checkpoints.flax_msgpack import read_contents
from cmjax.checkpoints.tensors import StoredTensor

# Names of a state's parameters, the ones to take first.
AVERAGED = ("params_ema", "ema_params", "ema")
TRAINED = ("params",)


@dataclasses.dataclass(frozen=True)
class FlaxState:
    """What is taken of a training state, and what is not.

    Attributes:
        tensors: the parameters by their dotted names, unread.
        note: which parameters these are and what is ignored, or "" if the file holds no more.
        names: the dotted names of everything else.
    """

    tensors: dict[str, StoredTensor]
    note: str
    names: frozenset[str]


def open_state(path: Path) -> FlaxState:
    """Opens a file of a training state, or of parameters alone.

    Raises:
        ValueError: if it is damaged, or holds something among the parameters that is no array.
    """
    contents = read_contents(path)
    everything = [*contents.arrays, *contents.others]
    parts = list(dict.fromkeys(name.partition(".")[0] for name in everything))
    part = next((part for part in (*AVERAGED, *TRAINED) if part in parts), "")
    prefix = part and f"{part}."

    # Among the parameters themselves there is nothing but arrays.
    for name, problem in contents.others.items():
        if name.startswith(prefix):
            raise ValueError(f"{path} is not a readable Flax file: {problem}")
    tensors = {
        name.removeprefix(prefix): tensor
        for name, tensor in contents.arrays.items()
        if name.startswith(prefix)
    }
    others = frozenset(name for name in everything if not name.startswith(prefix))
    return FlaxState(tensors, _note(part, parts), others)


def _note(part: str, parts: list[str]) -> str:
    """Returns what is said of a state: the part that is taken, and those that are not."""
    if not part:
        return ""
    kind = "averaged over" if part in AVERAGED else "of the end of"
    note = f"the parameters are {part}, those {kind} the training"
    ignored = ", ".join(other for other in parts if other != part)
    return f"{note}; ignored: {ignored}" if ignored else note

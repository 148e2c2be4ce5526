"""Training states of Flax on disk, as the authors' code writes them."""

import flax.serialization
import numpy as np

from tests.support import flax_networks


def state(family, network="toy", parts=("ema_params", "params")):
    """A training state of random weights; only those of the first part are as they are drawn."""
    flat = flax_networks.drawn(flax_networks.shapes(family, network))
    params = flax_networks.nested(flat)
    others = flax_networks.nested({name: value + 1 for name, value in flat.items()})
    trees = {part: params if part == parts[0] else others for part in parts}
    return {"step": np.int32(3), "opt_state": [None, {"count": np.int32(3)}], **trees}


def write_msgpack(path, tree):
    """A file of Flax."""
    path.write_bytes(flax.serialization.msgpack_serialize(tree))
    return path


def write_orbax_0_4(path, tree):
    """A folder of Orbax 0.4: one file, and the names."""
    folder = path / "checkpoint_3"
    folder.mkdir(parents=True)
    (folder / "_METADATA").write_text("{}")
    write_msgpack(folder / "checkpoint", tree)
    return path


def write_orbax(path, tree):
    """A folder of today's Orbax."""
    import orbax.checkpoint

    with orbax.checkpoint.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(path / "checkpoint_3", tree)
    return path

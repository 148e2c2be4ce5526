"""Training states of Flax on disk, as the authors' code writes them."""

import pickle

import flax.serialization
import numpy as np
import optax

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


def write_orbax(path, tree, **options):
    """A folder of today's Orbax; with `use_zarr3=True` of arrays in zarr 3."""
    import orbax.checkpoint

    with orbax.checkpoint.PyTreeCheckpointer(**options) as checkpointer:
        checkpointer.save(path / "checkpoint_3", tree)
    return path


def write_pickle(path, family, network="toy", parts=("params_ema", "params"), protocol=4):
    """A pickle, as the code of shortcut models writes it."""
    flat = flax_networks.drawn(flax_networks.shapes(family, network))
    params = flax_networks.nested(flat)
    others = flax_networks.nested({name: value + 1 for name, value in flat.items()})
    trees = {part: params if part == parts[0] else others for part in parts}
    few = {"w": np.ones(2, np.float32)}
    adam = optax.ScaleByAdamState(count=np.array(3, np.int32), mu=few, nu=few)
    state = {**trees, "opt_state": ((adam, optax.EmptyState()),), "step": np.array(3)}
    content = {"train_state": state, "_timestamp": 1700000000.5}
    path.write_bytes(pickle.dumps(content, protocol))
    return path

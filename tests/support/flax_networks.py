"""Networks of the authors' JAX code with random weights, which need none of that code.

NumPy alone, so that the scripts in `tests/golden` can run with the old JAX of those codes.
"""

import json
import re
import zlib
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parents[1] / "golden"
NAMES = GOLDEN / "flax_networks.json"

# The blocks of a network, all of which are alike.
BLOCK = re.compile(r"(blocks\.layers_|shared_blocks_|u_heads_|v_heads_|DiTBlock_)(\d+)\.")

# Arguments of the authors' networks.
TOYS = {
    "mean_flow": {
        "input_size": 12,
        "patch_size": 4,
        "in_channels": 4,
        "hidden_size": 32,
        "depth": 2,
        "num_heads": 2,
        "num_classes": 5,
    },
    "improved_mean_flow": {
        "input_size": 6,
        "patch_size": 2,
        "in_channels": 4,
        "hidden_size": 32,
        "depth": 3,
        "num_heads": 2,
        "aux_head_depth": 1,
        "num_classes": 5,
    },
    "shortcut": {
        "patch_size": 2,
        "hidden_size": 32,
        "depth": 2,
        "num_heads": 2,
        "mlp_ratio": 4,
        "out_channels": 4,
        "class_dropout_prob": 0.1,
        "num_classes": 5,
    },
}


def draw(name, shape):
    """The values of a parameter, which its name and shape decide.

    `RandomState` never changes its stream. Every kind of parameter has the size that keeps
    activations near 1, so that no part of the network is lost in another.
    """
    values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if "norm" in name:
        return (1 + 0.3 * values).astype(np.float32)
    if name.endswith("_scale"):  # the gates
        return (0.5 + 0.3 * values).astype(np.float32)
    if name.endswith("bias"):
        return (0.3 * values).astype(np.float32)
    if name.endswith(("_tokens", "pos_embed", "embedding")):
        return (0.5 * values).astype(np.float32)
    return (values / np.sqrt(np.prod(shape[:-1]))).astype(np.float32)


def drawn(shapes):
    """Parameters by dotted name, of these shapes."""
    return {name: draw(name, shape) for name, shape in shapes.items()}


def nested(flat):
    """A tree of the values of dotted names."""
    tree = {}
    for name, value in flat.items():
        *path, leaf = name.split(".")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[leaf] = value
    return tree


def packed(shapes):
    """Shapes as the names file has them: of blocks the first of each kind, and their number."""
    counts, kept = {}, {}
    for name, shape in shapes.items():
        block = BLOCK.search(name)
        if block:
            counts[block[1]] = max(counts.get(block[1], 0), int(block[2]) + 1)
            name = BLOCK.sub(r"\g<1>0.", name)
        assert kept.setdefault(name, list(shape)) == list(shape), name
    return {"blocks": counts, "shapes": kept}


def shapes(family, network):
    """The shape of every parameter of a network by its dotted name."""
    stored = json.loads(NAMES.read_text())[family][network]
    found = {}
    for name, shape in stored["shapes"].items():
        block = BLOCK.search(name)
        for i in range(stored["blocks"][block[1]] if block else 1):
            found[BLOCK.sub(rf"\g<1>{i}.", name)] = tuple(shape)
    return found

"""Files of Pixel MeanFlow's reference with random weights, which need no PyTorch."""

import json
import re
import zlib
from pathlib import Path

import numpy as np

from tests.support import torch_zip

GOLDEN = Path(__file__).parents[1] / "golden"
TOY = {  # arguments of the reference's network
    "input_size": 12,
    "patch_size": 4,
    "hidden_size": 32,
    "depth": 3,
    "num_heads": 2,
    "aux_head_depth": 1,
    "num_classes": 5,
}


def draw(name, shape):
    """The values of a tensor of the reference, which its name and shape decide.

    `RandomState` never changes its stream. Every kind of tensor has the size that keeps
    activations near 1, so that no part of the network is lost in another.
    """
    values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if "norm" in name:
        return (1 + 0.3 * values).astype(np.float32)
    if name.endswith("_scale"):  # the gates
        return (0.5 + 0.3 * values).astype(np.float32)
    if name.endswith("bias") or name.endswith("pos_embed"):
        return (0.3 * values).astype(np.float32)
    if name.endswith("_tokens") or "embedding_table" in name:
        return (0.5 * values).astype(np.float32)
    return (values / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def shapes(network):
    """The shape of every tensor of one of the reference's networks, by name.

    `pixel_mean_flow_names.json` has the tensors of the first block only: all are alike.
    """
    stored = json.loads((GOLDEN / "pixel_mean_flow_names.json").read_text())[network]
    found = {}
    for name, shape in stored["tensors"].items():
        part = re.match(r"net\.(\w+)\.0\.", name)
        count = stored["blocks"].get(part[1], 1) if part else 1
        for i in range(count):
            found[name.replace(".0.", f".{i}.", 1) if count > 1 else name] = tuple(shape)
    return found


def frequencies(head_dim, side):
    """The rotary frequencies that the files hold, complex64[side * side, head_dim / 2]."""
    half = head_dim // 2
    rates = 1 / 10000 ** (np.arange(0, half, 2) / half)
    rows, columns = np.divmod(np.arange(side * side), side)
    angles = np.concatenate([np.outer(rows, rates), np.outer(columns, rates)], axis=1)
    return np.exp(1j * angles).astype(np.complex64)


def tensors(network, *, second_head=False, num_classes=None):
    """All tensors of a file of the reference, drawn; with another number of classes if given."""
    found = {}
    for name, shape in shapes(network).items():
        if name == "net.rope_freqs":
            found[name] = frequencies(2 * shape[1], int(shape[0] ** 0.5))
        else:
            found[name] = draw(name, shape)
    if num_classes is not None:
        table = "net.y_embedder.embedding_table._flax_embedding.weight"
        found[table] = draw(table, (num_classes + 1, found[table].shape[1]))
    if second_head:
        for name in list(found):
            if name.startswith("net.u_"):
                found[name.replace("net.u_", "net.v_")] = found[name]
    return found


def save(path, network, **options):
    """Writes such a file."""
    return torch_zip.save(path, tensors(network, **options))

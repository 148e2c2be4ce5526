"""Files of OpenAI's CIFAR-10 models with random weights, which need none of their code."""

import functools
import json
import zlib
from pathlib import Path

import flax.serialization
import numpy as np

from cmjax.models import NCSNPP_PRESETS, NCSNppConfig

GOLDEN = Path(__file__).parents[1] / "golden"
CONFIGS = {
    "toy": NCSNppConfig(
        sample_size=16,
        base_channels=8,
        block_out_channels=(8, 16, 24),
        layers_per_block=2,
        attention_resolutions=(8,),
    ),
    "cifar10": NCSNPP_PRESETS["cifar10"],
}
# DDPM++, as the reference's cifar10_k_vp.py has it.
CONFIGS["plain"] = NCSNppConfig(
    sample_size=8,
    base_channels=12,
    block_out_channels=(12, 24),
    layers_per_block=1,
    attention_resolutions=(4,),
    smooth_resampling=False,
    input_pyramid=False,
    fourier_time=False,
)
KINDS = ("edm", "cd", "ct", "progressive")  # of training, whose states differ


def draw(name, shape):
    """The values of a tensor of the reference, which its name and shape decide.

    `RandomState` never changes its stream. No parameter is zero, as some are before training.
    """
    values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if name.startswith("Gaussian"):
        return (16 * values).astype(np.float32)
    if name.endswith("scale"):
        return (1 + 0.3 * values).astype(np.float32)
    if name.endswith(("bias", ".b")):
        return (0.3 * values).astype(np.float32)
    return (values / np.sqrt(np.prod(shape[:-1]))).astype(np.float32)


@functools.cache
def stored():
    """What the reference says of its networks and its training states."""
    return json.loads((GOLDEN / "ncsnpp_names.json").read_text())


def shapes(network):
    """The shape of every tensor of one of the reference's networks, by dotted name."""
    return {name: tuple(shape) for name, shape in stored()["networks"][network].items()}


def params(network, shift=0.0):
    """The tensors of a network, by dotted name."""
    return {
        name: draw(name, shape) + np.float32(shift)
        for name, shape in shapes(network).items()
    }


def state(kind, network="toy", changes=None):
    """A training state as the reference has it, of arrays by dotted name.

    The averaged parameters are those of `params`, and all others differ. Of the kind None there is
    nothing but these.
    """
    if kind is None:
        return {f"params_ema.{name}": value for name, value in params(network).items()}
    found = {}
    for name, (shape, dtype) in stored()["states"][kind].items():
        if shape == "parameters":
            shift = 0.0 if name == "params_ema" else 1.0
            found |= {f"{name}.{n}": v for n, v in params(network, shift).items()}
        elif shape == "empty":
            found[name] = {}
        else:
            found[name] = np.full(shape, 3, dtype)
    for name, value in (changes or {}).items():
        found.pop(name, None)
        if value is not None:
            found[name] = value
    return found


def nested(tensors):
    """Nested dictionaries of dotted names."""
    tree = {}
    for name, value in tensors.items():
        *above, last = name.split(".")
        place = tree
        for part in above:
            place = place.setdefault(part, {})
        place[last] = value
    return tree


def packed(tree):
    """The bytes of a tree, as Flax writes them."""
    return flax.serialization.msgpack_serialize(tree)


@functools.cache
def content(kind="cd", network="toy"):
    """The bytes of a training state."""
    return packed(nested(state(kind, network)))


def save(path, kind="cd", network="toy", changes=None):
    """Writes a training state, with some tensors changed, or removed by None."""
    if changes:
        path.write_bytes(packed(nested(state(kind, network, changes))))
    else:
        path.write_bytes(content(kind, network))
    return path

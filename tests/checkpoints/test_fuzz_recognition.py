"""Mutated names, shapes and dtypes of the networks that are recognised by them."""

import functools
import json
import random
from collections import Counter

import ml_dtypes
import numpy as np
import pytest

from cmjax.checkpoints import released
from cmjax.checkpoints.tensors import StoredTensor
from tests.support import flax_networks, ncsnpp, pixel_mean_flow
from tests.support.flax_networks import GOLDEN
from tests.support.mutations import seeds
from tests.support.outcomes import loads_or_is_refused, networks_made_once, traced

COUNTS = {}  # what became of the networks, for whoever wants to know: pytest -s
OPENAI = json.loads((GOLDEN / "openai_names.json").read_text())

# The shapes of every family, and whether its names are those of Flax.
FLAX = {
    "mean_flow": functools.partial(flax_networks.shapes, "mean_flow", "MF-B/4"),
    "improved_mean_flow": functools.partial(
        flax_networks.shapes, "improved_mean_flow", "toy"
    ),
    "shortcut": functools.partial(flax_networks.shapes, "shortcut", "Shortcut-B/2"),
    "ncsnpp": functools.partial(ncsnpp.shapes, "plain"),
}
TORCH = {
    "pixel_mean_flow": functools.partial(pixel_mean_flow.shapes, "toy"),
    "openai": lambda: OPENAI["small"]["openai"],
}
FAMILIES = [*FLAX, *TORCH]

DTYPES = [np.dtype(name) for name in ("f2", "f8", "i4", "i8", "u1", "?", "c8")]
DTYPES.append(np.dtype(ml_dtypes.bfloat16))
SIZES = [0, 1, 2, 3, 4, 5, 16, 32, 64, 384, 2000, 2**31 - 1, 2**31, 2**40, 2**62]
NUMBERS = ["0", "1", "2", "12", "512", "9999", "-1", "x", "", "99999999999", "\u0661"]
ADDED = ["x", "a\nb", "\0", "\u202e", "", ".", "..", "y" * 5000, "\ud800", "params.x"]


@pytest.fixture(scope="module", autouse=True)
def one_network_and_traced_memory():
    with networks_made_once(), traced():
        yield
    for what, counts in sorted(COUNTS.items()):
        print(f"\n{what}: {dict(counts)}", end="")


def unread(shape, dtype="f4"):
    """A tensor of which only the rotary frequencies of Pixel MeanFlow are ever read here."""
    return StoredTensor(tuple(shape), np.dtype(dtype), lambda: np.zeros(shape, dtype))


def tensors_of(family):
    found = {name: unread(shape) for name, shape in (FLAX | TORCH)[family]().items()}
    if family == "pixel_mean_flow":
        values = pixel_mean_flow.frequencies(16, 3)
        found["net.rope_freqs"] = StoredTensor(values.shape, values.dtype, lambda: values)
    return found


def changed_name(rng, name):
    """Another name: cut, longer, of another block, or of another case."""
    parts = name.split(".")
    at = rng.randrange(len(parts))
    match rng.choice(["cut", "before", "behind", "number", "part", "case"]):
        case "cut":
            return name[rng.randrange(len(name)) :]
        case "before":
            return rng.choice(["net.", "module.", "params.", "ema.", *ADDED]) + name
        case "behind":
            return name + rng.choice([".0", "_1", ".kernel", *ADDED])
        case "number":
            head = parts[at].rstrip("0123456789")
            parts[at] = head + rng.choice(NUMBERS)
        case "part":
            parts[at] = rng.choice([*ADDED, "kernel", "weight", "bias", "embedding"])
        case "case":
            return name.upper()
    return ".".join(parts)


def changed_shape(rng, shape):
    """Another shape: an axis more or less, others, in another order, or anything."""
    shape = list(shape)
    match rng.choice(["size", "fewer", "more", "reversed", "any"]):
        case "size" if shape:
            shape[rng.randrange(len(shape))] = rng.choice(SIZES)
        case "fewer" if shape:
            shape.pop(rng.randrange(len(shape)))
        case "more":
            shape.insert(rng.randint(0, len(shape)), rng.choice(SIZES))
        case "reversed":
            shape.reverse()
        case "any":
            shape = [rng.choice(SIZES) for _ in range(rng.randint(0, 6))]
    return tuple(shape)


def mutated(rng, tensors):
    """The tensors of a network with a few of them changed, most those that tell the network."""
    tensors = dict(tensors)
    for _ in range(rng.randint(1, 4)):
        name = rng.choice(sorted(tensors) or ["x"])
        tensor = tensors.pop(name, unread((2,)))
        match rng.choice(
            ["remove", "rename", "reshape", "reshape", "dtype", "add", "swap", "another"]
        ):
            case "rename":
                tensors[changed_name(rng, name)] = tensor
            case "reshape":
                tensors[name] = unread(changed_shape(rng, tensor.shape), tensor.dtype)
            case "dtype":
                tensors[name] = unread(tensor.shape, rng.choice(DTYPES))
            case "add":
                tensors |= {name: tensor, changed_name(rng, name): tensor}
            case "swap" if tensors:
                other = rng.choice(sorted(tensors))
                tensors |= {name: tensors[other], other: tensor}
            case "another":
                family = tensors_of(rng.choice(FAMILIES))
                tensors |= {key: family[key] for key in rng.sample(sorted(family), 3)}
            case "remove" if rng.random() < 0.3:
                # A whole block, or all of one kind.
                word = rng.choice(name.split("."))
                tensors = {key: x for key, x in tensors.items() if word not in key}
    return tensors


@pytest.mark.parametrize("family", FAMILIES)
def test_mutated_networks_are_recognised_or_refused(tmp_path, family):
    path = tmp_path / "x"
    whole = tensors_of(family)
    counts = COUNTS.setdefault(family, Counter())
    for seed in seeds(100):
        rng = random.Random(seed)
        tensors = mutated(rng, whole)
        with loads_or_is_refused(path, counts):
            if family in FLAX:
                part = rng.choice(["", "params.", "ema_params.", "train_state.params_ema."])
                state = {part + name: tensor for name, tensor in tensors.items()}
                opened = released._of_flax(path, {**state, "step": unread(())}, None)
            else:
                opened = released._recognised(path, tensors, None)
            opened.check()
            assert opened.note.isprintable()


@pytest.mark.parametrize("family", FAMILIES)
def test_what_was_not_changed_is_recognised(tmp_path, family):
    """Or all of the above could be refusals of something else."""
    tensors = tensors_of(family)
    if family in FLAX:
        opened = released._of_flax(tmp_path / "x", tensors, None)
    else:
        opened = released._recognised(tmp_path / "x", tensors, None)
    opened.check()

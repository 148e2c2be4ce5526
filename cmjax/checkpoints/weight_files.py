"""The names of the files that hold the weights in a folder of diffusers."""

import os
import re
from pathlib import Path
from typing import NamedTuple

STEM = "diffusion_pytorch_model"
FLAX = "diffusion_flax_model.msgpack"  # of diffusers' Flax classes, until version 0.39
# "fp16" in diffusion_pytorch_model.fp16.safetensors, in the names of its shards,
# diffusion_pytorch_model.fp16-00001-of-00002.safetensors, and of their index, in both spellings.
VARIANT = re.compile(
    rf"{STEM}\.(?P<file>\w[\w.]*)\.(safetensors|bin)"
    rf"|{STEM}\.(safetensors|bin)\.index\.(?P<index>\w[\w.]*)\.json"
    rf"|{STEM}\.(?P<old>\w[\w.]*)\.(safetensors|bin)\.index\.json"
)


class WeightNames(NamedTuple):
    """The names that one set of weights can have.

    Attributes:
        safetensors: the single file.
        indices: the file that lists the shards, as either version of diffusers names it.
        torch: the same as a pickle of PyTorch.
    """

    safetensors: str
    indices: tuple[str, ...]
    torch: str


def weight_names(variant: str = "") -> WeightNames:
    """Returns the names of the weights, or of a variant of them such as "fp16"."""
    dotted = f".{variant}" if variant else ""
    indices = []
    for suffix in ("safetensors", "bin"):
        indices.append(f"{STEM}.{suffix}.index{dotted}.json")
        indices.append(f"{STEM}{dotted}.{suffix}.index.json")
    return WeightNames(
        safetensors=f"{STEM}{dotted}.safetensors",
        indices=tuple(dict.fromkeys(indices)),  # without a variant both spellings are one
        torch=f"{STEM}{dotted}.bin",
    )


def has_weights(folder: Path, variant: str = "") -> bool:
    """Whether a folder holds the weights, or a variant of them, in any form.

    A broken link counts: what it led to is what the folder is of, and no other file in its place.
    """
    names = weight_names(variant)
    return any(
        os.path.lexists(folder / name)
        for name in (names.safetensors, *names.indices, names.torch)
    )


def only_variant(folder: Path) -> str:
    """Returns the variant to read from a folder; "" if it has the weights themselves, or none.

    Raises:
        ValueError: if there are several variants and nothing says which one to read.
    """
    if has_weights(folder) or not folder.is_dir():
        return ""

    found = {}
    for path in sorted(folder.iterdir()):
        match = VARIANT.fullmatch(path.name)
        if match:
            variant = match["file"] or match["index"] or match["old"]
            found.setdefault(variant, path.name)
    if len(found) > 1:
        names = " and ".join(found.values())
        raise ValueError(
            f"{folder} has several variants of its weights, {names}; keep the files of one"
        )
    return next(iter(found), "")

"""Whether a folder of samples is as it was made."""

import itertools
from pathlib import Path
from typing import NamedTuple

import numpy as np

import cmjax
from cmjax.generation.exports import damaged_exports, read_sums
from cmjax.generation.manifest import model_digest, read_manifest
from cmjax.generation.sampler import Sampler, regroup
from cmjax.generation.shards import Shards
from cmjax.model import Model


class Verified(NamedTuple):
    """What `verify` returns."""

    damaged: list[Path]  # what is not as it was written, missing, or was never written
    samples: int  # in whole shards
    difference: int  # largest of a pixel, of 255, between these and those made again
    same: bool  # whether that is what rounding explains


def verify(
    folder: Path, model: Model, *, count: int = 64, batch_size: int = 64, shard_params: bool = False
) -> Verified:
    """Checks the digests of everything in a folder of `generate_folder`, and makes a random few samples again.

    Args:
        folder: of the run.
        model: that it was made with.
        count: number of samples to make again.
        batch_size: samples made at a time by each device.
        shard_params: divide the parameters among the devices; see `Sampler`.

    Raises:
        ValueError: if the folder is of another model, or holds nothing.
    """
    settings = read_manifest(folder)["settings"]
    try:
        model = model.with_scheduler(cmjax.scheduler_from_config(settings["scheduler"]))
        same = model_digest(model) == settings["model"]
    except ValueError:  # its network cannot be adapted
        same = False
    if not same:
        raise ValueError(
            f"{folder} was made with another model than this; name the one with --model"
        )
    shards = Shards(folder, settings)
    found, broken = shards.find()
    damaged = [*broken, *shards.gaps(), *shards.strangers(), *damaged_exports(folder)]
    if (
        not found and not damaged and not read_sums(folder)
    ):  # the shards may go once something is made of them
        raise ValueError(f"{folder} holds no samples; run `cmjax generate` first")
    there = np.unique(np.array([index for shard in found for index in shard], np.uint32))
    chosen = np.sort(np.random.default_rng().choice(there, min(count, len(there)), replace=False))
    again = _made_again(model, settings, chosen, batch_size, shard_params)
    stored = np.array([_stored(shards, found, int(index)) for index in chosen])
    error = (
        np.abs(stored.astype(int) - again).reshape(len(chosen), -1)
        if len(chosen)
        else np.zeros((1, 1), int)
    )
    # Sums in another order round differently; in bfloat16, which accelerators also take for products of float32, by 1.3
    # at most (18 steps) in a sample's mean; another sample is 35 off.
    exact = settings["dtype"] == "float32" and settings["platform"] == "cpu"
    same = error.max() <= 1 if exact else error.mean(axis=1).max() <= 4
    return Verified(damaged, len(there), int(error.max()), bool(same))


def _made_again(model, settings, chosen, batch_size, shard_params):
    if not len(chosen):
        return np.empty(0)
    state = model.scheduler.set_timesteps(**settings["schedule"])
    options = {name: settings[name] for name in ("labels", "seed", "dtype")}
    sampler = Sampler(model, state, batch_size=batch_size, shard_params=shard_params, **options)
    return np.concatenate(list(sampler.batches(regroup([chosen], itertools.repeat(sampler.size)))))


def _stored(shards, found, index):
    shard, path = next((shard, path) for shard, path in found.items() if index in shard)
    return shards.read(shard, path)[index - shard.start]

"""Whether a folder of samples is as it was made."""

import itertools
from pathlib import Path

import numpy as np

import cmjax
from cmjax.checkpoints import Model
from cmjax.generation.exports import damaged_exports, read_sums
from cmjax.generation.manifest import model_digest, read_manifest
from cmjax.generation.sampler import Sampler
from cmjax.generation.shards import Shards


def verify(folder: Path, model: Model, *, count: int = 64, batch_size: int = 64) -> tuple[list[Path], int, int]:
    """Checks the digests of everything in a folder of `generate_folder`, and makes a random few samples again.

    Args:
        folder: of the run.
        model: that it was made with.
        count: number of samples to make again.
        batch_size: samples made at a time by each device.

    Returns:
        The damaged files, how many samples are in shards, and the largest difference of a pixel of those made again.

    Raises:
        ValueError: if the folder is of another model, or holds nothing.
    """
    manifest = read_manifest(folder)
    settings = manifest["settings"]
    if model_digest(model) != settings["model"]:
        raise ValueError(f"{folder} was made with another model than this; name the one with --model")
    shards = Shards(folder, settings)
    found, damaged = shards.find()
    damaged += damaged_exports(folder)
    if not found:
        if read_sums(folder) or damaged:  # the shards may go once something is made of them
            return damaged, 0, 0
        raise ValueError(f"{folder} holds no samples; run `cmjax generate` first")
    model = model.with_scheduler(cmjax.scheduler_from_config(settings["scheduler"]))
    sampler = Sampler(
        model,
        model.scheduler.set_timesteps(**settings["schedule"]),
        labels=settings["labels"],
        seed=settings["seed"],
        batch_size=batch_size,
        dtype=settings["dtype"],
    )
    there = np.unique(np.concatenate([np.asarray(shard, np.uint32) for shard in found]))
    chosen = np.sort(np.random.default_rng().choice(there, min(count, len(there)), replace=False))
    again = sampler.batches(chosen[i : i + sampler.size] for i in range(0, len(chosen), sampler.size))
    worst = 0
    for index, image in zip(chosen, itertools.chain.from_iterable(again), strict=True):
        shard, path = next((shard, path) for shard, path in found.items() if int(index) in shard)
        stored = shards.read(path)[int(index) - shard.start]
        worst = max(worst, int(np.abs(stored.astype(int) - image.astype(int)).max()))
    return damaged, len(there), worst

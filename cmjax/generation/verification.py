"""Whether a folder of samples is as it was made."""

import itertools
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cmjax.generation.batches import BatchSampler, regroup
from cmjax.generation.exports import damaged_exports, read_sums
from cmjax.generation.manifest import read_manifest
from cmjax.generation.settings import RunSettings, model_digest
from cmjax.generation.shards import Shards
from cmjax.model import Model
from cmjax.registry import read_scheduler_config


class Verified(NamedTuple):
    """What `verify` returns.

    Attributes:
        damaged: what is not as it was written, is missing, or was never written.
        num_samples: samples in whole shards.
        max_difference: largest of a pixel, of 255, between stored samples and those made again.
        reproduced: whether rounding explains that difference.
    """

    damaged: list[Path]
    num_samples: int
    max_difference: int
    reproduced: bool


def verify(
    folder: str | Path,
    model: Model,
    *,
    count: int = 64,
    batch_size: int = 64,
    shard_params: bool = False,
) -> Verified:
    """Checks the digests of everything in a folder, and makes a random few samples again.

    Args:
        folder: of `generate_folder`.
        model: that it was made with.
        count: number of samples to make again.
        batch_size: samples made at a time by each device.
        shard_params: divide the parameters among the devices; see `BatchSampler`.

    Raises:
        ValueError: if the folder is of another model, or holds nothing.
    """
    folder = Path(folder)
    settings = read_manifest(folder).settings
    model = _as_it_was(folder, model, settings)

    # Everything in the folder against its digests.
    shards = Shards(folder, settings)
    found, broken = shards.find()
    damaged = [*broken, *shards.gaps(), *shards.strangers(), *damaged_exports(folder)]
    # The shards may go once something is made of them.
    if not found and not damaged and not read_sums(folder):
        raise ValueError(f"{folder} holds no samples; run generate_folder first")

    # Draw some, make them again and compare.
    there = np.unique(np.array([index for shard in found for index in shard], np.uint32))
    if not len(there):
        return Verified(damaged, 0, 0, reproduced=True)
    chosen = np.random.default_rng().choice(there, min(count, len(there)), replace=False)
    chosen.sort()
    sampler = BatchSampler(
        model, settings.request, batch_size=batch_size, shard_params=shard_params
    )
    batches = regroup([chosen], itertools.repeat(sampler.size))
    again = np.concatenate(list(sampler.batches(batches)))
    stored = np.stack([_stored(shards, found, int(index)) for index in chosen])
    difference = np.abs(stored.astype(int) - again)
    reproduced = _is_rounding(difference, settings)
    return Verified(damaged, len(there), int(difference.max()), reproduced)


def _as_it_was(folder: Path, model: Model, settings: RunSettings) -> Model:
    """Returns the model under the scheduler of the run; raises ValueError if it is another one."""
    try:
        model = model.with_scheduler(read_scheduler_config(settings.scheduler))
    except ValueError:  # its network cannot be adapted
        same = False
    else:
        same = model_digest(model) == settings.model
    if not same:
        raise ValueError(f"{folder} was made with another model; pass the one it was made with")
    return model


def _is_rounding(difference: np.ndarray, settings: RunSettings) -> bool:
    """Whether differences [n, H, W, C] between two runs of the same samples are of rounding.

    Sums in another order round differently. On CPUs in float32 that moves a pixel by 1 at most. In
    bfloat16, which accelerators also take for products of float32, it was measured to move a
    sample by 1.3 in the mean at most (18 steps); another sample is 35 off.
    """
    if settings.request.dtype == "float32" and settings.platform == "cpu":
        return bool(difference.max() <= 1)
    means = difference.reshape(len(difference), -1).mean(axis=1)
    return bool(means.max() <= 4)


def _stored(shards: Shards, found: dict[range, Path], index: int) -> np.ndarray:
    """Returns one sample of a folder."""
    shard = next(shard for shard in found if index in shard)
    return shards.read(shard, found[shard])[index - shard.start]

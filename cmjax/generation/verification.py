"""Verification of a folder of samples: its digests, and some of its samples made again."""

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from cmjax.generation.batches import BatchSampler, regroup
from cmjax.generation.manifest import read_manifest
from cmjax.generation.settings import RunSettings, model_digest
from cmjax.generation.shards import Shards
from cmjax.generation.sums import damaged_exports, read_sums
from cmjax.model import Model
from cmjax.registry import read_scheduler_config


class Verified(NamedTuple):
    """What `verify` returns.

    Attributes:
        damaged: files that are altered or missing, or that no run has written.
        num_samples: number of samples in intact shards.
        max_difference: largest difference of a pixel, 0 to 255, between stored samples and the
            same samples made again.
        reproduced: whether the differences are no larger than rounding explains.
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
    """Checks the digests of all files in a folder, and makes some samples again to compare.

    Args:
        folder: a folder of `generate_folder`.
        model: the model that its samples were made with.
        count: number of samples to make again, chosen at random.
        batch_size: number of samples that each device makes at a time, at most.
        shard_params: whether to divide the parameters among the devices; see `BatchSampler`.

    Returns:
        The damaged files, and how well the samples were reproduced.

    Raises:
        ValueError: if the samples were made with another model, or the folder holds none.
    """
    folder = Path(folder)
    settings = read_manifest(folder).settings
    model = _as_it_was(folder, model, settings)

    # Check all files of the folder against their digests.
    shards = Shards(folder, settings)
    found, broken = shards.find()
    damaged = [*broken, *shards.gaps(), *shards.strangers(), *damaged_exports(folder)]

    # No shards are no damage if there are exports: the user may remove shards after exporting.
    if not found and not damaged and not read_sums(folder):
        raise ValueError(f"{folder} holds no samples; run generate_folder first")

    # Choose among the samples of intact shards.
    intact = _longest(found)
    num_samples = sum(map(len, intact))
    if not num_samples:
        return Verified(damaged, 0, 0, reproduced=True)
    chosen = _choose(intact, count)

    # Make them again. Sample i depends on i alone, so that any of them can be put in a batch. Full
    # batches of all devices would be mostly padding.
    rows_per_device = -(-len(chosen) // jax.local_device_count())  # rounded up
    sampler = BatchSampler(
        model,
        settings.request,
        batch_size=min(batch_size, rows_per_device),
        shard_params=shard_params,
    )
    batches = regroup([chosen], itertools.repeat(sampler.size))
    again = np.concatenate(list(sampler.batches(batches)))

    # Compare, as signed integers: the difference of two u8 wraps around.
    stored = np.stack([_stored(shards, found, int(index)) for index in chosen])
    difference = np.abs(stored.astype(int) - again)
    reproduced = _is_rounding(difference, settings)
    return Verified(damaged, num_samples, int(difference.max()), reproduced)


def _as_it_was(folder: Path, model: Model, settings: RunSettings) -> Model:
    """Returns the model with the scheduler of the run; raises ValueError for another model."""
    # The samples may have been made with another scheduler than the model comes with.
    try:
        model = model.with_scheduler(read_scheduler_config(settings.scheduler))
    except ValueError:  # its network cannot be adapted
        same = False
    else:
        same = (
            model_digest(model) == settings.model
            and list(model.picture_shape) == settings.shape
        )
    if not same:
        raise ValueError(
            f"{folder} was made with another model; pass the one it was made with"
        )
    return model


def _longest(found: Iterable[range]) -> list[range]:
    """Returns the longest of the shards that begin at the same sample, in ascending order.

    The last, short shard of an earlier run may be a part of a later one.
    """
    by_start: dict[int, range] = {}
    for shard in found:
        other = by_start.get(shard.start)
        if other is None or len(shard) > len(other):
            by_start[shard.start] = shard
    return [by_start[start] for start in sorted(by_start)]


def _choose(shards: list[range], count: int) -> np.ndarray:
    """Chooses `count` samples of these shards at random, or all; u32[n], in ascending order."""
    # By their positions in a row of all samples, so that no list of all of them is needed. No fixed
    # seed: each call checks others.
    ends = np.cumsum([len(shard) for shard in shards])
    total = int(ends[-1])
    positions = np.random.default_rng().choice(total, min(count, total), replace=False)
    positions.sort()

    # Of each position the shard, and the place within it, counted from the shard's end.
    places = np.searchsorted(ends, positions, side="right")
    stops = np.array([shard.stop for shard in shards])
    return (stops[places] - (ends[places] - positions)).astype(np.uint32)


def _is_rounding(difference: np.ndarray, settings: RunSettings) -> bool:
    """Returns whether rounding explains the differences between two runs of the same samples.

    Sums in another order round differently. On CPUs in float32 that moves a pixel by 1 at most. In
    bfloat16, in which accelerators may also multiply float32, it was measured to move a sample by
    1.3 at most in the mean over its pixels (18 steps). Two different samples differ by 35.

    Args:
        difference: absolute differences of pixels, i64[n, H, W, C].
        settings: those of the run.
    """
    if settings.request.dtype == "float32" and settings.platform == "cpu":
        return bool(difference.max() <= 1)

    # The mean over each sample, f64[n]: single pixels may move far. 4 is well between 1.3 and 35.
    means = difference.reshape(len(difference), -1).mean(axis=1)
    return bool(means.max() <= 4)


def _stored(shards: Shards, found: dict[range, Path], index: int) -> np.ndarray:
    """Returns sample number `index` as it is stored, u8[H, W, C]."""
    # Reads the whole shard, and so checks its digest again.
    shard = next(shard for shard in found if index in shard)
    return shards.read(shard, found[shard])[index - shard.start]

"""Looks at the training data before the first step: what is wrong must not show after hours."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from cmjax.images import check_picture
from cmjax.progress import Bar
from cmjax.training.data import checked_labels
from cmjax.training.moments import Moments
from cmjax.training.picture_folders import check_not_around_classes
from cmjax.training.sources import Arrays, Pictures, Source

# Bytes of picture files to decode; of all others only the headers are looked at.
WHOLE = 2**28
_THREADS = 8  # reading headers waits for the disk, decoding for a core
_FURTHEST = 160  # in units of sigma_data: sigma_max of EDM's levels


def inspect(
    source: Source, num_classes: int | None, scheduler: Any, *, shown: bool = False
) -> None:
    """Checks data as a whole, as far as that is quick.

    Of arrays in memory every label and every number is looked at. Of pictures every header is, and
    the pixels of as many, evenly spaced, as `WHOLE` bytes of files hold. Of encoded data every
    label is, and the digests of as many files as hold so many bytes. Other sources are checked
    batch by batch, by `data.batches`.

    Args:
        source: the data.
        num_classes: of the network; None for one without classes.
        scheduler: the scheduler that the network is trained for.
        shown: whether to show a progress bar.

    Raises:
        ValueError: naming the first record or file that cannot be trained on, and why.
    """
    if num_classes is not None and "class_labels" not in source[0]:
        raise ValueError(
            f"the data have no labels, but the network has {num_classes} classes; "
            f"leave out network.num_class_embeds{getattr(source, 'unread_labels', '')}"
        )
    if isinstance(source, Arrays):
        if num_classes is not None and source.labels is not None:
            checked_labels(source.labels, range(len(source)), num_classes)
        _check_scale(source.data, scheduler)
    if isinstance(source, Moments):
        labels = source.labels()
        if num_classes is not None and labels is not None:
            checked_labels(labels, range(len(source)), num_classes)
        source.check(shown=shown)
    if isinstance(source, Pictures):
        files = [file for file, _ in source.files]
        if num_classes is not None and len(source.classes) > num_classes:
            raise ValueError(
                f"the data have {len(source.classes)} classes, the network {num_classes}; give the "
                f"network as many, as by network.num_class_embeds={len(source.classes)}"
            )
        if num_classes is not None:
            check_not_around_classes(source.folder, source.classes, files)
        _check_pictures(files, shown)


def _check_scale(data: np.ndarray, scheduler: Any) -> None:
    """Raises ValueError for data `[N, ...]` that are not scaled as the noise levels need them."""
    low = float(data.min())
    high = float(data.max())
    if data.dtype == np.uint8:
        # Black and white as 0 and 1, or floats in [0, 1] that were cast: of 255, all are black.
        if high == 1:
            raise ValueError(
                "the data are uint8 pixels of 0 and 1, where white is 255; multiply them by 255, "
                "and floats before they are converted to uint8"
            )
        return

    # Images in [0, 1] or [0, 255] have no negative values; samples around 0 always have some.
    # Points `[N, D]` may lie anywhere.
    if data.ndim >= 3 and low >= 0 and high > 0:
        raise ValueError(
            f"the data are floats from {low:g} to {high:g}, none below 0: they look like pixels "
            "that are not scaled; map them to [-1, 1], or store pixels 0 to 255 as uint8"
        )

    # The highest noise has to drown the data: sampling starts from nothing but noise.
    sigma_data = getattr(scheduler, "sigma_data", 1.0)
    furthest = getattr(scheduler, "sigma_max", _FURTHEST * sigma_data)
    if max(-low, high) > furthest:
        raise ValueError(
            f"the data are floats from {low:g} to {high:g}, beyond the highest noise level, "
            f"{furthest:g}; scale them to a standard deviation of about {sigma_data:g}"
        )


def _check_pictures(files: list[str], shown: bool) -> None:
    """Raises ValueError, naming the file, for the first picture that cannot be read."""
    # Evenly spaced, as neighbours often come from one place and are broken together.
    total = sum(Path(file).stat().st_size for file in files)
    every = max(1, -(-total // WHOLE))

    def check(number):
        check_picture(files[number], whole=number % every == 0)

    bar = Bar(
        len(files), unit="picture", doing="looking at the data", shown=shown, keep=False
    )
    with bar, ThreadPoolExecutor(_THREADS) as pool:
        # In order, so that always the same file is named. After an error the rest is not looked at.
        try:
            checked = pool.map(check, range(len(files)))
            for count, _ in enumerate(checked, start=1):
                bar.advance_to(count)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise

"""Moments of pictures in batches, made by one compiled program on the devices of this process."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cmjax.arrays import check_pixels
from cmjax.autoencoder import Autoencoder
from cmjax.generation.batches import AXIS, one_ahead, out_of_memory
from cmjax.training.data import collate
from cmjax.training.moments import MomentsSettings

_READERS = 8  # threads that read pictures: that waits for the disk, and decoding for a core


class Encoder:
    """Encodes any pictures of a source, a batch at a time, with one compiled program.

    Args:
        autoencoder: from `cmjax.load_autoencoder`; each device holds it whole.
        source: the pictures.
        settings: what the records of the folder are.
        batch_size: number of pictures that each device encodes at a time.
        devices: the devices to use; None for all devices of this process.

    Attributes:
        size: number of pictures that all devices together encode at a time.

    Raises:
        ValueError: if a device has too little memory.
    """

    def __init__(  # noqa: D107
        self,
        autoencoder: Autoencoder,
        source: Any,
        settings: MomentsSettings,
        *,
        batch_size: int,
        devices: Sequence[Any] | None = None,
    ):
        self._source = source
        self._settings = settings
        mesh = Mesh(np.array(devices or jax.local_devices()), (AXIS,))
        self.size = batch_size * mesh.size
        along_batch = PartitionSpec(AXIS)
        self._batch_sharding = NamedSharding(mesh, along_batch)
        dtype = np.dtype(settings.dtype)

        # Each device encodes its own pictures. An error about a NaN names the batch that it is in.
        def encode(autoencoder, images):
            mean, std = autoencoder.moments(images.astype(dtype))
            moments = (mean,) if std is None else (mean, std)
            moments = tuple(part.astype(jnp.float32) for part in moments)
            finite = [jnp.isfinite(part).all(axis=(1, 2, 3)) for part in moments]
            return moments, jnp.stack(finite).all(axis=0)

        divided = jax.shard_map(
            encode,
            mesh=mesh,
            in_specs=(PartitionSpec(), along_batch),
            out_specs=along_batch,
        )
        replicated = NamedSharding(mesh, PartitionSpec())
        images = jax.ShapeDtypeStruct(
            (self.size, *settings.picture_shape),
            jnp.float32,
            sharding=self._batch_sharding,
        )
        with out_of_memory(), jax.set_mesh(mesh), jax.disable_jit(False):
            self._autoencoder = jax.device_put(autoencoder, replicated)
            lowered = jax.jit(divided).lower(self._autoencoder, images)
            self._compiled = lowered.compile()

    def batches(self, indices: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yields the records of each batch, arrays `[n]` of the dtype `settings.row`.

        Args:
            indices: the numbers of the records of each batch, u32[n] with n of at most `size`.

        Raises:
            ValueError: if a picture cannot be read or encoded, or a device has too little memory.
        """
        with ThreadPoolExecutor(_READERS) as readers:

            def dispatched():
                for batch in indices:
                    images, labels = self._read(batch, readers)

                    # Padded by repeating the pictures, so that nothing is compiled again.
                    filled = np.resize(images, (self.size, *images.shape[1:]))
                    placed = jax.device_put(filled, self._batch_sharding)
                    with jax.disable_jit(False):
                        outputs = self._compiled(self._autoencoder, placed)
                    yield batch, labels, outputs

            yield from one_ahead(dispatched(), self._fetch)

    def _read(self, indices, readers):
        """Returns pictures f32[n, H, W, C] and labels i32[n] or None of records by their numbers.

        Records of mirrored pictures have the odd numbers.
        """
        settings = self._settings
        numbers = indices // 2 if settings.flip else indices

        def read_one(number):
            return self._source[int(number)]

        records = list(readers.map(read_one, numbers))
        batch = collate(records, numbers)

        # Gray pictures get as many equal channels as the autoencoder takes.
        images = batch["data"]
        height, width, channels = settings.picture_shape
        if images.shape[1:] == (height, width, 1):
            images = images.repeat(channels, axis=-1)
        if list(images.shape[1:]) != settings.picture_shape:
            raise ValueError(
                f"record {numbers[0]} of the data is {list(images.shape[1:])}, "
                f"the first one {settings.picture_shape}"
            )
        check_pixels(f"data from record {numbers[0]} on", images)

        # [n, H, W, C] mirrored along the axis of the width.
        if settings.flip:
            is_flipped = (indices % 2 == 1)[:, None, None, None]
            images = np.where(is_flipped, images[:, :, ::-1], images)
        return images, batch.get("class_labels")

    def _fetch(self, work):
        """Waits for a batch and returns its records, without the padding."""
        indices, labels, (moments, finite) = work
        finite = np.asarray(finite)[: len(indices)]
        if not finite.all():
            raise ValueError(
                f"the moments of record {indices[finite.argmin()]} are not finite; "
                "the autoencoder or the dtype is broken"
            )
        rows = np.empty(len(indices), self._settings.row)
        for name, values in zip(("mean", "std"), moments, strict=False):
            rows[name] = np.asarray(values)[: len(indices)]
        if labels is not None:
            rows["labels"] = labels
        return rows

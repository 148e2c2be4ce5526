"""Pictures of a batch of latents, decoded a few at a time by one compiled program."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cmjax.autoencoder import Autoencoder
from cmjax.images import to_uint8

DECODED_AT_ONCE = 8  # samples that a device decodes at a time, at most


class Decoder:
    """Decodes batches of latents in pieces.

    Pictures are much larger than latents, so few are decoded at a time: the memory of a batch is
    that of sampling it. The pieces have one size, for which one program is compiled, and whoever
    waits for them knows how many are there.

    Args:
        autoencoder: on every device of the mesh.
        latents: shape and dtype of a batch, `[B, h, w, c]`, with a `shape` and a `dtype`.
        mesh: one axis of devices, which B is divided over.
    """

    def __init__(self, autoencoder: Autoencoder, latents: Any, mesh: Mesh):  # noqa: D107
        self._autoencoder = autoencoder
        self._devices = mesh.size
        num = latents.shape[0] // mesh.size
        self._at_once = max(n for n in range(1, DECODED_AT_ONCE + 1) if num % n == 0)
        self._count = num // self._at_once

        # Each device decodes its own samples: the pieces are no matter of all of them.
        along_batch = PartitionSpec(mesh.axis_names[0])
        decode = jax.shard_map(
            self._piece,
            mesh=mesh,
            in_specs=(PartitionSpec(), along_batch, PartitionSpec()),
            out_specs=along_batch,
        )
        sharding = NamedSharding(mesh, along_batch)
        batch = jax.ShapeDtypeStruct(latents.shape, latents.dtype, sharding=sharding)
        self._compiled = jax.jit(decode).lower(autoencoder, batch, np.int32(0)).compile()

    def _piece(self, autoencoder, latents, i):
        """Returns pixels u8[n, H, W, C] of piece i, and whether each is finite, bool[n]."""
        n = self._at_once
        piece = jax.lax.dynamic_slice_in_dim(latents, i * n, n)
        x = autoencoder.decode(piece)
        return to_uint8(x), jnp.isfinite(x).all(axis=range(1, x.ndim))

    def pieces(self, latents: jax.Array) -> Iterator[tuple[jax.Array, jax.Array]]:
        """Yields the pictures of a batch, and whether each is finite, as they are dispatched.

        Args:
            latents: `[B, h, w, c]`, divided over the devices.

        Yields:
            Pixels u8[n, H, W, C] and bool[n]; `joined` puts those of all pieces in order.
        """
        for i in range(self._count):
            yield self._compiled(self._autoencoder, latents, np.int32(i))

    def joined(self, pieces: Sequence[np.ndarray]) -> np.ndarray:
        """Returns what the pieces hold, `[n, ...]` each, in the order of the batch, `[B, ...]`."""
        # Of each device in turn, a piece has the next samples: [pieces, devices, at_once, ...].
        split = [
            piece.reshape(self._devices, self._at_once, *piece.shape[1:])
            for piece in pieces
        ]
        whole = np.stack(split, axis=1)
        return whole.reshape(-1, *whole.shape[3:])

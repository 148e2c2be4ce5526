"""Samples in batches, made by one compiled program on the devices of this process."""

import contextlib
import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cmjax.generation.decoding import Decoder
from cmjax.generation.request import Request
from cmjax.images import to_uint8
from cmjax.model import Model
from cmjax.random import key_of_seed
from cmjax.sampling import sample

AXIS = "batch"  # name of the only mesh axis; samples are divided along it
Result = TypeVar("Result")


class BatchSampler:
    """Makes any samples of a request, a batch at a time, with one compiled program.

    The latents of a latent model are decoded by a second one, a few at a time. Both run on several
    devices of this process. They communicate only if the parameters are divided among them, or, one
    bit a call, if guidance is limited to an interval.

    Args:
        model: from `cmjax.load`.
        request: which samples to make.
        batch_size: number of samples that each device makes at a time.
        devices: the devices to use; None for all devices of this process.
        shard_params: whether to divide each parameter among the devices, along its largest axis
            that is divisible by their number. For models larger than one device; the devices then
            communicate in every step. Each device holds an autoencoder whole.

    Attributes:
        size: number of samples that all devices together make at a time.
        compiled: the compiled program, which draws the samples.

    Raises:
        ValueError: for labels that the model does not have, or if a device has too little memory.
    """

    def __init__(  # noqa: D107
        self,
        model: Model,
        request: Request,
        *,
        batch_size: int = 64,
        devices: Sequence[Any] | None = None,
        shard_params: bool = False,
    ):
        request.check_model(model)
        self._request = request

        # Samples are divided among the devices; by default each device holds all parameters.
        mesh = Mesh(np.array(devices or jax.local_devices()), (AXIS,))
        self.size = batch_size * mesh.size
        self._batch_sharding = NamedSharding(mesh, PartitionSpec(AXIS))
        replicated = NamedSharding(mesh, PartitionSpec())
        param_shardings: Any = replicated
        if shard_params:
            divide = functools.partial(_param_sharding, mesh=mesh)
            param_shardings = jax.tree.map(divide, model.params)

        # The mesh replaces one that the caller may have set. `jax_disable_jit` is for debugging
        # Python code; here it would leave no program to compile ahead of time.
        key = key_of_seed(request.seed)
        with out_of_memory(), jax.set_mesh(mesh), jax.disable_jit(False):
            state = request.set_timesteps(model.scheduler)
            self._constants = (
                jax.device_put(key, replicated),
                jax.device_put(model.params, param_shardings),
                jax.device_put(state, replicated),
            )

            # Compiled for full batches only, ahead of time: `compiled` then never retraces.
            draw = _draw_function(model, (self.size, *model.sample_shape), request)
            jitted = jax.jit(draw, out_shardings=self._batch_sharding)
            any_batch = self._inputs(np.zeros(1, np.uint32))
            lowered = jitted.lower(*self._constants, *any_batch)
            self.compiled = lowered.compile()
            self._decoder = None
            if model.autoencoder is not None:
                autoencoder = jax.device_put(model.autoencoder, replicated)
                self._decoder = Decoder(autoencoder, lowered.out_info, mesh)

    def batches(
        self,
        indices: Iterable[np.ndarray],
        on_images: Callable[[int], None] | None = None,
    ) -> Iterator[np.ndarray]:
        """Yields the images of each batch, u8[n, H, W, C], while the next batch is computed.

        Args:
            indices: the sample numbers of each batch, u32[n] with n of at most `size`. A smaller
                batch is padded, so that nothing is compiled again.
            on_images: called with the number of new images whenever some are ready; for a latent
                model that is several times in a batch.

        Raises:
            ValueError: if a sample is not finite, or a device has too little memory.
        """

        def dispatched():
            for batch in indices:
                # The iterator's user may have set `jax_disable_jit`, which refuses programs.
                with jax.disable_jit(False):
                    outputs = self.compiled(*self._constants, *self._inputs(batch))
                yield batch, outputs

        def fetch(work):
            return self._fetch(work, on_images)

        yield from one_ahead(dispatched(), fetch)

    def _fetch(self, work, on_images):
        """Waits for a batch and returns its images, u8[n, H, W, C], without the padding."""
        indices, outputs = work
        count = len(indices)
        if self._decoder is None:
            images, finite = jax.device_get(outputs)
            if on_images is not None:
                on_images(count)
        else:
            images, finite = self._decoded(outputs, count, on_images)

        finite = finite[:count]
        if not finite.all():
            raise ValueError(
                f"sample number {indices[finite.argmin()]} is not finite; "
                "the model or its dtype is broken"
            )
        return images[:count]

    def _decoded(self, latents, count, on_images):
        """Returns pixels u8[B, H, W, C] of latents, and whether each is finite, bool[B]."""
        assert self._decoder is not None
        pieces = []
        done = 0

        # Each piece is fetched while the next one is computed. The padding at the end of a batch of
        # `count` does not count.
        for piece in one_ahead(self._decoder.pieces(latents), jax.device_get):
            pieces.append(piece)
            new = min(len(piece[0]), count - done)
            done += new
            if on_images is not None and new:
                on_images(new)
        images, finite = zip(*pieces, strict=True)
        return self._decoder.joined(images), self._decoder.joined(finite)

    def _inputs(self, indices: np.ndarray) -> tuple[jax.Array, jax.Array | None]:
        """Returns a full batch of sample numbers and classes, u32[size] and i32[size] or None."""
        # Padded by repeating the indices, so that every row of the batch is a valid sample.
        filled = np.resize(indices, self.size)
        labels = self._request.labels_of(filled)
        return jax.device_put((filled, labels), self._batch_sharding)


def _draw_function(model: Model, shape: tuple[int, ...], request: Request):
    """Returns the function that the devices run, from sample numbers to pixels or to latents."""
    apply_fn = model.guided(request.guidance, request.guidance_interval)

    def draw(key, params, state, indices, labels):
        # key_i = fold_in(key, i): the noise of a sample depends on the seed and its number alone,
        # so that samples can be made in any batches.
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, indices)
        cond = {} if labels is None else {"class_labels": labels}
        x = sample(
            keys,
            apply_fn,
            params,
            model.scheduler,
            shape,
            state=state,
            cond=cond,
            dtype=request.dtype,
        )

        if model.autoencoder is not None:
            return x

        # Pixels u8[B, H, W, C], a quarter of the bytes to fetch, and whether each sample is
        # finite, bool[B]: a NaN would not show in the pixels.
        return to_uint8(x), jnp.isfinite(x).all(axis=range(1, x.ndim))

    return draw


def _param_sharding(leaf: Any, mesh: Mesh) -> NamedSharding:
    """Divides a parameter along its largest axis that the number of devices divides, if any."""
    # Only even divisions: JAX places no array whose axis the mesh does not divide. A parameter
    # without such an axis, usually a small one, is replicated.
    axes = [axis for axis, size in enumerate(leaf.shape) if size and size % mesh.size == 0]
    largest = max(axes, key=lambda axis: leaf.shape[axis], default=None)
    spec = [AXIS if axis == largest else None for axis in range(leaf.ndim)]
    return NamedSharding(mesh, PartitionSpec(*spec))


def one_ahead(
    dispatched: Iterable[Any], fetch: Callable[[Any], Result]
) -> Iterator[Result]:
    """Yields the results of batches, each fetched once the next one is dispatched, too.

    Args:
        dispatched: what the devices compute, batch by batch.
        fetch: waits for one of these, and returns its result.

    Raises:
        ValueError: if a device has too little memory.
    """
    with out_of_memory():
        # JAX dispatches asynchronously. Fetching a batch only after the next one is dispatched
        # keeps the devices busy while the host copies and writes.
        computing = deque()
        for work in dispatched:
            computing.append(work)
            if len(computing) > 1:
                yield fetch(computing.popleft())

        # Nothing follows the last batch, which is still in the queue.
        for work in computing:
            yield fetch(work)


@contextlib.contextmanager
def out_of_memory(
    way_out: str = "a smaller batch_size needs less memory",
) -> Iterator[None]:
    """Turns a device's error into a ValueError of one line, with `way_out` if memory ran out."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        # The lines after the first are XLA's allocation report.
        message = str(error).splitlines()[0]
        if "RESOURCE_EXHAUSTED" in str(error):
            message += f"; {way_out}"
        raise ValueError(message) from None


def regroup(arrays: Iterable[np.ndarray], lengths: Iterable[int]) -> Iterator[np.ndarray]:
    """Yields the rows of `arrays`, in order, as arrays of the given lengths.

    Args:
        arrays: arrays that agree in all axes but the first.
        lengths: number of rows of each result, as many as there are or more. The last result is
            shorter if the rows run out.
    """
    arrays = iter(arrays)
    held = []  # rows that were read and not yet yielded
    for length in lengths:
        # Read only as much as this result needs: reading may mean waiting for a device.
        while sum(map(len, held)) < length and (array := next(arrays, None)) is not None:
            held.append(array)
        if not held:
            return

        # The common case, one array, is not copied.
        rows = held[0] if len(held) == 1 else np.concatenate(held)
        yield rows[:length]
        held = [rows[length:]] if len(rows) > length else []

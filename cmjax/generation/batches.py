"""Samples in batches, made by one compiled program on the devices of this process."""

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cmjax.generation.request import Request
from cmjax.images import to_uint8
from cmjax.model import Model
from cmjax.random import key_of_seed
from cmjax.sampling import sample

AXIS = "batch"  # name of the only mesh axis; samples are divided along it
Result = TypeVar("Result")
DECODED_AT_ONCE = 8  # samples of a latent model that a device decodes at a time, at most


class BatchSampler:
    """Makes any samples of a request, a batch at a time, with one compiled program.

    The program runs on several devices of this process. They communicate only if the parameters
    are divided among them, or, one bit a call, if guidance is limited to an interval.

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
        compiled: the compiled program.

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

        def param_sharding(leaf):
            return _param_sharding(leaf, mesh) if shard_params else replicated

        # The mesh replaces one that the caller may have set. `jax_disable_jit` is for debugging
        # Python code; here it would leave no program to compile ahead of time.
        key = key_of_seed(request.seed)
        with out_of_memory(), jax.set_mesh(mesh), jax.disable_jit(False):
            self._constants = (
                jax.device_put(key, replicated),
                jax.device_put(model.params, jax.tree.map(param_sharding, model.params)),
                jax.device_put(model.autoencoder, replicated),
                jax.device_put(request.set_timesteps(model.scheduler), replicated),
            )

            # Compiled for full batches only, ahead of time: `compiled` then never retraces.
            draw = _draw_function(
                model, (self.size, *model.sample_shape), request, mesh.size
            )
            jitted = jax.jit(draw, out_shardings=self._batch_sharding)
            batch = self._inputs(np.zeros(1, np.uint32))
            self.compiled = jitted.lower(*self._constants, *batch).compile()

    def batches(self, indices: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yields the images of each batch, u8[n, H, W, C], while the next batch is computed.

        Args:
            indices: the sample numbers of each batch, u32[n] with n of at most `size`. A smaller
                batch is padded, so that nothing is compiled again.

        Raises:
            ValueError: if a sample is not finite, or a device has too little memory.
        """

        def dispatched():
            for batch in indices:
                # The iterator's user may have set `jax_disable_jit`, which refuses programs.
                with jax.disable_jit(False):
                    outputs = self.compiled(*self._constants, *self._inputs(batch))
                yield batch, outputs

        yield from one_ahead(dispatched(), _fetch)

    def _inputs(self, indices: np.ndarray) -> tuple[jax.Array, jax.Array | None]:
        """Returns a full batch of sample numbers and classes, u32[size] and i32[size] or None."""
        # Padded by repeating the indices, so that every row of the batch is a valid sample.
        filled = np.resize(indices, self.size)
        labels = self._request.labels_of(filled)
        return jax.device_put((filled, labels), self._batch_sharding)


def _draw_function(
    model: Model, shape: tuple[int, ...], request: Request, num_devices: int
):
    """Returns the function that the devices run, from sample numbers to pixels."""
    apply_fn = model.guided(request.guidance, request.guidance_interval)
    decode = _decode_function(model, shape[0] // num_devices)

    def draw(key, params, autoencoder, state, indices, labels):
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

        x = decode(x, autoencoder)

        # Pixels u8[B, H, W, C], a quarter of the bytes to fetch, and whether each sample is
        # finite, bool[B]: a NaN would not show in the pixels.
        return to_uint8(x), jnp.isfinite(x).all(axis=range(1, x.ndim))

    return draw


def _decode_function(model: Model, num: int):
    """Returns the function from samples and the autoencoder to pictures, both on the devices.

    Args:
        model: from `cmjax.load`.
        num: number of samples of each device.
    """
    if model.autoencoder is None:
        return lambda samples, autoencoder: samples

    # Pictures are much larger than latents, so few are decoded at a time: the memory of a batch
    # is that of sampling it. In pieces of one size, of which one program is compiled.
    at_once = max(n for n in range(1, DECODED_AT_ONCE + 1) if num % n == 0)

    # Each device decodes its own samples: the pieces are no matter of all of them.
    def decode(samples, autoencoder):
        return autoencoder.decode(samples, batch_size=at_once)

    along_batch = PartitionSpec(AXIS)
    return jax.shard_map(
        decode, in_specs=(along_batch, PartitionSpec()), out_specs=along_batch
    )


def _param_sharding(leaf: Any, mesh: Mesh) -> NamedSharding:
    """Divides a parameter along its largest axis that the number of devices divides, if any."""
    # Only even divisions: JAX places no array whose axis the mesh does not divide. A parameter
    # without such an axis, usually a small one, is replicated.
    axes = [axis for axis, size in enumerate(leaf.shape) if size and size % mesh.size == 0]
    largest = max(axes, key=lambda axis: leaf.shape[axis], default=None)
    spec = [AXIS if axis == largest else None for axis in range(leaf.ndim)]
    return NamedSharding(mesh, PartitionSpec(*spec))


def _fetch(work: tuple[np.ndarray, tuple[jax.Array, jax.Array]]) -> np.ndarray:
    """Waits for a batch and returns its images, u8[n, H, W, C], without the padding."""
    indices, outputs = work
    images = np.asarray(outputs[0])[: len(indices)]
    finite = np.asarray(outputs[1])[: len(indices)]
    if not finite.all():
        raise ValueError(
            f"sample number {indices[finite.argmin()]} is not finite; "
            "the model or its dtype is broken"
        )
    return images


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
def out_of_memory() -> Iterator[None]:
    """Turns a device's error into a ValueError of one line, with a hint if memory ran out."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        # The lines after the first are XLA's allocation report.
        message = str(error).splitlines()[0]
        if "RESOURCE_EXHAUSTED" in str(error):
            message += "; a smaller batch_size needs less memory"
        raise ValueError(message) from None


def regroup(arrays: Iterable[np.ndarray], lengths: Iterable[int]) -> Iterator[np.ndarray]:
    """Yields the rows of `arrays`, in order, as arrays of the given lengths.

    Args:
        arrays: arrays that agree in all axes but the first.
        lengths: number of rows of each result; may be infinite. The last result is shorter if the
            rows run out.
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

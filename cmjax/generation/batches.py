"""Batches of samples from one compiled program, on any devices of this process."""

import contextlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cmjax.generation.request import Request
from cmjax.images import to_uint8
from cmjax.model import Model
from cmjax.sampling import sample

AXIS = "batch"  # of the mesh, over which samples are divided


class BatchSampler:
    """One compiled program that makes any samples of a request, a batch at a time.

    It runs on several devices of this process. They do not communicate, unless the parameters are
    divided among them.

    Args:
        model: from `cmjax.load`.
        request: which samples.
        batch_size: samples made at a time by each device.
        devices: to use; None for all of this process.
        shard_params: divide each parameter among the devices, along its largest axis that they
            divide, for models larger than a device; they then communicate in every step.

    Attributes:
        size: samples made at a time by all devices.
        compiled: the program.

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
        mesh = Mesh(np.array(devices or jax.local_devices()), (AXIS,))
        self.size = batch_size * mesh.size
        self._batch_sharding = NamedSharding(mesh, PartitionSpec(AXIS))
        replicated = NamedSharding(mesh, PartitionSpec())

        def param_sharding(leaf):
            return _param_sharding(leaf, mesh) if shard_params else replicated

        # The generator and how it draws are named: under other defaults of JAX a seed would mean
        # other samples.
        key = jax.random.key(request.seed, impl="threefry2x32")
        with _out_of_memory(), jax.threefry_partitionable(True):
            self._constants = (
                jax.device_put(key, replicated),
                jax.device_put(model.params, jax.tree.map(param_sharding, model.params)),
                jax.device_put(request.set_timesteps(model.scheduler), replicated),
            )
            draw = _drawing(model, (self.size, *model.sample_shape), request.dtype)
            jitted = jax.jit(draw, out_shardings=self._batch_sharding)
            batch = self._inputs(np.zeros(1, np.uint32))
            self.compiled = jitted.lower(*self._constants, *batch).compile()

    def batches(self, indices: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yields the images of each batch, u8[n, H, W, C]; the next one is computed meanwhile.

        Args:
            indices: the numbers of the samples of each batch, u32[n], n being at most `size`. A
                smaller batch is filled up rather than compiled for.

        Raises:
            ValueError: if a sample is not finite, or a device has too little memory.
        """
        with _out_of_memory():
            computing = deque()
            for batch in indices:
                computing.append((batch, self.compiled(*self._constants, *self._inputs(batch))))
                if len(computing) > 1:
                    yield _fetch(*computing.popleft())
            for batch, outputs in computing:
                yield _fetch(batch, outputs)

    def _inputs(self, indices: np.ndarray) -> tuple[jax.Array, jax.Array | None]:
        """A whole batch of samples' numbers and classes, on the devices."""
        filled = np.resize(indices, self.size)
        labels = self._request.labels_of(filled)
        return jax.device_put((filled, labels), self._batch_sharding)


def _drawing(model: Model, shape: tuple[int, ...], dtype: Any):
    """Returns the function that the devices run: samples of these numbers, as pixels."""

    def draw(key, params, state, indices, labels):
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, indices)
        cond = {} if labels is None else {"class_labels": labels}
        x = sample(
            keys,
            model.apply_fn,
            params,
            model.scheduler,
            shape,
            state=state,
            cond=cond,
            dtype=dtype,
        )
        return to_uint8(x), jnp.isfinite(x).all(axis=range(1, x.ndim))

    return draw


def _param_sharding(leaf: Any, mesh: Mesh) -> NamedSharding:
    """Divides a parameter along its largest axis that the devices divide, if there is one."""
    axes = [axis for axis, size in enumerate(leaf.shape) if size and size % mesh.size == 0]
    largest = max(axes, key=lambda axis: leaf.shape[axis], default=None)
    spec = [AXIS if axis == largest else None for axis in range(leaf.ndim)]
    return NamedSharding(mesh, PartitionSpec(*spec))


def _fetch(indices: np.ndarray, outputs: tuple[jax.Array, jax.Array]) -> np.ndarray:
    """Waits for a batch, and returns its images without what only filled it up."""
    images = np.asarray(outputs[0])[: len(indices)]
    finite = np.asarray(outputs[1])[: len(indices)]
    if not finite.all():
        raise ValueError(
            f"sample number {indices[finite.argmin()]} is not finite; "
            "the model or its dtype is broken"
        )
    return images


@contextlib.contextmanager
def _out_of_memory():
    """Turns errors of the device into one line, with the way out where there is one."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        message = str(error).splitlines()[0]
        if "RESOURCE_EXHAUSTED" in str(error):
            message += "; a smaller batch_size needs less memory"
        raise ValueError(message) from None


def regroup(arrays: Iterable[np.ndarray], lengths: Iterable[int]) -> Iterator[np.ndarray]:
    """Yields the rows of arrays, in their order, as arrays of other lengths.

    The last one may be shorter, where the rows end.
    """
    arrays = iter(arrays)
    held = []
    for length in lengths:
        while sum(map(len, held)) < length and (array := next(arrays, None)) is not None:
            held.append(array)
        if not held:
            return
        rows = held[0] if len(held) == 1 else np.concatenate(held)
        yield rows[:length]
        held = [rows[length:]] if len(rows) > length else []

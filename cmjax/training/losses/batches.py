"""What a batch holds: data, and what the network is conditioned on."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cmjax.configs import shown
from cmjax.meshes import batch_sharded_alike
from cmjax.training.losses.base import Batch


def split_batch(batch: Batch) -> tuple[jax.Array, dict[str, Any]]:
    """Returns (data `[B, ...]`, conditioning by name) of a batch.

    Raises:
        ValueError: if there are no data, if they are not floats, or if other values are not arrays
            of numbers, one for each sample.
    """
    if not isinstance(batch, Mapping) or "data" not in batch:
        has = sorted(batch) if isinstance(batch, Mapping) else type(batch).__name__
        raise ValueError(f'batch must be a mapping with "data", got {shown(has)}')

    # Noisy integers would be rounded to integers: a loss without a gradient.
    data = batch["data"]
    if not _is_array(data) or not jnp.issubdtype(data.dtype, jnp.floating) or data.ndim < 1:
        raise ValueError(
            f"batch['data'] must be floats [B, ...], got {_described(data)}; "
            "pixels become samples by x / 127.5 - 1"
        )
    if not all(data.shape):
        raise ValueError(
            "batch['data'] must be (B, ...) with sizes of at least 1, got shape "
            f"{data.shape}; leave out empty batches"
        )

    # All other arrays are conditioning: which names are valid is up to the network. A single value
    # would be broadcast to all samples without notice, so each sample must have its own.
    cond = {name: value for name, value in batch.items() if name != "data"}
    for name, value in cond.items():
        if not isinstance(name, str):
            raise ValueError(f"batch must map names to arrays, got the name {shown(name)}")
        for leaf in jax.tree.leaves(value):
            if not _is_array(leaf) and not isinstance(leaf, int | float):
                raise ValueError(
                    f"batch[{name!r}] must be an array of numbers, of NumPy or JAX, got "
                    f"{_described(leaf)}"
                )
            if jnp.shape(leaf)[:1] != data.shape[:1]:
                raise ValueError(
                    f"batch[{name!r}] must have one value for each of {len(data)} samples, "
                    f"got shape {jnp.shape(leaf)}"
                )
    arrays = batch_sharded_alike({"data": data, **cond})
    return arrays.pop("data"), arrays


def _is_array(value):
    """Whether a value of a batch is an array, or the shape of one, that JAX takes."""
    dtype = getattr(value, "dtype", None)
    if isinstance(value, np.ma.MaskedArray) or not hasattr(value, "shape"):
        return False
    if not isinstance(dtype, np.dtype):
        return isinstance(value, jax.Array)  # of keys

    # NumPy's may be text, dates, objects, bytes in the order of another machine or long doubles.
    is_number = dtype.kind == "b" or jnp.issubdtype(dtype, np.number)
    is_long = dtype.kind == "f" and dtype.itemsize > 8
    return is_number and dtype.isnative and not is_long


def _described(value):
    """What an error says of a value of a batch, with the way out for tensors of PyTorch."""
    dtype = getattr(value, "dtype", None)
    if dtype is None:
        return type(value).__name__
    if isinstance(value, np.ma.MaskedArray):
        return "a masked array, which becomes an array by .filled(0)"
    described = f"{dtype}{list(value.shape)}"
    if type(value).__module__.partition(".")[0] == "torch":
        return f"{described}, which becomes an array by .numpy()"
    return described

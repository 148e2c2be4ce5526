"""Checks that a sample depends neither on its batch nor on the devices that make it."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cmjax.random import key_of_seed, level_noise, sample_keys
from cmjax.sampling import sample
from cmjax.schedulers.base import Scheduler
from cmjax.testing.comparisons import assert_close, assert_equal, check


def assert_batch_invariant(
    apply_fn: Callable[..., jax.Array],
    params: Any,
    scheduler: Scheduler,
    shape: Sequence[int],
    *,
    tolerance: float = 1e-5,
    **options: Any,
) -> None:
    """Checks that a sample does not depend on the batch in which it is made.

    Sample *i* is compared as part of the whole batch, alone, and in batches of B - 1.

    Args:
        apply_fn: the network.
        params: its parameters.
        scheduler: the sampler.
        shape: of the whole batch, `(B, ...)`, B of at least 2.
        tolerance: relative and absolute, for samples; noise must be equal. Networks add up in
            another order at another batch size.
        **options: of `cmjax.sample`; per-sample ones (`cond`, `init`) are sliced with the batch.
    """
    key = key_of_seed(0)
    batch = shape[0]

    def run(start, stop):
        # Samples start..stop of the batch, with their part of the per-sample options.
        cut = {}
        for name in ("cond", "init"):
            if name in options:
                cut[name] = jax.tree.map(lambda a: a[start:stop], options[name])
        part_shape = (stop - start, *shape[1:])
        return sample(
            key,
            apply_fn,
            params,
            scheduler,
            part_shape,
            first_index=start,
            **{**options, **cut},
        )

    whole = run(0, batch)
    noise = level_noise(sample_keys(key, batch), 1, shape)

    # Each sample alone, then all but the last and all but the first.
    parts = [(i, i + 1) for i in range(batch)]
    parts += [(0, batch - 1), (1, batch)]
    for start, stop in parts:
        part = level_noise(
            sample_keys(key, stop - start, start), 1, (stop - start, *shape[1:])
        )
        assert_equal(part, noise[start:stop])
        assert_close(run(start, stop), whole[start:stop], rtol=tolerance, atol=tolerance)


def assert_device_invariant(
    apply_fn: Callable[..., jax.Array],
    params: Any,
    scheduler: Scheduler,
    shape: Sequence[int],
    *,
    tolerance: float = 1e-5,
    **options: Any,
) -> None:
    """Checks that samples are the same on one device and divided over several.

    Args:
        apply_fn: the network.
        params: its parameters.
        scheduler: the sampler.
        shape: of the whole batch, `(B, ...)`; the largest number of devices that divides B is used.
        tolerance: relative and absolute, for samples; noise must be equal. Networks add up in
            another order at another batch size.
        **options: of `cmjax.sample`.

    Raises:
        ValueError: if the batch cannot be divided over two or more devices of this process.
    """
    keys = sample_keys(key_of_seed(0), shape[0])
    devices = jax.local_devices()
    count = max(n for n in range(1, len(devices) + 1) if shape[0] % n == 0)
    if count == 1:
        raise ValueError(
            f"no two or more of {len(devices)} devices divide a batch of {shape[0]}; on a CPU set "
            "XLA_FLAGS=--xla_force_host_platform_device_count=8 before JAX starts"
        )

    def run(keys):
        samples = sample(keys, apply_fn, params, scheduler, shape, **options)
        return samples, level_noise(keys, 1, shape)

    # The keys are divided along the batch, and XLA divides the work by them.
    mesh = Mesh(np.array(devices[:count]), ("batch",))
    divided = NamedSharding(mesh, PartitionSpec("batch"))
    samples, noise = jax.jit(run, out_shardings=divided)(jax.device_put(keys, divided))
    used = len(samples.sharding.device_set)
    check(used == count, f"the samples are on {used} devices instead of {count}")

    # The same program on one device.
    expected, expected_noise = jax.jit(run)(keys)
    assert_equal(np.asarray(noise), np.asarray(expected_noise))
    assert_close(np.asarray(samples), np.asarray(expected), rtol=tolerance, atol=tolerance)

"""Checks that a scheduler or a model keeps cmjax's contract, and models whose samples are known exactly.

Every check raises AssertionError with what differed, or JAX's own error for what cannot be traced, and returns
nothing. They run on any scheduler that follows the `cmjax.Scheduler` protocol, registered or your own:

    import cmjax.testing
    cmjax.testing.assert_scheduler_contract(MyScheduler())
"""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cmjax.arrays import ApplyFn, combine
from cmjax.parametrization import Parametrization, consistency_function
from cmjax.random import level_noise, sample_keys
from cmjax.sampling import sample
from cmjax.schedulers import SCHEDULERS, scheduler_from_config
from cmjax.schedulers.base import Scheduler, SchedulerState
from cmjax.schedulers.consistency import CMStochasticIterativeScheduler

_SHAPE = (4, 3, 2)  # samples of no particular meaning


def network_of(parametrization: Parametrization, x0_fn: Callable[..., jax.Array]) -> ApplyFn:
    """Returns the network whose x0 estimates are those of a function.

    With a function that is known in closed form this is a network that makes no mistakes: what
    samples then differ by is the sampler's doing.

    Args:
        parametrization: of the network; a scheduler's is `scheduler.parametrization`.
        x0_fn: `(params, x, sigma, **cond) -> x0`, for one sample `x = x0 + sigma z`, `[...]`, at
            the noise level sigma, f32[].

    Returns:
        `(params, x, t, **cond) -> model_output`, for batches.
    """

    def one(params, scaled, time, cond):
        alpha, sigma = parametrization.path(time)
        c_in, c_skip, c_out = parametrization.scalings(alpha, sigma)
        x = scaled.astype(jnp.float32) / c_in
        x0 = x0_fn(params, x / alpha, sigma / alpha, **cond)

        # x0 = c_skip x + c_out F, solved for F. Where c_out is 0, F does not matter.
        known = jnp.abs(c_out) > 1e-6
        output = (x0 - c_skip * x) / jnp.where(known, c_out, 1)
        return output.astype(scaled.dtype)

    def apply_fn(params, x, t, **cond):
        return jax.vmap(one, in_axes=(None, 0, 0, 0))(params, x, t, cond)

    return apply_fn


def gaussian_consistency_model(
    scheduler: CMStochasticIterativeScheduler, mean: Any = 0.0, std: Any = 0.5
) -> tuple[ApplyFn, dict[str, jax.Array]]:
    """Returns `(apply_fn, params)`, the exact consistency model of data distributed N(mean, std^2).

    The probability-flow ODE keeps `(x - mean) / sqrt(std^2 + sigma^2)` constant, hence
    `f(x, sigma) = mean + sqrt((std^2 + sigma_min^2) / (std^2 + sigma^2)) (x - mean)`. Samples have
    mean `mean` and variance `std^2 + sigma_min^2` at any number of steps; use a scheduler with
    `clip_denoised=False`.

    Args:
        scheduler: that the network is for.
        mean: of the data; a number, or an array that broadcasts against one sample.
        std: of the data, likewise.
    """

    def consistency(params, x, sigma):
        mean = jnp.broadcast_to(params["mean"], x.shape)
        variance = jnp.square(jnp.broadcast_to(params["std"], x.shape))
        final = variance + scheduler.sigma_min**2
        return mean + jnp.sqrt(final / (variance + jnp.square(sigma))) * (x - mean)

    params = {"mean": jnp.asarray(mean, jnp.float32), "std": jnp.asarray(std, jnp.float32)}
    return network_of(scheduler.parametrization, consistency), params


def assert_scheduler_contract(scheduler: Scheduler, num_steps: int = 3) -> None:
    """Runs every check below that needs a scheduler alone, at `num_steps` steps."""
    assert_config_round_trip(scheduler)
    assert_jit_equals_eager(scheduler, num_steps)
    assert_compiles_once(scheduler, num_steps)
    assert_vmap_equals_loop(scheduler, num_steps)
    assert_dtype_kept(scheduler, num_steps)
    assert_clean_end(scheduler, num_steps)
    assert_threads_agree(scheduler, num_steps)
    assert_batch_invariant(_network, None, scheduler, _SHAPE, num_inference_steps=num_steps)
    assert_step_equals_sample(scheduler, num_steps)
    assert_bare_sample_compiles_once(scheduler, num_steps)
    assert_differentiable(scheduler, num_steps)


def assert_config_round_trip(scheduler: Scheduler) -> None:
    """The config survives JSON, and gives an equal scheduler with an equal hash."""
    config = json.loads(json.dumps(scheduler.to_config()))
    kind = type(scheduler)
    read = scheduler_from_config if SCHEDULERS.get(kind.__name__) is kind else kind.from_config
    again = read(config)
    assert again == scheduler and hash(again) == hash(scheduler), (
        f"{again} differs from {scheduler}"
    )
    assert not jax.tree.leaves(scheduler), (
        "a scheduler must be a pytree without leaves: register_static it"
    )


def assert_jit_equals_eager(scheduler: Scheduler, num_steps: int = 3) -> None:
    """Every step gives the same under jit, the scheduler being an argument, and so does `set_timesteps`."""
    key = jax.random.key(0)
    state, x = _start(scheduler, num_steps)
    as_argument = jax.jit(lambda scheduler, state, x: _one_step(scheduler, key, state, x))
    for _ in range(state.num_steps):
        eager = _one_step(scheduler, key, state, x)
        chex.assert_trees_all_close(as_argument(scheduler, state, x), eager, rtol=1e-5, atol=1e-5)
        state, x = eager[0], eager[1].prev_sample
    chex.assert_trees_all_close(
        jax.jit(lambda: scheduler.set_timesteps(num_steps))(),
        scheduler.set_timesteps(num_steps),
        rtol=1e-6,
    )


def assert_compiles_once(scheduler: Scheduler, num_steps: int = 3) -> None:
    """One trace serves all steps, and all levels of the same count."""
    traces = []  # chex.assert_max_traces counts by name, and so over all calls of this check

    @jax.jit
    def step(key, state, x):
        traces.append(1)
        return _one_step(scheduler, key, state, x)

    for seed in range(2):
        state, x = _start(scheduler, num_steps)
        state = state.replace(
            sigmas=state.sigmas * (1 + seed / 8), timesteps=state.timesteps + seed
        )
        for _ in range(state.num_steps):
            state, output = step(jax.random.key(seed), state, x)
            x = output.prev_sample
    assert len(traces) == 1, f"traced {len(traces)} times for two runs of the same shape"


def assert_vmap_equals_loop(scheduler: Scheduler, num_steps: int = 3) -> None:
    """Batches of states, at different steps, and of keys advance as each would alone."""
    state, x = _start(scheduler, num_steps)
    states = [state.replace(step_index=state.step_index + i) for i in range(state.num_steps)]
    keys = jax.random.split(jax.random.key(1), state.num_steps)
    expected = [
        _one_step(scheduler, key, state, x) for key, state in zip(keys, states, strict=True)
    ]

    def stack(*leaves):
        return jnp.stack(leaves)

    stacked = jax.vmap(lambda key, state: _one_step(scheduler, key, state, x))(
        keys, jax.tree.map(stack, *states)
    )
    chex.assert_trees_all_close(stacked, jax.tree.map(stack, *expected), rtol=1e-5, atol=1e-5)


def assert_dtype_kept(scheduler: Scheduler, num_steps: int = 3) -> None:
    """Samples keep their dtype; levels and times stay float32; bfloat16 follows float32."""
    results = {}
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
        state, x = _start(scheduler, num_steps, dtype)
        for _ in range(state.num_steps):
            assert all(t.dtype == jnp.float32 for t in scheduler.time_inputs(state)), (
                "times must be float32"
            )
            state, output = _one_step(scheduler, jax.random.key(0), state, x)
            chex.assert_type(
                [output.prev_sample, output.denoised, scheduler.scale_input(state, x)], [dtype] * 3
            )
            x = output.prev_sample
        chex.assert_type([state.sigmas, state.timesteps], [jnp.float32, jnp.float32])
        results[dtype] = np.asarray(x, np.float32)
    error = np.abs(results[jnp.bfloat16] - results[jnp.float32]).max()
    size = max(1, np.abs(results[jnp.float32]).max())
    assert error <= 0.1 * size, (
        f"bfloat16 samples are off by {error:.2g} where float32 ones reach {size:.2g}"
    )


def assert_clean_end(scheduler: Scheduler, num_steps: int = 3) -> None:
    """The last step adds exactly no noise, also under jit."""
    state, x = _start(scheduler, num_steps)
    state = state.replace(step_index=state.step_index + state.num_steps - 1)
    for advance in (scheduler.advance, jax.jit(scheduler.advance)):
        quiet, loud = (advance(state, x, x / 2, jnp.full_like(x, z))[1] for z in (0.0, 1e6))
        chex.assert_tree_all_finite(loud)
        chex.assert_trees_all_equal(loud, quiet)


def assert_threads_agree(scheduler: Scheduler, num_steps: int = 3, threads: int = 8) -> None:
    """Runs in several threads on one scheduler do not disturb each other."""

    def run(seed):
        state, x = _start(scheduler, num_steps)
        for _ in range(state.num_steps):
            state, output = _one_step(scheduler, jax.random.key(seed), state, x)
            x = output.prev_sample
        return np.asarray(x)

    alone = [run(seed) for seed in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        together = list(pool.map(run, range(threads)))
    chex.assert_trees_all_equal(together, alone)


def assert_step_equals_sample(scheduler: Scheduler, num_steps: int = 3) -> None:
    """`cmjax.sample` gives what its parts give, called one by one with the noise of each level."""
    key = jax.random.key(3)
    expected = sample(key, _network, None, scheduler, _SHAPE, num_inference_steps=num_steps)
    keys = sample_keys(key, _SHAPE[0])
    state = _set_timesteps(scheduler, num_steps)
    x = scheduler.init_sample(state, level_noise(keys, 0, _SHAPE))
    state = scheduler.prepare(state, x)
    for i in range(state.num_steps):
        denoised = scheduler.denoise(state, scheduler.predict(_network, None, state, x), x)
        state, x = scheduler.advance(state, x, denoised, level_noise(keys, i + 1, _SHAPE))
    chex.assert_trees_all_close(x, expected, rtol=1e-5, atol=1e-5)


def assert_bare_sample_compiles_once(scheduler: Scheduler, num_steps: int = 3) -> None:
    """`cmjax.sample` outside of `jax.jit` traces a network once, whatever the key and parameters."""
    traces = []

    def network(gain, x, *times):
        traces.append(1)
        return gain * _network(None, x, *times)

    counts = []
    for seed in range(3):
        gain = jnp.float32(seed)
        key = jax.random.key(seed)
        sample(key, network, gain, scheduler, _SHAPE, num_inference_steps=num_steps)
        counts.append(len(traces))
    assert counts[0] == counts[-1], f"traced {counts} times after each of three calls"


def assert_differentiable(scheduler: Scheduler, num_steps: int = 3) -> None:
    """Gradients of a whole run are finite, by the network and by the noise levels.

    By the network in reverse and in forward mode, which agree, and by `state.sigmas` in reverse.
    """
    state = _set_timesteps(scheduler, num_steps)

    def run(gain, sigmas):
        def network(gain, x, *times):
            return gain * _network(None, x, *times)

        changed = state.replace(sigmas=sigmas)
        return sample(jax.random.key(0), network, gain, scheduler, _SHAPE, state=changed).sum()

    gain = jnp.float32(0.7)
    reverse = jax.grad(run, argnums=(0, 1))(gain, state.sigmas)
    chex.assert_tree_all_finite(reverse)
    forward = jax.jvp(lambda gain: run(gain, state.sigmas), (gain,), (jnp.float32(1),))[1]
    chex.assert_trees_all_close(forward, reverse[0], rtol=1e-3, atol=1e-3)


def assert_batch_invariant(
    apply_fn: Callable[..., jax.Array],
    params: Any,
    scheduler: Scheduler,
    shape: Sequence[int],
    *,
    tolerance: float = 1e-5,
    **options: Any,
) -> None:
    """Sample *i* is the same made in one batch, alone, or in ragged parts: to `tolerance`, its noise exactly.

    Args:
        apply_fn: the network.
        params: its parameters.
        scheduler: the sampler.
        shape: of the whole batch, `(B, ...)`, B of at least 2.
        tolerance: relative and absolute; networks sum in another order at another batch size.
        **options: for `cmjax.sample`; per-sample ones (`cond`, `init`) are cut with the batch.
    """
    key, batch = jax.random.key(0), shape[0]

    def run(start, stop):
        cut = {
            name: jax.tree.map(lambda a: a[start:stop], options[name])
            for name in ("cond", "init")
            if name in options
        }
        part_shape = (stop - start, *shape[1:])
        return sample(
            key, apply_fn, params, scheduler, part_shape, first_index=start, **{**options, **cut}
        )

    whole = run(0, batch)
    noise = level_noise(sample_keys(key, batch), 1, shape)
    for start, stop in [(i, i + 1) for i in range(batch)] + [(0, batch - 1), (1, batch)]:
        part = level_noise(sample_keys(key, stop - start, start), 1, (stop - start, *shape[1:]))
        chex.assert_trees_all_equal(part, noise[start:stop])
        chex.assert_trees_all_close(
            run(start, stop), whole[start:stop], rtol=tolerance, atol=tolerance
        )


def assert_device_invariant(
    apply_fn: Callable[..., jax.Array],
    params: Any,
    scheduler: Scheduler,
    shape: Sequence[int],
    *,
    tolerance: float = 1e-5,
    **options: Any,
) -> None:
    """Samples are the same made on one device and divided over several: to `tolerance`, their noise exactly.

    Args:
        apply_fn: the network.
        params: its parameters.
        scheduler: the sampler.
        shape: of the whole batch, `(B, ...)`; as many devices take part as divide B.
        tolerance: relative and absolute; networks sum in another order at another batch size.
        **options: for `cmjax.sample`.

    Raises:
        ValueError: if no two or more of this process's devices divide the batch.
    """
    keys, devices = sample_keys(jax.random.key(0), shape[0]), jax.local_devices()
    count = max(n for n in range(1, len(devices) + 1) if shape[0] % n == 0)
    if count == 1:
        raise ValueError(
            f"of {len(devices)} devices no two or more divide a batch of {shape[0]}; on a CPU set "
            "XLA_FLAGS=--xla_force_host_platform_device_count=8 before JAX starts"
        )

    def run(keys):
        return sample(keys, apply_fn, params, scheduler, shape, **options), level_noise(
            keys, 1, shape
        )

    mesh = Mesh(np.array(devices[:count]), ("batch",))
    divided = NamedSharding(mesh, PartitionSpec("batch"))
    made, noise = jax.jit(run, out_shardings=divided)(jax.device_put(keys, divided))
    assert len(made.sharding.device_set) == count
    expected, expected_noise = jax.jit(run)(keys)
    chex.assert_trees_all_equal(np.asarray(noise), np.asarray(expected_noise))
    chex.assert_trees_all_close(
        np.asarray(made), np.asarray(expected), rtol=tolerance, atol=tolerance
    )


def assert_gaussian_moments(
    scheduler: CMStochasticIterativeScheduler,
    mean: Any = 0.3,
    std: Any = 0.5,
    *,
    num_inference_steps: int = 1,
    num_samples: int = 100_000,
) -> None:
    """Samples of the exact model of N(mean, std^2) have its mean and variance, in every dimension.

    Within six standard errors, a false alarm in one of 5e8 comparisons, beside what is lost since sampling starts from
    noise alone: at sigma_max data are `mean + hypot(std, sigma_max) z`.

    Args:
        scheduler: with `clip_denoised=False` and `s_noise=1`.
        mean: of the data, a number or an array of a sample's shape.
        std: of the data, likewise.
        num_inference_steps: number of steps.
        num_samples: to draw.
    """
    apply_fn, params = gaussian_consistency_model(scheduler, mean, std)
    mean, std = np.broadcast_arrays(np.asarray(mean, np.float64), np.asarray(std, np.float64))
    shape = (num_samples, *mean.shape)
    x = jax.jit(
        lambda key: sample(
            key, apply_fn, params, scheduler, shape, num_inference_steps=num_inference_steps
        )
    )(jax.random.key(0))
    x = np.asarray(x, np.float64)
    variance = std**2 + scheduler.sigma_min**2
    start = variance**0.5 / scheduler.sigma_max
    error, bound = (
        abs(x.mean(axis=0) - mean),
        6 * variance**0.5 / num_samples**0.5 + abs(mean) * start,
    )
    assert (error < bound).all(), f"the mean is off by {error}, and may be by {bound}"
    error, bound = (
        abs(x.var(axis=0) - variance),
        variance * (6 * (2 / num_samples) ** 0.5 + start**2),
    )
    assert (error < bound).all(), f"the variance is off by {error}, and may be by {bound}"


def assert_boundary_condition(
    apply_fn: Callable[..., jax.Array],
    params: Any,
    scheduler: CMStochasticIterativeScheduler,
    shape: Sequence[int],
    **cond: jax.Array,
) -> None:
    """f(x, sigma_min) = x exactly, whatever the network says (Song et al. 2023, section 3)."""
    x = jax.random.normal(jax.random.key(0), tuple(shape))
    sigma = jnp.full(shape[0], scheduler.sigma_min, jnp.float32)
    chex.assert_trees_all_equal(
        consistency_function(apply_fn, params, scheduler, x, sigma, **cond), x
    )


def _network(params: None, x: jax.Array, *times: jax.Array) -> jax.Array:
    """A network that depends on all it is told, and only on its own sample."""
    del params
    return combine((0.3, jnp.sin(x)), *((1e-4 * t, jnp.ones_like(x)) for t in times))


def _start(
    scheduler: Scheduler, num_steps: int, dtype: Any = jnp.float32
) -> tuple[SchedulerState, jax.Array]:
    state = _set_timesteps(scheduler, num_steps)
    return scheduler.init(jax.random.key(7), state, _SHAPE, dtype)


def _set_timesteps(scheduler: Scheduler, num_steps: int) -> SchedulerState:
    """One compiled program, where eagerly each operation would be compiled on its own."""
    return jax.jit(lambda: scheduler.set_timesteps(num_steps))()


def _one_step(scheduler: Scheduler, key: jax.Array, state: SchedulerState, x: jax.Array) -> Any:
    return scheduler.step(key, state, scheduler.predict(_network, None, state, x), x)

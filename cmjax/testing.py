"""Checks for schedulers and models, and models whose samples are known in closed form.

A check returns nothing if it passes. Otherwise it raises AssertionError with a description of the
difference, or JAX's own error for code that cannot be traced. Checks accept any subclass of
`cmjax.schedulers.Scheduler`, registered or not:

    import cmjax.testing
    cmjax.testing.assert_scheduler_contract(MyScheduler())
"""

import functools
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
from cmjax.schedulers.table import TableState

# Of the samples in these checks. The sizes differ, so that mixed-up axes fail.
_SHAPE = (4, 3, 2)


def network_of(
    parametrization: Parametrization, x0_fn: Callable[..., jax.Array]
) -> ApplyFn:
    """Returns the network whose x0 estimates are those of a given function.

    With an exact function this is a network without errors, so any error of its samples is the
    sampler's.

    Args:
        parametrization: of the network, such as `scheduler.parametrization`.
        x0_fn: `(params, x, sigma, **cond) -> x0`, for one sample `x = x0 + sigma z`, `[...]`, at
            the noise level sigma, f32[].

    Returns:
        `(params, x, t, **cond) -> model_output`, for batches.
    """

    def one(params, scaled, time, cond):
        alpha, sigma = parametrization.path(time)
        c_in, c_skip, c_out = parametrization.scalings(alpha, sigma)

        # The sample x = alpha x0 + sigma z behind the network's input, then its x0 `[...]` in
        # EDM's terms.
        x = scaled.astype(jnp.float32) / c_in
        x0 = x0_fn(params, x / alpha, sigma / alpha, **cond)

        # x0 = c_skip x + c_out F, solved for F. Where c_out is 0, F has no effect.
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
    mean `mean` and variance `std^2 + sigma_min^2` for any number of steps. The scheduler must have
    `clip_denoised=False`.

    Args:
        scheduler: the scheduler that the network is for.
        mean: of the data; a number, or an array that broadcasts against one sample.
        std: standard deviation of the data, likewise.
    """

    def consistency(params, x, sigma):
        mean = jnp.broadcast_to(params["mean"], x.shape)
        variance = jnp.square(jnp.broadcast_to(params["std"], x.shape))

        # At sigma = sigma_min the factor is 1: the boundary condition holds.
        final = variance + scheduler.sigma_min**2
        return mean + jnp.sqrt(final / (variance + jnp.square(sigma))) * (x - mean)

    params = {"mean": jnp.asarray(mean, jnp.float32), "std": jnp.asarray(std, jnp.float32)}
    return network_of(scheduler.parametrization, consistency), params


def assert_scheduler_contract(scheduler: Scheduler, num_steps: int = 3) -> None:
    """Runs all checks that need nothing but a scheduler, with `num_steps` steps."""
    # From the config to whole runs, so that the first check to fail is the simplest.
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
    """Checks that the config survives JSON, and gives an equal scheduler with an equal hash."""
    config = json.loads(json.dumps(scheduler.to_config()))

    # A registered scheduler is also found by its name.
    kind = type(scheduler)
    if SCHEDULERS.get(kind.__name__) is kind:
        again = scheduler_from_config(config)
    else:
        again = kind.from_config(config)
    assert again == scheduler and hash(again) == hash(scheduler), (
        f"{again} differs from {scheduler}"
    )

    # jit takes a scheduler for static data only if it has no leaves.
    assert not jax.tree.leaves(scheduler), (
        "a scheduler must be a pytree without leaves: register_static it"
    )


def assert_jit_equals_eager(scheduler: Scheduler, num_steps: int = 3) -> None:
    """Checks that steps, and `set_timesteps`, give the same under jit as eagerly."""
    key = jax.random.key(0)
    state, x = _start(scheduler, num_steps)

    # The scheduler is an argument, which works only if jit can treat it as static data.
    @jax.jit
    def jitted(scheduler, state, x):
        return _one_step(scheduler, key, state, x)

    for _ in range(state.num_steps):
        next_state, output = _one_step(scheduler, key, state, x)
        chex.assert_trees_all_close(
            jitted(scheduler, state, x),
            (next_state, output),
            rtol=1e-5,
            atol=_rounding(state, x),
        )
        state = next_state
        x = output.prev_sample

    chex.assert_trees_all_close(
        _set_timesteps(scheduler, num_steps),
        scheduler.set_timesteps(num_steps),
        rtol=1e-6,
        atol=5e-7,  # weights are differences of numbers of size 1
    )


def assert_compiles_once(scheduler: Scheduler, num_steps: int = 3) -> None:
    """Checks that one trace serves all steps, and all runs of the same number of levels."""
    # Counted by hand: chex.assert_max_traces counts by name, and so over all calls of this check.
    traces = []

    @jax.jit
    def step(key, state, x):
        traces.append(1)
        return _one_step(scheduler, key, state, x)

    # Two runs at different levels and times.
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
    """Checks that a vmapped batch of states, at different steps, advances as each would alone."""
    state, x = _start(scheduler, num_steps)
    states = [
        state.replace(step_index=state.step_index + i) for i in range(state.num_steps)
    ]
    keys = jax.random.split(jax.random.key(1), state.num_steps)
    expected = [
        _one_step(scheduler, key, state, x) for key, state in zip(keys, states, strict=True)
    ]

    def stack(*leaves):
        return jnp.stack(leaves)

    # One state whose leaves have an axis for the states in front, `[N, ...]`.
    @jax.jit
    @jax.vmap
    def advance_all(key, state):
        return _one_step(scheduler, key, state, x)

    stacked = advance_all(keys, jax.tree.map(stack, *states))
    chex.assert_trees_all_close(
        stacked, jax.tree.map(stack, *expected), rtol=1e-5, atol=1e-5
    )


def assert_dtype_kept(scheduler: Scheduler, num_steps: int = 3) -> None:
    """Checks that samples keep their dtype, while noise levels and times stay float32.

    Samples in bfloat16 must also be close to those in float32.
    """
    results = {}
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
        state, x = _start(scheduler, num_steps, dtype)
        for _ in range(state.num_steps):
            # bfloat16 has 8 bits, too few to tell a thousand times apart.
            is_wide = [t.dtype == jnp.float32 for t in scheduler.time_inputs(state)]
            assert all(is_wide), "times must be float32"
            state, output = _one_step(scheduler, jax.random.key(0), state, x)
            chex.assert_type(
                [output.prev_sample, output.denoised, scheduler.scale_input(state, x)],
                [dtype] * 3,
            )
            x = output.prev_sample
        chex.assert_type([state.sigmas, state.timesteps], [jnp.float32, jnp.float32])
        results[dtype] = np.asarray(x, np.float32)

    # A tenth of the largest value, some 25 times bfloat16's relative rounding error of 1/256.
    error = np.abs(results[jnp.bfloat16] - results[jnp.float32]).max()
    size = max(1, np.abs(results[jnp.float32]).max())
    assert error <= 0.1 * size, (
        f"bfloat16 samples are off by {error:.2g} where float32 ones reach {size:.2g}"
    )


def assert_clean_end(scheduler: Scheduler, num_steps: int = 3) -> None:
    """Checks that the last step adds no noise at all, eagerly and under jit."""
    state, x = _start(scheduler, num_steps)
    state = state.replace(step_index=state.step_index + state.num_steps - 1)

    # Noise of size 1e6 would show even with a weight of one rounding error.
    for advance in (scheduler.advance, jax.jit(scheduler.advance)):
        _, quiet = advance(state, x, x / 2, jnp.zeros_like(x))
        _, loud = advance(state, x, x / 2, jnp.full_like(x, 1e6))
        chex.assert_tree_all_finite(loud)
        chex.assert_trees_all_equal(loud, quiet)


def assert_threads_agree(
    scheduler: Scheduler, num_steps: int = 3, threads: int = 4
) -> None:
    """Checks that runs of one scheduler in several threads do not affect each other."""

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
    """Checks that `cmjax.sample` equals a loop by hand, with the noise of each level."""
    key = jax.random.key(3)
    expected = sample(key, _network, None, scheduler, _SHAPE, num_inference_steps=num_steps)

    # The loop over the scheduler's own methods: level i's noise brings samples to level i.
    keys = sample_keys(key, _SHAPE[0])
    state = _set_timesteps(scheduler, num_steps)
    x = scheduler.init_sample(state, level_noise(keys, 0, _SHAPE))
    state = scheduler.prepare(state, x)
    tolerance = 0.0
    for i in range(state.num_steps):
        tolerance = max(tolerance, _rounding(state, x))
        denoised = scheduler.denoise(state, scheduler.predict(_network, None, state, x), x)
        state, x = scheduler.advance(state, x, denoised, level_noise(keys, i + 1, _SHAPE))
    chex.assert_trees_all_close(x, expected, rtol=1e-5, atol=tolerance)


def assert_bare_sample_compiles_once(scheduler: Scheduler, num_steps: int = 3) -> None:
    """Checks that `cmjax.sample` outside of jit compiles once for all keys and parameters."""
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

    # The first call may trace more than once, such as for the shapes of a scan; later ones never.
    assert counts[0] == counts[-1], f"traced {counts} times after each of three calls"


def assert_differentiable(scheduler: Scheduler, num_steps: int = 3) -> None:
    """Checks that gradients of a whole run are finite, by the network and by the noise levels.

    Reverse and forward mode must agree on the gradient by the network.
    """
    state = _set_timesteps(scheduler, num_steps)

    def run(gain, sigmas):
        def network(gain, x, *times):
            return gain * _network(None, x, *times)

        changed = state.replace(sigmas=sigmas)
        return sample(
            jax.random.key(0), network, gain, scheduler, _SHAPE, state=changed
        ).sum()

    # Reverse mode by both, and forward mode by the network's parameter, in one program.
    @jax.jit
    def gradients(gain, sigmas):
        reverse = jax.grad(run, argnums=(0, 1))(gain, sigmas)
        _, forward = jax.jvp(
            lambda gain: run(gain, sigmas), (gain,), (jnp.ones_like(gain),)
        )
        return reverse, forward

    reverse, forward = gradients(jnp.float32(0.7), state.sigmas)
    chex.assert_tree_all_finite(reverse)
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
    key = jax.random.key(0)
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
    keys = sample_keys(jax.random.key(0), shape[0])
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
    assert len(samples.sharding.device_set) == count

    # The same program on one device.
    expected, expected_noise = jax.jit(run)(keys)
    chex.assert_trees_all_equal(np.asarray(noise), np.asarray(expected_noise))
    chex.assert_trees_all_close(
        np.asarray(samples), np.asarray(expected), rtol=tolerance, atol=tolerance
    )


def assert_gaussian_moments(
    scheduler: CMStochasticIterativeScheduler,
    mean: Any = 0.3,
    std: Any = 0.5,
    *,
    num_inference_steps: int = 1,
    num_samples: int = 100_000,
) -> None:
    """Checks the mean and variance of samples of the exact model of N(mean, std^2).

    Both must be right in every dimension, within six standard errors (one false alarm in 5e8
    comparisons) plus the error of starting from noise alone: sampling starts from `sigma_max z`,
    while data at that level are `mean + sqrt(std^2 + sigma_max^2) z`.

    Args:
        scheduler: with `clip_denoised=False` and `s_noise=1`.
        mean: of the data, a number or an array of a sample's shape.
        std: standard deviation of the data, likewise.
        num_inference_steps: number of steps.
        num_samples: number of samples to draw.
    """
    apply_fn, params = gaussian_consistency_model(scheduler, mean, std)
    mean, std = np.broadcast_arrays(
        np.asarray(mean, np.float64), np.asarray(std, np.float64)
    )
    shape = (num_samples, *mean.shape)

    # The moments are computed in float64: float32 sums of many samples round too much.
    x = jax.jit(
        lambda key: sample(
            key, apply_fn, params, scheduler, shape, num_inference_steps=num_inference_steps
        )
    )(jax.random.key(0))
    x = np.asarray(x, np.float64)

    # Samples end at sigma_min, with this variance. `start` is about the factor of f at sigma_max,
    # by which the first step shrinks the error of the start.
    variance = std**2 + scheduler.sigma_min**2
    start = variance**0.5 / scheduler.sigma_max

    # The mean's standard error is std / sqrt(num_samples).
    error = abs(x.mean(axis=0) - mean)
    bound = 6 * variance**0.5 / num_samples**0.5 + abs(mean) * start
    assert (error < bound).all(), f"the mean is off by {error}, and may be by {bound}"

    # The variance's is variance * sqrt(2 / num_samples).
    error = abs(x.var(axis=0) - variance)
    bound = variance * (6 * (2 / num_samples) ** 0.5 + start**2)
    assert (error < bound).all(), f"the variance is off by {error}, and may be by {bound}"


def assert_boundary_condition(
    apply_fn: Callable[..., jax.Array],
    params: Any,
    scheduler: CMStochasticIterativeScheduler,
    shape: Sequence[int],
    **cond: jax.Array,
) -> None:
    """Checks that f(x, sigma_min) = x exactly, for any network (Song et al. 2023, section 3)."""
    x = jax.random.normal(jax.random.key(0), tuple(shape))
    sigma = jnp.full(shape[0], scheduler.sigma_min, jnp.float32)
    chex.assert_trees_all_equal(
        consistency_function(apply_fn, params, scheduler, x, sigma, **cond), x
    )


def _network(params: None, x: jax.Array, *times: jax.Array) -> jax.Array:
    """A network that depends on all of its inputs, each sample on its own."""
    del params

    # Bounded in x, so that long runs stay finite; times reach a thousand, hence the small factor.
    return combine((0.3, jnp.sin(x)), *((1e-4 * t, jnp.ones_like(x)) for t in times))


def _start(
    scheduler: Scheduler, num_steps: int, dtype: Any = jnp.float32
) -> tuple[SchedulerState, jax.Array]:
    """The state at the start of a run, and a first sample `dtype[_SHAPE]`."""
    state = _set_timesteps(scheduler, num_steps)
    return scheduler.init(jax.random.key(7), state, _SHAPE, dtype)


@functools.partial(jax.jit, static_argnums=1)
def _set_timesteps(scheduler: Scheduler, num_steps: int) -> SchedulerState:
    """The state of a run, made by one program that is compiled once for all checks."""
    # Eagerly, each operation would be compiled on its own, which takes longer.
    return scheduler.set_timesteps(num_steps)


def _rounding(state: SchedulerState, x: jax.Array) -> float:
    """The error that float32 may have in a step from x: 1e-5 of the size of the step's terms."""
    # eps = (x - alpha x0) / sigma magnifies rounding errors at low levels. Steps down weigh it with
    # less than sigma, steps up with more.
    magnified = 1.0
    if isinstance(state, TableState):
        magnified = abs(float(state.weights.eps[state.step_index] / state.sigma))
    return 1e-5 * max(1.0, float(jnp.max(jnp.abs(x))) * max(1.0, magnified))


def _one_step(
    scheduler: Scheduler, key: jax.Array, state: SchedulerState, x: jax.Array
) -> Any:
    """The next state, and the output of the step, with `_network`."""
    return scheduler.step(key, state, scheduler.predict(_network, None, state, x), x)

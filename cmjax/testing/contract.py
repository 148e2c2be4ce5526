"""The contract that every scheduler keeps."""

import dataclasses
import inspect
import json
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

from cmjax.random import key_of_seed, level_noise, sample_keys, split
from cmjax.sampling import sample
from cmjax.schedulers import SCHEDULERS, scheduler_from_config
from cmjax.schedulers.base import Scheduler, SchedulerState
from cmjax.testing.comparisons import (
    assert_close,
    assert_dtypes,
    assert_equal,
    assert_finite,
    check,
)
from cmjax.testing.gradients import assert_differentiable
from cmjax.testing.invariance import assert_batch_invariant
from cmjax.testing.runs import (
    SHAPE,
    network_for,
    one_step,
    rounding,
    set_timesteps,
    start,
)


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
    network = network_for(scheduler)
    assert_batch_invariant(network, None, scheduler, SHAPE, num_inference_steps=num_steps)
    assert_step_equals_sample(scheduler, num_steps)
    assert_bare_sample_compiles_once(scheduler, num_steps)
    assert_differentiable(scheduler, num_steps)


def assert_config_round_trip(scheduler: Scheduler) -> None:
    """Checks that the config survives JSON, and gives an equal scheduler with an equal hash."""
    _check_options_are_fields(scheduler)
    config = json.loads(json.dumps(scheduler.to_config()))

    # A registered scheduler is also found by its name.
    kind = type(scheduler)
    if SCHEDULERS.get(kind.__name__) is kind:
        again = scheduler_from_config(config)
    else:
        again = kind.from_config(config)
    same = again == scheduler and hash(again) == hash(scheduler)
    check(same, f"{again} differs from {scheduler}")

    # jit takes a scheduler for static data only if it has no leaves.
    check(
        not jax.tree.leaves(scheduler),
        "a scheduler must be a pytree without leaves: register_static it",
    )


def _check_options_are_fields(scheduler: Scheduler) -> None:
    """Checks that what a class declares as `name: type` is an option, which configs have."""
    kind = type(scheduler)
    fields = {field.name for field in dataclasses.fields(scheduler)}  # type: ignore[arg-type]
    for name, hint in inspect.get_annotations(kind).items():
        if name.startswith("_") or any(
            word in str(hint) for word in ("ClassVar", "InitVar")
        ):
            continue
        check(
            name in fields,
            f"{kind.__name__}.{name} is no field; decorate the class with "
            "@dataclasses.dataclass(frozen=True)",
        )


def assert_jit_equals_eager(scheduler: Scheduler, num_steps: int = 3) -> None:
    """Checks that steps, and `set_timesteps`, give the same under jit as eagerly."""
    key = key_of_seed(0)
    state, x = start(scheduler, num_steps)

    # The scheduler is an argument, which works only if jit can treat it as static data.
    @jax.jit
    def step(scheduler, key, state, x):
        return one_step(scheduler, key, state, x)

    for _ in range(state.num_steps):
        next_state, output = one_step(scheduler, key, state, x)
        assert_close(
            step(scheduler, key, state, x),
            (next_state, output),
            rtol=1e-5,
            atol=rounding(state, x),
        )
        state = next_state
        x = output.prev_sample

    assert_close(
        set_timesteps(scheduler, num_steps),
        scheduler.set_timesteps(num_steps),
        rtol=1e-6,
        atol=5e-7,  # weights are differences of numbers of size 1
    )


def assert_compiles_once(scheduler: Scheduler, num_steps: int = 3) -> None:
    """Checks that one trace serves all steps, and all runs of the same number of levels."""
    traces = []

    @jax.jit
    def step(key, state, x):
        traces.append(1)
        return one_step(scheduler, key, state, x)

    # Two runs at different levels and times.
    for seed in range(2):
        state, x = start(scheduler, num_steps)
        state = state.replace(
            sigmas=state.sigmas * (1 + seed / 8), timesteps=state.timesteps + seed
        )
        for _ in range(state.num_steps):
            state, output = step(key_of_seed(seed), state, x)
            x = output.prev_sample
    count = len(traces)
    check(count == 1, f"traced {count} times for two runs of the same shape")


def assert_vmap_equals_loop(scheduler: Scheduler, num_steps: int = 3) -> None:
    """Checks that a vmapped batch of states, at different steps, advances as each would alone."""
    state, x = start(scheduler, num_steps)
    states = [
        state.replace(step_index=state.step_index + i) for i in range(state.num_steps)
    ]
    keys = split(key_of_seed(1), state.num_steps)
    expected = [
        one_step(scheduler, key, state, x) for key, state in zip(keys, states, strict=True)
    ]

    def stack(*leaves):
        return jnp.stack(leaves)

    # One state whose leaves have an axis for the states in front, `[N, ...]`.
    @jax.jit
    @jax.vmap
    def advance_all(key, state):
        return one_step(scheduler, key, state, x)

    stacked = advance_all(keys, jax.tree.map(stack, *states))
    tolerance = max(rounding(state, x) for state in states)
    assert_close(stacked, jax.tree.map(stack, *expected), rtol=1e-5, atol=tolerance)


def assert_dtype_kept(scheduler: Scheduler, num_steps: int = 3) -> None:
    """Checks that samples keep their dtype, while noise levels and times stay float32.

    Samples in bfloat16 must also be close to those in float32.
    """
    results = {}
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
        state, x = start(scheduler, num_steps, dtype)
        for _ in range(state.num_steps):
            # bfloat16 has 8 bits, too few to tell a thousand times apart.
            for time in scheduler.time_inputs(state):
                assert_dtypes(jnp.float32, time=time)
            scaled = scheduler.scale_input(state, x)
            model_output = scheduler.predict(network_for(scheduler), None, state, x)
            estimate = scheduler.denoise(state, model_output, x)
            state, output = one_step(scheduler, key_of_seed(0), state, x)
            assert_dtypes(
                dtype,
                scaled=scaled,
                estimate=estimate,
                prev_sample=output.prev_sample,
                denoised=output.denoised,
            )
            x = output.prev_sample
        assert_dtypes(jnp.float32, sigmas=state.sigmas, timesteps=state.timesteps)
        results[dtype] = np.asarray(x, np.float32)

    # A tenth of the largest value, some 25 times bfloat16's relative rounding error of 1/256.
    error = np.abs(results[jnp.bfloat16] - results[jnp.float32]).max()
    size = max(1, np.abs(results[jnp.float32]).max())
    check(
        error <= 0.1 * size,
        f"bfloat16 samples are off by {error:.2g} where float32 ones reach {size:.2g}",
    )


def assert_clean_end(scheduler: Scheduler, num_steps: int = 3) -> None:
    """Checks that the last step adds no noise at all, eagerly and under jit."""
    state, x = start(scheduler, num_steps)
    state = state.replace(step_index=state.step_index + state.num_steps - 1)

    # Noise of size 1e6 would show even with a weight of one rounding error.
    for advance in (scheduler.advance, jax.jit(scheduler.advance)):
        _, quiet = advance(state, x, x / 2, jnp.zeros_like(x))
        _, loud = advance(state, x, x / 2, jnp.full_like(x, 1e6))
        assert_finite(loud)
        moved = float(jnp.max(jnp.abs(loud - quiet)))
        check(
            moved == 0, f"the last step adds noise: {moved / 1e6:g} times standard normal"
        )
        assert_equal(loud, quiet)


def assert_threads_agree(
    scheduler: Scheduler, num_steps: int = 3, threads: int = 2
) -> None:
    """Checks that runs of one scheduler in several threads do not affect each other."""

    def run(seed):
        state, x = start(scheduler, num_steps)
        for _ in range(state.num_steps):
            state, output = one_step(scheduler, key_of_seed(seed), state, x)
            x = output.prev_sample
        return np.asarray(x)

    alone = [run(seed) for seed in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        together = list(pool.map(run, range(threads)))
    assert_equal(together, alone)


def assert_step_equals_sample(scheduler: Scheduler, num_steps: int = 3) -> None:
    """Checks that `cmjax.sample` equals a loop by hand, with the noise of each level.

    The x0 estimates must be those of the loop, too, and under a constraint what it returns.
    """
    key = key_of_seed(3)
    network = network_for(scheduler)
    options = {"num_inference_steps": num_steps, "return_trajectory": True}
    expected, steps = sample(key, network, None, scheduler, SHAPE, **options)

    # The loop over the scheduler's own methods: level i's noise brings samples to level i.
    keys = sample_keys(key, SHAPE[0])
    state = set_timesteps(scheduler, num_steps)
    x = scheduler.init_sample(state, level_noise(keys, 0, SHAPE))
    state = scheduler.prepare(state, x)
    _check_constrained(scheduler, key, state, x)
    tolerance = 0.0
    for i in range(state.num_steps):
        tolerance = max(tolerance, rounding(state, x))
        model_output = scheduler.predict(network, None, state, x)
        denoised = scheduler.denoise(state, model_output, x)
        assert_close(denoised, steps.denoised[i], rtol=1e-5, atol=tolerance)
        state, x = scheduler.advance(state, x, denoised, level_noise(keys, i + 1, SHAPE))
    assert_close(x, expected, rtol=1e-5, atol=tolerance)


def _check_constrained(
    scheduler: Scheduler, key: jax.Array, state: SchedulerState, x: jax.Array
) -> None:
    """Checks that the x0 estimate of a step is what a constraint returns."""
    model_output = scheduler.predict(network_for(scheduler), None, state, x)
    _, output = scheduler.step(
        key, state, model_output, x, constrain=lambda x0: jnp.full_like(x0, 0.25)
    )
    kept = bool((output.denoised == 0.25).all())
    check(kept, f"under a constraint of 0.25, x0 is {output.denoised}")


def assert_bare_sample_compiles_once(scheduler: Scheduler, num_steps: int = 3) -> None:
    """Checks that `cmjax.sample` outside of jit compiles once for all keys and parameters."""
    network = network_for(scheduler)
    traces = []

    def scaled(gain, x, *times):
        traces.append(1)
        return gain * network(None, x, *times)

    counts = []
    for seed in range(3):
        gain = jnp.float32(seed)
        key = key_of_seed(seed)
        sample(key, scaled, gain, scheduler, SHAPE, num_inference_steps=num_steps)
        counts.append(len(traces))

    # The first call may trace more than once, such as for the shapes of a scan; later ones never.
    same = counts[0] == counts[-1]
    check(same, f"traced {counts} times after each of three calls")

"""Samples of p(x0 | known): projection of the noise at each of several falling levels.

For normal data, where f is linear, the samples have exactly the conditional distribution.
`cmjax.editing.noise_projection` has the step of one level and its derivation.
"""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from cmjax.arrays import ApplyFn, as_reals, known_reals
from cmjax.configs import is_int, shown
from cmjax.constraints import Constraint
from cmjax.constraints.composition import certain, kept_in_part, measurable
from cmjax.editing.noise_projection import PosteriorStep, Problem, project_noise
from cmjax.meshes import batch_sharded_alike, carry_as_returned, check_devices
from cmjax.networks import check_network, num_classes, parse_cond
from cmjax.parametrization import consistency_function
from cmjax.parametrization.conversion import one_time_parametrization
from cmjax.random import as_key, level_noise, sample_index, sample_keys
from cmjax.sampling_inputs import check_guided, check_outputs, check_params
from cmjax.schedulers.checks import apply_constraint
from cmjax.tracing import cached_unless_tracing, plain_or_pytree

# Number of compiled loops to keep, for calls outside of `jax.jit`; each holds its executable.
_PROGRAMS = 64

# Each iteration takes the memory of one more array like the samples.
_MOST_ITERATIONS = 100

# Candidates are tried one after the other: each takes a network call in each step, but no memory.
_MOST_CANDIDATES = 10_000

# The first level of paths that begin with noise alone, whose ratio of noise to signal is infinite.
_HIGHEST = 1e3

# Measurements have keys of their own: those of the sample, folded with numbers counted down from
# here, which no draw of a level reaches.
_MEASUREMENTS = np.uint32(2**32 - 1)


def sample_posterior(
    key: jax.Array,
    apply_fn: ApplyFn,
    params: Any,
    scheduler: Any,
    constraint: Constraint,
    shape: tuple[int, ...],
    state: Any,
    *,
    dtype: np.dtype,
    first_index: int | jax.Array = 0,
    sigma_y: ArrayLike = 0.0,
    iterations: int = 3,
    candidates: int = 16,
    cond: Any = None,
    return_trajectory: bool = False,
    callback: Callable[[Any, PosteriorStep], None] | None = None,
) -> Any:
    """Samples under a constraint; `cmjax.editing.edit` explains the arguments.

    Outside of `jax.jit` it compiles its loop, and reuses the program, as `cmjax.sample` does.

    Args:
        key: one key, or one per sample.
        apply_fn: a consistency model.
        params: of the network.
        scheduler: tells what the network means.
        constraint: x0 -> x0.
        shape: of the samples.
        state: the levels, from `scheduler.set_timesteps`.
        dtype: of the samples.
        first_index: global index of the first sample.
        sigma_y: standard deviation of the noise of the known values.
        iterations: number of products with the Jacobian and with its transpose, in each step.
        candidates: number of draws of noise in each step, of which one is moved.
        cond: per-sample conditioning.
        return_trajectory: also return what each step found.
        callback: called on the host as `callback(step_index, PosteriorStep)`.
    """
    check_network(apply_fn)
    check_outputs(return_trajectory, callback)
    one_time_parametrization("scheduler", scheduler)
    warning = check_guided(apply_fn, scheduler, state.num_steps)
    if warning:
        warnings.warn(warning, stacklevel=3)
    for name, value, most in (
        ("iterations", iterations, _MOST_ITERATIONS),
        ("candidates", candidates, _MOST_CANDIDATES),
    ):
        if not is_int(value, 1, most):
            raise ValueError(
                f"{name} must be an integer from 1 to {most}, got {shown(value)}"
            )

    # The data of the program: it is not compiled again for other values.
    noise = _parse_noise(sigma_y, constraint, shape)
    plain_constraint, constraint = plain_or_pytree(constraint)
    inputs = {
        "key": as_key(key),
        "params": params,
        "sigmas": _noise_to_signal(state),
        "cond": parse_cond(cond, shape[0], num_classes(apply_fn)),
        "constraint": constraint,
        "sigma_y": noise,
        "first_index": sample_index(first_index, shape[0]),
    }

    # What the program is compiled for.
    options = (shape, dtype, int(iterations), int(candidates), return_trajectory, callback)
    program = cached_unless_tracing(
        _compiled, apply_fn, scheduler, *options, plain_constraint
    )
    try:
        return program(**inputs)
    except (TypeError, ValueError, OverflowError):
        check_params(params)
        check_devices(inputs)
        raise


@functools.lru_cache(_PROGRAMS, typed=True)
def _compiled(
    apply_fn,
    scheduler,
    shape,
    dtype,
    iterations,
    candidates,
    return_trajectory,
    callback,
    plain_constraint,
):
    """The jitted loop; inlined, so that under the caller's own `jit` it is part of that program."""
    # Everything except the network is computed in at least float32.
    working = jnp.float64 if dtype == jnp.float64 else jnp.float32

    def loop(key, params, sigmas, cond, constraint, sigma_y, first_index):
        keys = sample_keys(key, shape[0], first_index)
        keys, cond = batch_sharded_alike((keys, cond))

        # A constraint that is a plain function is compiled in; one that holds arrays is data.
        if constraint is None:
            constraint = plain_constraint

        # f(x, sigma). The network gets x in the dtype that was asked for.
        def consistency(x, sigma):
            levels = jnp.broadcast_to(sigma, shape[:1])
            x0 = consistency_function(
                apply_fn, params, scheduler, x.astype(dtype), levels, **cond
            )
            return x0.astype(working)

        # Soft edges of a mask are blended at the end. Until then they are not known.
        problem = Problem(
            consistency=consistency,
            bound=scheduler.bound,
            constraint=certain(constraint),
            sigma_y=sigma_y,
            iterations=iterations,
            candidates=candidates,
        )
        start = _first_pair(constraint, sigma_y, shape, working)

        # One level. Its draws of noise depend on the keys and the level alone.
        def project(pair, level):
            index, sigma = level

            def draw(number):
                return _draw(keys, (1 + candidates) * index + number, pair)

            pair, step = project_noise(problem, pair, draw, sigma)
            step = step._replace(denoised=step.denoised.astype(dtype))
            if callback is not None:
                jax.debug.callback(callback, index, step)
            return pair, step if return_trajectory else None

        # On a mesh with explicit axes, scan needs its carry divided as `project` returns it.
        indices = jnp.arange(sigmas.shape[0])
        first_level = (indices[0], sigmas[0])
        start = carry_as_returned(lambda pair: project(pair, first_level)[0], start)
        (x0, _), trajectory = jax.lax.scan(project, start, (indices, sigmas))

        # The constraint once more, in the dtype of the samples: known values are then exact. Values
        # with noise are met up to that noise, so that only soft edges are left to blend.
        x0 = x0.astype(dtype)
        at_the_end = constraint if sigma_y is None else kept_in_part(constraint)
        x0 = apply_constraint(at_the_end, x0)
        return (x0, trajectory) if return_trajectory else x0

    return jax.jit(loop, inline=True)


def _first_pair(constraint, sigma_y, shape, dtype):
    """The pair of x0 and the noise of the measurements before the first level, both 0.

    The noise of that level hides them.
    """
    samples = jnp.zeros(shape, dtype)
    measured = ()
    if sigma_y is not None:
        measured = constraint.measure(samples)
    return batch_sharded_alike((samples, jax.tree.map(jnp.zeros_like, measured)))


def _noise_to_signal(state: Any) -> jax.Array:
    """The ratios of noise to signal at the network calls of a run, f32[N], at most `_HIGHEST`."""
    # sigma / alpha, where alpha is taken to be at least sigma / _HIGHEST.
    alphas = getattr(state, "alphas", jnp.ones_like(state.sigmas))
    ratios = state.sigmas / jnp.maximum(alphas, state.sigmas / _HIGHEST)
    return ratios[:-1]


def _parse_noise(sigma_y, constraint, shape):
    """The standard deviation of the measurement's noise, f32[] or f32[B]; None if there is none."""
    value = as_reals("sigma_y", sigma_y).astype(jnp.float32)
    known = known_reals("sigma_y", sigma_y)
    positive = known is None or np.all(np.isfinite(known) & (known > 0))
    if known is not None and np.all(known == 0):
        return None
    if not positive or value.shape not in ((), shape[:1]):
        raise ValueError(
            f"sigma_y must be 0, or positive: a number, or one per sample {shape[:1]}; "
            f"got {shown(sigma_y)}"
        )
    measurable(constraint)
    return value


def _draw(keys, number, like):
    """Draw `number` of standard normal noise like a pytree of arrays `[B, ...]`."""
    leaves, structure = jax.tree.flatten(like)
    drawn = []
    for place, leaf in enumerate(leaves):
        # The first array is the sample, which draws from its own key, as in `cmjax.sample`.
        own = keys
        if place:
            own = jax.vmap(jax.random.fold_in, in_axes=(0, None))(
                keys, _MEASUREMENTS - np.uint32(place)
            )
        drawn.append(level_noise(own, number, leaf.shape, leaf.dtype))
    return jax.tree.unflatten(structure, drawn)

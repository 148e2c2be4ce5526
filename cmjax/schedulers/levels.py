"""Noise levels: the grids that samplers share, and the levels that callers write down."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cmjax.arrays import concrete
from cmjax.configs import is_int
from cmjax.parametrization import Parametrization


class Levels(NamedTuple):
    """The noise levels of a run, `x = alpha x0 + sigma z`.

    Attributes:
        times: f32[N], what the network is told at each level but the last.
        alphas: f32[N+1], signal levels; the last is where sampling ends.
        sigmas: f32[N+1], noise levels, likewise.
    """

    times: jax.Array
    alphas: jax.Array
    sigmas: jax.Array


def exploding_levels(
    parametrization: Parametrization, sigmas: jax.Array, times: jax.Array | None = None
) -> Levels:
    """Returns levels with alpha = 1.

    Args:
        parametrization: of the network, which says what it is told.
        sigmas: f32[N+1].
        times: f32[N], what the network is told; None to ask the parametrization.
    """
    times = parametrization.time(sigmas[:-1]) if times is None else times
    return Levels(times, jnp.ones_like(sigmas), sigmas)


def karras_sigmas(ramp: Any, sigma_min: Any, sigma_max: Any, rho: float) -> Any:
    """Returns the noise levels at `ramp` in [0, 1], 0 being sigma_max.

    Equation 5 of Karras et al. 2022.
    """
    low = sigma_min ** (1 / rho)
    high = sigma_max ** (1 / rho)
    return (high + ramp * (low - high)) ** rho


def exponential_sigmas(ramp: Any, sigma_min: Any, sigma_max: Any) -> Any:
    """Returns the noise levels at `ramp` in [0, 1], 0 being sigma_max, linear in log sigma."""
    return sigma_max * (sigma_min / sigma_max) ** ramp


def respaced(sigmas: jax.Array, *, karras: bool, exponential: bool, rho: float = 7.0) -> jax.Array:
    """Returns as many noise levels with the same ends, f32[N], on another grid if one is asked for.

    Args:
        sigmas: f32[N], descending.
        karras: equation 5 of Karras et al. 2022.
        exponential: equal steps of log sigma.
        rho: curvature of the Karras grid.
    """
    steps = jnp.asarray(ramp(len(sigmas)), jnp.float32)
    if karras:
        return karras_sigmas(steps, sigmas[-1], sigmas[0], rho)
    if exponential:
        return exponential_sigmas(steps, sigmas[-1], sigmas[0])
    return sigmas


def ramp(n: int) -> np.ndarray:
    """Returns n equally spaced numbers from 0 to 1, f64[n]; the single one of n = 1 is 0."""
    return np.linspace(0, 1, n)


def append_zero(sigmas: jax.Array) -> jax.Array:
    """Returns the levels with a final 0, where sampling ends without noise."""
    return jnp.append(sigmas, jnp.zeros(1, sigmas.dtype))


def exactly_one(**given: Any) -> tuple[str, Any]:
    """Returns the name and value of the only argument that is not None.

    Raises:
        ValueError: if it is not the only one, or there is none.
    """
    named = {name: value for name, value in given.items() if value is not None}
    if len(named) != 1:
        *most, last = given
        found = " and ".join(named) or "none"
        raise ValueError(f"give exactly one of {', '.join(most)} and {last}, got {found}")
    return next(iter(named.items()))


def check_num_steps(n: Any, most: int, limit: str, hint: str = "") -> int:
    """Returns `n` if it is an integer from 1 to `most`.

    Args:
        n: the value of `num_inference_steps`.
        most: the largest that is allowed.
        limit: what that is called in the error.
        hint: ends the error.

    Raises:
        ValueError: otherwise.
    """
    if not is_int(n, 1) or n > most:
        raise ValueError(
            f"num_inference_steps must be an integer from 1 to {limit}={most}, got {n!r}{hint}"
        )
    return int(n)


def parse_levels(
    name: str, values: Any, low: float, high: float, *, integers: bool = False, hint: str = ""
) -> jax.Array:
    """Returns levels that a caller wrote down, f32[N]; traced values are taken on trust.

    Args:
        name: of the argument.
        values: the levels.
        low: the lowest that is allowed.
        high: the highest.
        integers: whether the levels are indices.
        hint: ends the error of a wrong type.

    Raises:
        ValueError: unless they are a list of numbers in [low, high], in strictly descending order.
    """
    array = values if hasattr(values, "dtype") else np.asarray(values)
    is_number = jnp.issubdtype(array.dtype, jnp.integer)
    if not integers:
        is_number = is_number or jnp.issubdtype(array.dtype, jnp.floating)
    if np.ndim(array) != 1 or not is_number:
        kind = "integers" if integers else "numbers"
        raise ValueError(f"{name} must be a list of {kind}, got {values!r}{hint}")
    known = concrete(array)
    if known is not None:
        _check_descending(name, known, low, high)
    return jnp.asarray(array).astype(jnp.float32)


def _check_descending(name: str, values: np.ndarray, low: float, high: float) -> None:
    """Compares as float32, as the bounds may be: 0.1 is a valid level where sigma_max is 0.1."""
    with np.errstate(over="ignore"):  # infinite, and so beyond any bound
        rounded = np.float32(values)
    inside = (np.float32(low) <= rounded) & (rounded <= np.float32(high))
    if rounded.size == 0 or not np.all(inside):  # NaN is not inside
        raise ValueError(f"{name} must lie in [{low:g}, {high:g}], got {values.tolist()}")
    if np.any(np.diff(rounded) >= 0):
        raise ValueError(f"{name} must be strictly descending, got {values.tolist()}")

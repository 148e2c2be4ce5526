"""Noise levels: the grids that samplers share, and the levels that callers write down."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cmjax.arrays import concrete
from cmjax.configs import is_int


def karras_sigmas(ramp: Any, sigma_min: Any, sigma_max: Any, rho: float) -> Any:
    """Returns the noise levels at `ramp` in [0, 1], 0 being sigma_max (Karras et al. 2022, equation 5)."""
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return (high + ramp * (low - high)) ** rho


def exponential_sigmas(ramp: Any, sigma_min: Any, sigma_max: Any) -> Any:
    """Returns the noise levels at `ramp` in [0, 1], 0 being sigma_max, equally spaced in log sigma."""
    return sigma_max * (sigma_min / sigma_max) ** ramp


def ramp(n: int) -> np.ndarray:
    """Returns n equally spaced numbers from 0 to 1, f64[n]; the single one of n = 1 is 0."""
    return np.linspace(0, 1, n)


def exactly_one(**given: Any) -> tuple[str, Any]:
    """Returns the name and value of the only argument that is not None.

    Raises:
        ValueError: if it is not the only one, or there is none.
    """
    named = {name: value for name, value in given.items() if value is not None}
    if len(named) != 1:
        *most, last = given
        raise ValueError(
            f"give exactly one of {', '.join(most)} and {last}, got {' and '.join(named) or 'none'}"
        )
    return next(iter(named.items()))


def check_count(n: Any, most: int, limit: str, way_out: str = "") -> int:
    """Returns `n` if it is an integer from 1 to `most`, the value of `limit`; `way_out` ends the error.

    Raises:
        ValueError: otherwise.
    """
    if not is_int(n, 1) or n > most:
        raise ValueError(
            f"num_inference_steps must be an integer from 1 to {limit}={most}, got {n!r}{way_out}"
        )
    return int(n)


def descending(
    name: str, values: Any, low: float, high: float, *, integers: bool = False, way_out: str = ""
) -> jax.Array:
    """Returns levels that a caller wrote down, f32[N]; traced values are taken on trust.

    Args:
        name: of the argument.
        values: the levels.
        low: the lowest that is allowed.
        high: the highest.
        integers: whether the levels are indices.
        way_out: ends the error of a wrong type.

    Raises:
        ValueError: unless they are a list of numbers in [low, high], in strictly descending order.
    """
    array = values if hasattr(values, "dtype") else np.asarray(values)
    kinds = (jnp.integer,) if integers else (jnp.integer, jnp.floating)
    if np.ndim(array) != 1 or not any(jnp.issubdtype(array.dtype, kind) for kind in kinds):
        raise ValueError(
            f"{name} must be a list of {'integers' if integers else 'numbers'}, got {values!r}{way_out}"
        )
    known = concrete(array)
    if known is not None:
        # As float32, as the bounds may be: 0.1 is a valid level where sigma_max is 0.1.
        with np.errstate(over="ignore"):  # infinite, and so beyond any bound
            known = np.float32(known)
        if known.size == 0 or not np.all(
            (np.float32(low) <= known) & (known <= np.float32(high))
        ):  # NaN fails too
            raise ValueError(
                f"{name} must lie in [{low:g}, {high:g}], got {np.asarray(array).tolist()}"
            )
        if np.any(np.diff(known) >= 0):
            raise ValueError(
                f"{name} must be strictly descending, got {np.asarray(array).tolist()}"
            )
    return jnp.asarray(array).astype(jnp.float32)

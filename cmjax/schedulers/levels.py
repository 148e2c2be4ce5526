"""Noise levels: the grids that samplers share, and explicit levels given by callers."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cmjax.arrays import as_array, concrete, safe_sqrt
from cmjax.configs import is_int, shown
from cmjax.parametrization import Parametrization

# The largest `num_inference_steps` where no training grid limits it.
MOST_STEPS = 1_000_000


class Levels(NamedTuple):
    """The noise levels of a run, `x = alpha x0 + sigma z`.

    Attributes:
        times: f32[N], the network's time at each level but the last.
        alphas: f32[N+1], signal levels; the last is where sampling ends.
        sigmas: f32[N+1], noise levels, likewise.
    """

    # One entry fewer than the others: the network is not called where sampling ends.
    times: jax.Array
    alphas: jax.Array
    sigmas: jax.Array

    @property
    def starts(self) -> tuple[jax.Array, jax.Array]:
        """(alpha, sigma) where each step starts, f32[N] each."""
        return self.alphas[:-1], self.sigmas[:-1]

    @property
    def ends(self) -> tuple[jax.Array, jax.Array]:
        """(alpha', sigma') where each step ends, f32[N] each."""
        return self.alphas[1:], self.sigmas[1:]


def exploding_levels(
    parametrization: Parametrization, sigmas: jax.Array, times: jax.Array | None = None
) -> Levels:
    """Returns the levels of samples `x0 + sigma z`, with alpha = 1.

    Args:
        parametrization: of the network.
        sigmas: f32[N+1], noise levels.
        times: f32[N], the network's times; None for those that the parametrization gives.
    """
    # Given times are kept exactly: converting them to sigmas and back would round them.
    if times is None:
        times = parametrization.time(sigmas[:-1])
    return Levels(times, jnp.ones_like(sigmas), sigmas)


def karras_sigmas(places: Any, sigma_min: Any, sigma_max: Any, rho: float) -> Any:
    """Returns the noise levels at `places` in [0, 1], 0 being sigma_max.

    Equation 5 of Karras et al. 2022.
    """
    # Equally spaced in sigma ** (1 / rho): the larger rho, the more levels are near sigma_min. As a
    # fraction of sigma_max, since for small rho these powers leave float32's range.
    low = (sigma_min / sigma_max) ** (1 / rho)
    fractions = (1 - places + places * low) ** rho

    # At the end rounding may leave less than sigma_min, even 0.
    return (sigma_max * fractions).clip(sigma_min, sigma_max)


def exponential_sigmas(places: Any, sigma_min: Any, sigma_max: Any) -> Any:
    """Returns the noise levels at `places` in [0, 1], 0 being sigma_max, linear in log sigma."""
    return sigma_max * (sigma_min / sigma_max) ** places


def ramp(n: int) -> np.ndarray:
    """Returns n equally spaced numbers from 0 to 1, f64[n]; only 0 for n = 1."""
    return np.linspace(0, 1, n)


def sde_times(name: str, value: Any, last: float) -> Any:
    """Returns the times of a run along an SDE, f[N] from 1, unless others are given, to `last`.

    Args:
        name: the argument that `set_timesteps` was given, "num_inference_steps" or "timesteps".
        value: its value.
        last: the lowest time.

    Raises:
        ValueError: for an invalid value.
    """
    if name == "timesteps":
        return parse_levels(name, value, last, 1)
    return 1 - (1 - last) * ramp(check_num_steps(value, MOST_STEPS))


def root_of_difference(high: Any, low: Any) -> Any:
    """Returns sqrt(high^2 - low^2), exactly 0 (and with a finite gradient) where they are equal."""
    # Factored: under jit a fused multiply-add of the squares would leave a rest.
    return safe_sqrt((high - low) * (high + low))


def append_zero(sigmas: jax.Array) -> jax.Array:
    """Returns the levels (or times) `[N]` with a final 0, where sampling ends, `[N+1]`."""
    # A typed 0, since a Python float would become float64 where x64 is enabled.
    return jnp.append(sigmas, jnp.zeros(1, sigmas.dtype))


def exactly_one(**given: Any) -> tuple[str, Any]:
    """Returns the name and value of the only argument that is not None.

    Raises:
        ValueError: if none or more than one is given.
    """
    # 0 and empty lists are given, too, and their own checks say what is wrong with them.
    named = {name: value for name, value in given.items() if value is not None}
    if len(named) != 1:
        *most, last = given
        found = " and ".join(named) or "none"
        raise ValueError(f"give exactly one of {', '.join(most)} and {last}, got {found}")
    return next(iter(named.items()))


def check_num_steps(n: Any, most: int, limit: str = "", hint: str = "") -> int:
    """Returns `n` if it is an integer from 1 to `most`.

    Args:
        n: the value of `num_inference_steps`.
        most: the largest value that is allowed.
        limit: the option that sets this limit, for the error; "" if none does.
        hint: ends the error.

    Raises:
        ValueError: otherwise.
    """
    if not is_int(n, 1) or n > most:
        largest = f"{limit}={most}" if limit else f"{most}"
        raise ValueError(
            f"num_inference_steps must be an integer from 1 to {largest}, got {shown(n)}{hint}"
        )
    return int(n)


def parse_levels(
    name: str,
    values: Any,
    low: float,
    high: float,
    *,
    integers: bool = False,
    hint: str = "",
) -> jax.Array:
    """Returns explicit levels as an array, f32[N]; traced values are not checked.

    Args:
        name: of the argument, for errors.
        values: the levels.
        low: the lowest value that is allowed.
        high: the highest value that is allowed.
        integers: whether the levels must be integers, such as indices.
        hint: ends the error for a wrong type.

    Raises:
        ValueError: unless they are a list of numbers in [low, high], in strictly descending order.
    """
    # Shape and dtype are known of traced arrays, too.
    array = as_array(name, values)
    if array.size == 0:
        raise ValueError(f"{name} must hold at least one number, got {shown(values)}")
    is_number = jnp.issubdtype(array.dtype, jnp.integer)
    if not integers:
        is_number = is_number or jnp.issubdtype(array.dtype, jnp.floating)
    if np.ndim(array) != 1 or not is_number:
        kind = "integers" if integers else "numbers"
        if integers and jnp.issubdtype(array.dtype, jnp.floating):
            hint = f"; convert them by np.rint({name}).astype(int){hint}"
        raise ValueError(f"{name} must be a list of {kind}, got {shown(values)}{hint}")

    # The values are known outside of jit only.
    known = concrete(array)
    if known is not None:
        _check_descending(name, known, low, high)
    return jnp.asarray(array.astype(jnp.float32))


def _check_descending(name: str, values: np.ndarray, low: float, high: float) -> None:
    """Raises ValueError unless values lie in [low, high] and strictly descend.

    They are compared as float32, since float32's 0.1 must be valid where sigma_max is 0.1.
    """
    with np.errstate(over="ignore"):  # infinite, and so beyond any bound
        rounded = np.float32(values)
    inside = (np.float32(low) <= rounded) & (rounded <= np.float32(high))
    if not np.all(inside):  # NaN is not inside
        ends_at_0 = name == "sigmas" and values.size > 1 and values[-1] == 0
        hint = "; leave out the 0, where runs end by themselves" if ends_at_0 else ""
        raise ValueError(
            f"{name} must lie in [{low:g}, {high:g}], got {shown(values.tolist())}{hint}"
        )

    # Two levels that are equal in float32 would be a step from a level to itself.
    if np.any(np.diff(rounded) >= 0):
        raise ValueError(
            f"{name} must be strictly descending, got {shown(values.tolist())}"
        )

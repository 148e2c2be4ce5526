"""How strongly a network is guided: by a number, per sample, by the level, at some levels only."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from cmjax.arrays import as_numpy, as_reals, known_reals, reals_of_batch
from cmjax.configs import shown
from cmjax.meshes import sharded_like
from cmjax.parametrization import Parametrization

# A number, one per sample, or a function of sigma.
Scale = ArrayLike | Callable[[jax.Array], ArrayLike]

# Levels are computed from times in float32: they reach the ends of an interval up to this share.
ROUNDING = 1e-4

# The level of pure noise, with which flows begin, as it is passed to functions. It is infinite, of
# which `sigma / (1 + sigma)` is NaN.
PURE_NOISE = 1e6


@dataclasses.dataclass(frozen=True)
class Strength:
    """The scale of guidance, and the levels that it is for.

    Attributes:
        scale: a number, one per sample `[B]`, or a function of the levels f32[B].
        interval: the levels (low, high) to guide at; None for all.
        parametrization: that of the network; None where no level is asked for.

    Raises:
        ValueError: if a scale is not finite or of two and more axes, an interval no ascending pair,
            or if there is no parametrization to tell the level by.
    """

    scale: Any
    interval: Any = None
    parametrization: Parametrization | None = None

    def __post_init__(self):
        if not callable(self.scale):
            object.__setattr__(self, "scale", _numbers(self.scale))
        if self.interval is not None:
            object.__setattr__(self, "interval", interval_ends("interval", self.interval))

        # Only a parametrization says which level a network's time stands for.
        if self.parametrization is not None:
            check_parametrization(self.parametrization)
        elif callable(self.scale) or self.interval is not None:
            raise ValueError(
                "parametrization is missing: an interval and a scale that is a function need the "
                "level; pass parametrization=scheduler.parametrization"
            )

    @property
    def is_one(self) -> bool:
        """Whether the scale is known to be 1 for all samples at all levels."""
        is_known = isinstance(self.scale, float | tuple)
        return is_known and bool(np.all(np.equal(self.scale, 1)))

    def scale_at(self, x: jax.Array, time: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """Returns the scale of each sample, f32[B] or f32[], and whether any sample is guided.

        Args:
            x: what the network sees, `[B, ...]`.
            time: the network's time, f32[B].

        Returns:
            The scales, which are 1 outside of the interval, and whether any sample is within it,
            bool[]; None without an interval.

        Raises:
            ValueError: for a scale that is neither a number nor one per sample.
        """
        sigma: Any = None
        if self.parametrization is not None:
            sigma = level_of(self.parametrization, time)

        # The scale of each sample at its level, f32[B], or of all samples, f32[].
        scale = self.scale
        if callable(scale):
            scale = _numbers(scale(jnp.minimum(sigma, PURE_NOISE)))
        scale = reals_of_batch("scale", scale, x.shape[0])
        if scale.ndim:
            scale = sharded_like(scale, x)
        if self.interval is None:
            return scale, None

        # Guidance in an interval (Kynkäänniemi et al. 2024, equation 5): 1 is no guidance.
        low, high = self.interval
        inside = (sigma >= low * (1 - ROUNDING)) & (sigma <= high * (1 + ROUNDING))
        return jnp.where(inside, scale, 1.0), jnp.any(inside)


def level_of(parametrization: Parametrization, time: jax.Array) -> jax.Array:
    """Returns the ratio of noise to signal at the network's times, EDM's sigma, f32[B]."""
    alpha, sigma = parametrization.path(time)

    # Pure noise has the level infinity.
    has_signal = alpha > 0
    return jnp.where(has_signal, sigma / jnp.where(has_signal, alpha, 1), jnp.inf)


def check_parametrization(parametrization: Any) -> None:
    """Raises ValueError unless it is a parametrization."""
    if not isinstance(parametrization, Parametrization):
        raise ValueError(
            "parametrization must be that of the network, scheduler.parametrization, "
            f"got {shown(parametrization)}"
        )


def _numbers(value: Any) -> Any:
    """The scale as `hashable_reals`, or if it is traced as an array of at most one axis."""
    known = known_reals("scale", value)
    if known is not None and not np.all(np.isfinite(known)):
        raise ValueError(f"scale must be finite, got {shown(value)}")
    if np.ndim(value) > 1:
        raise ValueError(
            f"scale must be a number or one per sample [B], got shape {np.shape(value)}"
        )
    if known is None:
        return as_reals("scale", value)
    return hashable_reals(known)


def hashable_reals(known: np.ndarray) -> float | tuple[float, ...]:
    """Returns a number, or numbers `[B]`, as what can be part of a cache's key.

    So equal scales, in whatever arrays they are, find the programs that are compiled for them.
    """
    return tuple(map(float, known)) if known.ndim else float(known)


def interval_ends(
    name: str, interval: Any, *, of_times: bool = False
) -> tuple[float, float]:
    """Returns the ends of an interval of noise levels, or of times, as numbers of Python.

    Args:
        name: the argument's name, for the error.
        interval: (low, high); the high one of levels may be infinite.
        of_times: whether they are times, 0 (data) to 1 (noise).

    Raises:
        ValueError: unless they are numbers, 0 or more, the lower one first; of times, up to 1.
    """
    ends = as_numpy(name, interval)
    is_pair = ends.shape == (2,) and not np.iscomplexobj(ends) and ends.dtype != bool
    is_ascending = is_pair and 0 <= ends[0] <= ends[1] and ends[0] < np.inf
    if of_times and not (is_ascending and ends[1] <= 1):
        raise ValueError(
            f"{name} must be times (low, high) from 0 (data) to 1 (noise), the lower one first, "
            f"for a network that takes one, got {shown(interval)}"
        )
    if not is_ascending:
        raise ValueError(
            f"{name} must be noise levels (low, high) with 0 <= low <= high, "
            f"got {shown(interval)}"
        )
    return float(ends[0]), float(ends[1])

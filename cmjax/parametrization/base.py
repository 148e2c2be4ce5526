"""What a network means: the noise path it was trained on, and how its output gives x0."""

import abc
from typing import Any, NamedTuple, Self

import jax

from cmjax.arrays import ApplyFn, combine


class Scalings(NamedTuple):
    """The coefficients of `x0 = c_skip x + c_out F(c_in x, t)` (Karras et al. 2022, equation 7).

    Attributes:
        c_in: factor on what the network sees.
        c_skip: share of the sample in x0.
        c_out: factor on what the network returns.
    """

    c_in: Any
    c_skip: Any
    c_out: Any


class NoiseLevel(NamedTuple):
    """A noise level in a network's own terms: `x = alpha x0 + sigma z`.

    Attributes:
        time: what the network is told.
        alpha: signal level.
        sigma: noise level.
    """

    time: jax.Array
    alpha: jax.Array
    sigma: jax.Array


class Parametrization(abc.ABC):
    """The noise path `x = alpha x0 + sigma z`, the time that the network is told, and its scalings.

    Networks are compared by their ratio of noise to signal, `sigma / alpha`: the noise level of the
    same sample in EDM's terms, `x / alpha = x0 + (sigma / alpha) z`. Subclasses are frozen
    dataclasses, so that they are hashable and equal when their fields are.
    """

    @abc.abstractmethod
    def level(self, ratio: jax.Array) -> NoiseLevel:
        """Returns time, alpha and sigma where sigma / alpha is `ratio`, of its shape."""

    @abc.abstractmethod
    def path(self, time: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns (alpha, sigma), of the shape of `time`, at what the network is told."""

    @abc.abstractmethod
    def scalings(self, alpha: Any, sigma: Any) -> Scalings:
        """Returns the scalings at these levels; entries that do not depend on them are numbers."""

    def time(self, ratio: jax.Array) -> jax.Array:
        """Returns what the network is told where sigma / alpha is `ratio`, of its shape."""
        return self.level(ratio).time

    def without_boundary(self) -> Self:
        """Returns the parametrization of the denoiser that the same network is.

        A consistency function is the identity at its lowest level; a denoiser has no such boundary.
        """
        return self


def denoise(
    apply_fn: ApplyFn,
    params: Any,
    parametrization: Parametrization,
    x: jax.Array,
    sigma: jax.Array,
    **cond: Any,
) -> jax.Array:
    """Returns the network's estimate of x0 from `x = x0 + sigma z`, `[B, ...]`.

    The estimate is not clipped: training needs its gradient everywhere.

    Args:
        apply_fn: `(params, x, t, **cond) -> model_output`.
        params: of the network.
        parametrization: what the network means.
        x: noisy samples `[B, ...]` in EDM's terms, whatever the network's own noise path.
        sigma: their noise levels, f32[B].
        **cond: per-sample conditioning, handed to `apply_fn`.
    """
    level = parametrization.level(sigma)
    c_in, c_skip, c_out = parametrization.scalings(level.alpha, level.sigma)

    # Of the network's own path: alpha (x0 + sigma z) = alpha x0 + (alpha sigma) z.
    noisy = combine((level.alpha, x))
    model_output = apply_fn(params, combine((c_in, noisy)), level.time, **cond)
    return combine((c_skip, noisy), (c_out, model_output))

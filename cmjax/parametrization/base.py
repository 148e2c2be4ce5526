"""What a network means: the noise path it was trained on, and how its output gives x0."""

import abc
import math
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from cmjax.arrays import (
    ApplyFn,
    as_array,
    as_floats,
    check_shapes,
    concrete,
    scaled,
    weighted_sum,
)
from cmjax.configs import shown
from cmjax.meshes import sharded_like
from cmjax.networks import call_network
from cmjax.serialization import serializable


class Scalings(NamedTuple):
    """The coefficients of `x0 = c_skip x + c_out F(c_in x, t)` (Karras et al. 2022, equation 7).

    Attributes:
        c_in: factor on the network's input.
        c_skip: fraction of the sample in x0.
        c_out: factor on the network's output.
    """

    # Each is an array in the shape of the noise level, or a number if it does not depend on it.
    c_in: Any
    c_skip: Any
    c_out: Any


class NoiseLevel(NamedTuple):
    """A noise level in a network's own terms: `x = alpha x0 + sigma z`.

    Attributes:
        time: the network's time input.
        alpha: signal level.
        sigma: noise level.
    """

    time: jax.Array
    alpha: jax.Array
    sigma: jax.Array


serializable(Scalings, NoiseLevel)


class Parametrization(abc.ABC):
    """The noise path `x = alpha x0 + sigma z`, the network's time input, and its scalings.

    The common scale of all networks is the ratio of noise to signal, `sigma / alpha`. It is the
    noise level of the same sample in EDM's terms, `x / alpha = x0 + (sigma / alpha) z`. Subclasses
    are frozen dataclasses, so they are hashable, and equal when their fields are.
    """

    # `level` and `path` are inverse to each other: `level` starts from the ratio sigma / alpha, and
    # `path` from the network's time.

    @abc.abstractmethod
    def level(self, ratio: jax.Array) -> NoiseLevel:
        """Returns time, alpha and sigma where sigma / alpha is `ratio`, in the shape of `ratio`."""

    @abc.abstractmethod
    def path(self, time: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns (alpha, sigma) at the network's times, in the shape of `time`."""

    @abc.abstractmethod
    def scalings(self, alpha: Any, sigma: Any) -> Scalings:
        """Returns the scalings at a level; entries that do not depend on it are plain numbers."""

    def time(self, ratio: jax.Array) -> jax.Array:
        """Returns the network's time where sigma / alpha is `ratio`, in the shape of `ratio`."""
        return self.level(ratio).time

    def add_noise(
        self, time: jax.Array, original: jax.Array, noise: jax.Array
    ) -> jax.Array:
        """Returns `alpha original + sigma noise` at the network's times, as training does.

        Args:
            time: of each sample, `[B]`, or of all, `[]`.
            original: data `[B, ...]`; the result has its dtype.
            noise: standard normal, `[B, ...]`.

        Raises:
            ValueError: if the shapes do not fit, data hold no floats, or for times that the network
                does not know.
        """
        time, original, noise = self.training_inputs(time, original, noise)
        alpha, sigma = self.path(time)
        return weighted_sum((alpha, original), (sigma, noise))

    @property
    def time_range(self) -> tuple[float, float]:
        """The lowest and highest time that the network may be given."""
        return -math.inf, math.inf

    def training_inputs(
        self, time: Any, original: Any, noise: Any
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns times, data and noise as arrays; the values of traced times are not checked.

        Raises:
            ValueError: if the shapes do not fit, data or noise hold no floats, or for times that
                are no numbers in `time_range`.
        """
        original = as_floats("original", original)
        noise = as_floats("noise", noise)
        check_shapes(original=original, noise=noise)

        # Times outside of the range, in float32, and NaN, which lies in no range.
        times = as_array("time", time)
        low, high = self.time_range
        known = concrete(times)
        if known is not None:
            is_real = not np.iscomplexobj(known)
            rounded = np.float32(known) if is_real else np.nan
            inside = (np.float32(low) <= rounded) & (rounded <= np.float32(high))
            if not np.all(inside & np.isfinite(rounded)):
                raise ValueError(
                    f"time must be finite numbers from {low:g} to {high:g}, "
                    f"got {shown(known.tolist())}"
                )
        check_time_shape(times, original)
        return jnp.asarray(times), original, noise

    def without_boundary(self) -> Self:
        """Returns the parametrization that reads the same network as a denoiser.

        A consistency function is the identity at its lowest level; a denoiser has no such boundary.
        """
        # Only EDM's scalings have a boundary; all others are the same for both readings.
        return self


def check_time_shape(time: Any, samples: jax.Array) -> None:
    """Raises ValueError unless `time` has the shape `[B]` of the samples `[B, ...]`, or `[]`."""
    shape = np.shape(time)
    if shape not in ((), samples.shape[:1]):
        raise ValueError(
            f"time must be one for each sample, {samples.shape[:1]}, or one for all, got {shape}"
        )


def denoise(
    apply_fn: ApplyFn,
    params: Any,
    parametrization: Parametrization,
    x: jax.Array,
    sigma: jax.Array,
    /,
    **cond: Any,
) -> jax.Array:
    """Returns the network's estimate of x0 from `x = x0 + sigma z`, `[B, ...]`.

    The estimate is not clipped: training needs its gradient everywhere.

    Args:
        apply_fn: `(params, x, t, **cond) -> model_output`.
        params: of the network.
        parametrization: the noise path, time and scalings of the network.
        x: noisy samples `[B, ...]` in EDM's terms, whatever the network's own noise path.
        sigma: their noise levels, f32[B].
        **cond: per-sample conditioning, passed to `apply_fn`.
    """
    # With x in EDM's terms, sigma is the ratio sigma / alpha of the network's own path.
    level = parametrization.level(sigma)
    c_in, c_skip, c_out = parametrization.scalings(level.alpha, level.sigma)

    # To the network's own path: alpha (x0 + sigma z) = alpha x0 + (alpha sigma) z.
    noisy = scaled(level.alpha, x)

    # x0 = c_skip x + c_out F(c_in x, t), `[B, ...]` in the dtype of x.
    time = sharded_like(level.time, x)
    network_input = scaled(c_in, noisy)
    model_output = call_network(apply_fn, params, network_input, (time,), cond)
    return weighted_sum((c_skip, noisy), (c_out, model_output))

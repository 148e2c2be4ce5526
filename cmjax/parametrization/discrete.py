"""Networks with discrete training times, mostly a thousand of them (Ho et al. 2020)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cmjax.arrays import as_array, concrete, weighted_sum
from cmjax.configs import shown
from cmjax.meshes import sharded_lookup
from cmjax.parametrization.base import (
    NoiseLevel,
    Parametrization,
    Scalings,
)
from cmjax.parametrization.betas import signal_variances

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")

# The least alpha^2 that counts, so that sigma / alpha is finite: with zero SNR that of diffusers,
# otherwise, where large betas leave no signal, a number whose inverse float32 holds.
_ZERO_SNR = 2.0**-24
LEAST_SIGNAL = 1e-30


@dataclasses.dataclass(frozen=True)
class Discrete(Parametrization):
    """The variance-preserving path: `x = alpha x0 + sigma z` with `alpha^2 + sigma^2 = 1`.

    The network's time input is a training time, 0..N-1. The network sees the sample as it is.

    Attributes:
        num_train_timesteps: number N of training times.
        beta_start: the first beta.
        beta_end: the last beta.
        beta_schedule: how betas grow, one of `betas.BETA_SCHEDULES`.
        trained_betas: betas that replace the schedule, or None.
        rescale_betas_zero_snr: make the last time pure noise (Lin et al. 2023).
        prediction_type: what the network returns: "epsilon" (the noise z), "sample" (x0), or
            "v_prediction" (`alpha z - sigma x0`, Salimans and Ho 2022).
    """

    # How much signal is left at each training time.
    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    trained_betas: tuple[float, ...] | None = None
    rescale_betas_zero_snr: bool = False

    # What the network returns.
    prediction_type: str = "epsilon"

    def signal_variances(self) -> np.ndarray:
        """Returns alpha^2 at every training time, f64[N]."""
        return signal_variances(
            self.num_train_timesteps,
            self.beta_start,
            self.beta_end,
            self.beta_schedule,
            self.trained_betas,
            self.rescale_betas_zero_snr,
        )

    def training_ratios(self) -> np.ndarray:
        """Returns sigma / alpha at every training time, f64[N], ascending and finite."""
        least = _ZERO_SNR if self.rescale_betas_zero_snr else LEAST_SIGNAL
        variances = np.maximum(self.signal_variances(), least)
        return np.sqrt((1 - variances) / variances)

    @property
    def ratio_range(self) -> tuple[float, float]:
        """The lowest and highest sigma / alpha of the training times."""
        ratios = self.training_ratios()
        return float(ratios[0]), float(ratios[-1])

    def level(self, ratio: jax.Array) -> NoiseLevel:
        """Returns time, alpha and sigma where sigma / alpha is `ratio`, in the shape of `ratio`."""
        # From alpha^2 + sigma^2 = 1 and sigma = ratio alpha.
        alpha = 1 / jnp.sqrt(1 + jnp.square(ratio))
        return NoiseLevel(self.time(ratio), alpha, ratio * alpha)

    def path(self, time: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns (alpha, sigma) at whole training times of any dtype, in the shape of `time`."""
        index = jnp.asarray(time).astype(jnp.int32)

        # Both roots are taken in float64: near time 0, 1 - alpha^2 is a difference of almost equal
        # numbers, of which float32 would keep few digits.
        variances = self.signal_variances()
        alphas = jnp.asarray(np.sqrt(variances), jnp.float32)
        sigmas = jnp.asarray(np.sqrt(1 - variances), jnp.float32)
        alpha = sharded_lookup(_at_index, index, alphas)
        sigma = sharded_lookup(_at_index, index, sigmas)
        return alpha, sigma

    def velocity(self, time: jax.Array, original: jax.Array, noise: jax.Array) -> jax.Array:
        """Returns what a network of "v_prediction" is trained on, `alpha z - sigma x0`.

        Salimans and Ho 2022, on the variance-preserving path; diffusers' `get_velocity`.

        Args:
            time: training times, i32[B], or one for all, i32[]; they may be traced.
            original: data x0, `[B, ...]`; the result has its dtype.
            noise: the noise z that was added to it, `[B, ...]`.

        Raises:
            ValueError: if the shapes do not fit, data hold no floats, or for times that are not
                among 0..N-1.
        """
        time, original, noise = self.training_inputs(time, original, noise)
        alpha, sigma = Discrete.path(self, time)
        return weighted_sum((-sigma, original), (alpha, noise))

    def training_inputs(
        self, time: Any, original: Any, noise: Any
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns times, data and noise as arrays; see `Parametrization`. Times are whole ones.

        Raises:
            ValueError: also for times that are not among 0..N-1.
        """
        # Dtypes are known under `jit`, too; values are not.
        times = as_array("time", time)
        known = concrete(times)
        last = self.num_train_timesteps - 1
        whole = jnp.issubdtype(times.dtype, jnp.integer)
        inside = known is None or (whole and np.all((known >= 0) & (known <= last)))
        if not whole or not inside:
            found = times.dtype if known is None else shown(known.tolist())
            raise ValueError(f"time must be integers from 0 to {last}, got {found}")
        return super().training_inputs(times, original, noise)

    def time(self, ratio: jax.Array) -> jax.Array:
        """Returns fractional training times, interpolated in log(sigma / alpha)."""
        # In the logarithm neighbouring training times are about equally far apart.
        known = jnp.asarray(np.log(self.training_ratios()), jnp.float32)
        return sharded_lookup(_place_of, jnp.log(ratio), known)

    def scalings(self, alpha: Any, sigma: Any) -> Scalings:
        """Returns (c_in, c_skip, c_out) of the prediction type."""
        # F = z, so x0 = (x - sigma F) / alpha.
        if self.prediction_type == "epsilon":
            return Scalings(1.0, 1 / alpha, -sigma / alpha)
        if self.prediction_type == "sample":
            return Scalings(1.0, 0.0, 1.0)

        # F = alpha z - sigma x0, so alpha x - sigma F = (alpha^2 + sigma^2) x0 = x0.
        return Scalings(1.0, alpha, -sigma)


@dataclasses.dataclass(frozen=True)
class DiscreteExploding(Discrete):
    """The same networks on variance-exploding samples `x = x0 + sigma z`, for ODE solvers.

    The noise level of a training time is `sqrt(1 - alpha^2) / alpha`. The network sees the sample
    scaled to variance 1. Levels between those of two training times have fractional times.

    Attributes:
        num_train_timesteps: number N of training times.
        beta_start: the first beta.
        beta_end: the last beta.
        beta_schedule: how betas grow, one of `betas.BETA_SCHEDULES`.
        trained_betas: betas that replace the schedule, or None.
        rescale_betas_zero_snr: make the last time all but pure noise (Lin et al. 2023).
        prediction_type: what the network returns: "epsilon", "sample" or "v_prediction".
    """

    def level(self, ratio: jax.Array) -> NoiseLevel:
        """Returns time, alpha = 1 and sigma = `ratio`, in the shape of `ratio`."""
        return NoiseLevel(self.time(ratio), jnp.ones_like(ratio), ratio)

    def path(self, time: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns (1, sigma) in the shape of `time`, interpolated between whole training times."""
        # Linear in sigma, as in diffusers, while `time` is linear in log sigma: between two
        # training times they are not exactly inverse.
        known = jnp.asarray(self.training_ratios(), jnp.float32)
        time = jnp.asarray(time).astype(jnp.float32)
        sigmas = sharded_lookup(_between_indices, time, known)
        return jnp.ones_like(sigmas), sigmas

    def scalings(self, alpha: Any, sigma: Any) -> Scalings:
        """Returns (c_in, c_skip, c_out) of the prediction type."""
        # 1 / sqrt(1 + sigma^2) is the alpha of the variance-preserving path: alpha x is its sample.
        c_in = 1 / jnp.sqrt(jnp.square(sigma) + 1)
        if self.prediction_type == "epsilon":
            return Scalings(c_in, 1.0, -sigma)
        if self.prediction_type == "sample":
            return Scalings(c_in, 0.0, 1.0)

        # x0 = alpha (alpha x) - (sigma alpha) F: `Discrete`'s, with its sigma = sigma alpha.
        return Scalings(c_in, c_in * c_in, -sigma * c_in)


def _at_index(index, table):
    """The entries at whole indices."""
    return table[index]


def _between_indices(index, table):
    """The entries at fractional indices, interpolated linearly; beyond the ends those there."""
    last = len(table) - 1
    floor = jnp.clip(jnp.floor(index), 0, last - 1)
    lower = floor.astype(jnp.int32)
    between = table[lower] + (index - floor) * (table[lower + 1] - table[lower])
    return jnp.where(index < 0, table[0], jnp.where(index > last, table[-1], between))


def _place_of(value, table):
    """The fractional indices of values in a table that ascends: `_between_indices` inverted."""
    # The neighbours of each value. The default method is a loop. Where the values are constants of
    # the program, XLA would run it while it compiles, for longer than the rest of a run takes.
    last = len(table) - 1
    above = jnp.searchsorted(table, value, side="right", method="scan_unrolled")
    upper = jnp.clip(above, 1, last)
    lower = upper - 1

    # Neighbours may be equal in float32.
    width = table[upper] - table[lower]
    share = (value - table[lower]) / jnp.where(width > 0, width, 1)
    share = jnp.where(width > 0, share, 1)
    place = lower.astype(jnp.float32) + share
    return jnp.where(value < table[0], 0, jnp.where(value > table[-1], last, place))

"""Latent consistency sampling (Luo et al. 2023, arXiv 2310.04378)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cmjax.arrays import as_reals, combine
from cmjax.configs import is_finite, shown
from cmjax.schedulers.bounds import BOUND_DOMAINS, bounded
from cmjax.schedulers.config_files import FileOption
from cmjax.schedulers.discrete import SPACINGS, DiscreteScheduler, explicit_times
from cmjax.schedulers.levels import Levels, append_zero, check_num_steps
from cmjax.schedulers.table import TableState
from cmjax.schedulers.weights import Weights

_SIGMA_DATA = 0.5  # of the boundary condition; fixed in the paper's code

# Shared with TCD, whose models are distilled on the same grid of times.
DISTILLED_DOMAINS = {**BOUND_DOMAINS, "original_inference_steps": (1, 1_000_000)}
DISTILLED_FILE_OPTIONS = {
    "timestep_spacing": FileOption("leading", values=SPACINGS),
    "steps_offset": FileOption(0, numbers=(0, 1_000_000)),
    "set_alpha_to_one": FileOption(True, values=(False,)),
}


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class LCMScheduler(DiscreteScheduler):
    """Sampler of latent consistency models (Luo et al. 2023, Algorithm 3).

    `x' = alpha' f(x, t) + sigma' z`, where `f = c_skip(t) x + c_out(t) x0` satisfies the boundary
    condition f(x, 0) = x. Sampling ends at f(x, t).

    The network is told a training time, 0..N-1. `set_timesteps` takes as `num_inference_steps` a
    number of times from the grid of `original_inference_steps`, or as `timesteps` whole training
    times; its additional argument `strength` starts lower on that grid.

    Attributes:
        num_train_timesteps: number N of training times.
        beta_start: the first beta.
        beta_end: the last beta.
        beta_schedule: "linear", "scaled_linear", "squaredcos_cap_v2" or "exp".
        trained_betas: betas that replace the schedule, or None.
        prediction_type: what the network returns: "epsilon", "sample" or "v_prediction".
        rescale_betas_zero_snr: make the last time pure noise (Lin et al. 2023).
        clip_sample: clip x0 estimates.
        clip_sample_range: x0 is clipped to plus or minus this.
        thresholding: scale x0 estimates that leave [-1, 1], instead of clipping (Saharia et al.
            2022, section 2.3).
        dynamic_thresholding_ratio: which quantile of a sample's |x0| is scaled to 1, if it is
            above 1.
        sample_max_value: the largest number that a sample is divided by.
        original_inference_steps: number of times on the grid that the model was distilled on; the
            steps of a run are taken from it.
        timestep_scaling: factor on t in the boundary condition.
    """

    # The betas of Stable Diffusion.
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"

    # Bounds of the x0 estimate.
    clip_sample: bool = False
    clip_sample_range: float = 1.0
    thresholding: bool = False
    dynamic_thresholding_ratio: float = 0.995
    sample_max_value: float = 1.0

    # The times of a run, and the boundary condition.
    original_inference_steps: int = 50
    timestep_scaling: float = 10.0

    facts = DiscreteScheduler.facts.replace(noise="yes", paper="Luo et al. 2023")

    # That grid replaces diffusers' options for spaced times.
    _domains = {**DISTILLED_DOMAINS, "timestep_scaling": (1e-6, 1e6)}
    _file_options = DISTILLED_FILE_OPTIONS

    def __post_init__(self):
        super().__post_init__()
        check_original_steps(self)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        *,
        timesteps: Any = None,
        sigmas: Any = None,
        strength: float = 1.0,
    ) -> TableState:
        """Returns the state at the start of a run; give exactly one of the first three arguments.

        Args:
            num_inference_steps: number of times from the grid of `original_inference_steps`.
            timesteps: or training times, in strictly descending order.
            sigmas: not supported.
            strength: with `num_inference_steps`, start at this share of the grid, in (0, 1], from
                an image with noise: `add_noise(state, image, noise)`.

        Raises:
            ValueError: if not exactly one is given, or for values that break these rules.
        """
        check_strength(strength)

        # A lower start amounts to explicit times: those of the lower part of the grid.
        if strength != 1:
            given = {"timesteps": timesteps, "sigmas": sigmas}
            timesteps = starting_lower(self, num_inference_steps, strength, **given)
            num_inference_steps = None
        return super().set_timesteps(
            num_inference_steps, timesteps=timesteps, sigmas=sigmas
        )

    def levels(self, name: str, value: Any) -> Levels:
        """Returns the levels of the training times, ending at alpha = 1 and sigma = 0."""
        times = distilled_times(self, name, value)
        alphas, sigmas = self.parametrization.path(times)
        return Levels(
            times, jnp.append(alphas, jnp.ones(1, alphas.dtype)), append_zero(sigmas)
        )

    def weights(self, levels: Levels) -> Weights:
        """Returns the table of `x' = alpha' f(x, t) + sigma' z`."""
        return Weights(x0=levels.alphas[1:], eps=0.0, noise=levels.sigmas[1:])

    def bound(self, denoised: jax.Array) -> jax.Array:
        """Returns the x0 estimate thresholded or clipped, if so configured."""
        return bounded(self, denoised)

    def denoise(
        self, state: TableState, model_output: jax.Array, sample: jax.Array
    ) -> jax.Array:
        """Returns f(x, t), `[B, ...]`: the bounded x0 estimate with the boundary condition."""
        # On top of the network's own scalings: x0 first, as the prediction type says, then f.
        denoised = super().denoise(state, model_output, sample)
        time = state.timesteps[state.step_index]
        c_skip, c_out = self.get_scalings_for_boundary_condition(time)
        return combine((c_out, denoised), (c_skip, jnp.asarray(sample)))

    def get_scalings_for_boundary_condition(
        self, timestep: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Returns (c_skip, c_out) with f(x, 0) = x, in the shape of `timestep` (section 4.1)."""
        # EDM's scalings with the scaled time for sigma.
        t = as_reals("timestep", timestep) * self.timestep_scaling
        total = jnp.square(t) + _SIGMA_DATA**2
        return _SIGMA_DATA**2 / total, t / jnp.sqrt(total)


def check_original_steps(scheduler: Any) -> None:
    """Raises ValueError unless the distilled grid fits into the training times."""
    if scheduler.original_inference_steps > scheduler.num_train_timesteps:
        raise ValueError(
            f"original_inference_steps {scheduler.original_inference_steps} must be at most "
            f"num_train_timesteps {scheduler.num_train_timesteps}"
        )


def distilled_times(scheduler: Any, name: str, value: Any) -> jax.Array:
    """Returns training times, f32[N], descending: some of the distilled grid, or explicit ones.

    Args:
        scheduler: with `num_train_timesteps` and `original_inference_steps`.
        name: which argument of `set_timesteps` was given.
        value: its value.

    Raises:
        ValueError: for sigmas, more steps than there are on the grid, or invalid times.
    """
    if name == "num_inference_steps":
        return explicit_times(scheduler, "timesteps", _from_grid(scheduler, value, 1.0))
    return explicit_times(scheduler, name, value)


def check_strength(strength: Any) -> None:
    """Raises ValueError unless `strength` is in (0, 1]."""
    if not is_finite(strength) or not 0 < strength <= 1:
        raise ValueError(
            f"strength must be a number above 0 and at most 1, got {shown(strength)}"
        )


def starting_lower(
    scheduler: Any, num_inference_steps: int | None, strength: float, **others: Any
) -> np.ndarray:
    """Returns times of the lower part of the distilled grid, i64[N], descending.

    Args:
        scheduler: with `num_train_timesteps` and `original_inference_steps`.
        num_inference_steps: number N of steps.
        strength: share of the grid that the times are taken from, in (0, 1].
        **others: the other arguments of `set_timesteps`, which strength excludes.

    Raises:
        ValueError: without `num_inference_steps`.
    """
    if num_inference_steps is None or any(value is not None for value in others.values()):
        raise ValueError(
            "strength shortens num_inference_steps; with timesteps, start the list lower instead"
        )
    return _from_grid(scheduler, num_inference_steps, strength)


def _from_grid(scheduler, n, strength):
    """The reference's choice of n times from the grid, i64[n], descending."""
    # Every stride-th training time, descending; with strength below 1 only the lower part.
    stride = scheduler.num_train_timesteps // scheduler.original_inference_steps
    grid = np.arange(int(scheduler.original_inference_steps * strength), 0, -1) * stride - 1
    n = check_num_steps(n, len(grid), "original_inference_steps * strength")

    # n of them, equally spaced from the noisiest on; rounded down to an index.
    return grid[np.floor(np.linspace(0, len(grid), n, endpoint=False)).astype(int)]

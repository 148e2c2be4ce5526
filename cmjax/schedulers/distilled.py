"""Shared base of samplers of latent consistency models: they jump between times of one grid."""

import dataclasses
from typing import Any

import jax
import numpy as np

from cmjax.configs import is_finite, shown
from cmjax.schedulers.bounds import BoundOptions
from cmjax.schedulers.config_files import FileOption
from cmjax.schedulers.discrete import SPACINGS, DiscreteScheduler, explicit_times
from cmjax.schedulers.field_docs import inherit_field_docs
from cmjax.schedulers.levels import check_num_steps
from cmjax.schedulers.table import TableState


@inherit_field_docs
@dataclasses.dataclass(frozen=True)
class DistilledScheduler(BoundOptions, DiscreteScheduler):
    """A sampler of a model that was distilled on a grid of training times (Luo et al. 2023).

    The network's time input is a training time, 0..N-1. `set_timesteps` takes as
    `num_inference_steps` a number of times from the grid of `original_inference_steps`, or as
    `timesteps` whole training times; its additional argument `strength` starts lower on that grid.

    Attributes:
        original_inference_steps: number of times on the grid that the model was distilled on; the
            steps of a run are taken from it.
    """

    # The betas of Stable Diffusion.
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"

    clip_sample: bool = False
    original_inference_steps: int = 50

    _domains = {"original_inference_steps": (1, 1_000_000)}

    # The grid replaces diffusers' options for spaced times.
    _file_options = {
        "timestep_spacing": FileOption("leading", values=SPACINGS),
        "steps_offset": FileOption(0, numbers=(0, 1_000_000)),
        "set_alpha_to_one": FileOption(True, values=(False,)),
    }

    def __post_init__(self):
        super().__post_init__()
        if self.original_inference_steps > self.num_train_timesteps:
            raise ValueError(
                f"original_inference_steps {self.original_inference_steps} must be at most "
                f"num_train_timesteps {self.num_train_timesteps}"
            )

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
            ValueError: if not exactly one is given, for values that break these rules, or options
                that list one value per step, for another number of steps.
        """
        if not is_finite(strength) or not 0 < strength <= 1:
            raise ValueError(
                f"strength must be a number above 0 and at most 1, got {shown(strength)}"
            )

        # A lower start is a run over explicit times, from the lower part of the grid.
        if strength != 1:
            others = (timesteps, sigmas)
            if num_inference_steps is None or any(other is not None for other in others):
                raise ValueError(
                    "strength shortens num_inference_steps; with timesteps, start the list lower "
                    "instead"
                )
            timesteps = self._from_grid(num_inference_steps, strength)
            num_inference_steps = None
        return super().set_timesteps(
            num_inference_steps, timesteps=timesteps, sigmas=sigmas
        )

    def times(self, name: str, value: Any) -> jax.Array:
        """Returns the times of a run, f32[N], descending: some of the grid, or explicit ones.

        Args:
            name: which argument of `set_timesteps` was given.
            value: its value.

        Raises:
            ValueError: for sigmas, more steps than there are on the grid, or invalid times.
        """
        if name == "num_inference_steps":
            return explicit_times(self, "timesteps", self._from_grid(value, 1.0))
        return explicit_times(self, name, value)

    def _from_grid(self, n: int, strength: float) -> np.ndarray:
        """The reference's choice of n times from the grid, i64[n], descending."""
        # Every stride-th training time, descending; with strength below 1 only the lower part.
        stride = self.num_train_timesteps // self.original_inference_steps
        num_on_grid = int(self.original_inference_steps * strength)
        grid = np.arange(num_on_grid, 0, -1) * stride - 1
        n = check_num_steps(n, num_on_grid, "original_inference_steps * strength")

        # n of them, equally spaced from the noisiest on; rounded down to an index.
        places = np.linspace(0, num_on_grid, n, endpoint=False)
        return grid[np.floor(places).astype(int)]

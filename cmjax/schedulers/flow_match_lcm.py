"""Consistency sampling of distilled flow-matching models, such as FLUX and SD3."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from cmjax.configs import is_finite
from cmjax.schedulers.base import FileOption
from cmjax.schedulers.flow import FlowScheduler, shifted
from cmjax.schedulers.grids import grid_option, respaced
from cmjax.schedulers.levels import Levels
from cmjax.schedulers.table import Weights

_UPSCALE_MODES = ("nearest", "linear", "bilinear", "trilinear", "area", "nearest-exact")


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class FlowMatchLCMScheduler(FlowScheduler):
    """Consistency sampling of flow-matching models: `x' = (1 - sigma') x0 + sigma' z`.

    The network is told `N sigma`. `set_timesteps` takes as `num_inference_steps` a number of
    levels, equally spaced before they are shifted; as `timesteps` N times the levels before the
    shift; as `sigmas` the levels before the shift, in (0, 1]. With explicit timesteps diffusers
    shifts the levels but not the network's times; here both are shifted.

    Attributes:
        num_train_timesteps: number N, the scale of the network's time.
        shift: how far the levels are moved towards noise (Esser et al. 2024, equation 23); 1 is not
            at all.
        shift_terminal: stretch the shifted levels so that this is the lowest; None leaves them.
        use_karras_sigmas: replace the levels by those of Karras et al. 2022, equation 5, with the
            same ends.
        use_exponential_sigmas: replace the levels by equal steps of log sigma.
        use_beta_sigmas: replace the levels by quantiles of a beta distribution (Lee et al. 2024),
            close together at both ends.

    Raises:
        ValueError: for values outside their domain.
    """

    shift_terminal: float | None = None
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False

    _file_options = {
        # Dynamic shifting: a shift that depends on the size of the image.
        "base_shift": FileOption(0.5, numbers=(-1e6, 1e6)),
        "max_shift": FileOption(1.15, numbers=(-1e6, 1e6)),
        "base_image_seq_len": FileOption(256, numbers=(1, 2**31 - 1)),
        "max_image_seq_len": FileOption(4096, numbers=(1, 2**31 - 1)),
        "time_shift_type": FileOption("exponential", values=("linear",)),
        # Images that grow between steps, and other kinds of levels.
        "upscale_mode": FileOption("bicubic", values=_UPSCALE_MODES),
        "use_dynamic_shifting": FileOption(
            False, hint="set shift=exp(mu), which is the same"
        ),
        "invert_sigmas": FileOption(
            False,
            hint="it is for models whose time grows with the signal, not with the noise",
        ),
        "scale_factors": FileOption(
            None,
            hint="the samples of a run have one size; call sample() per size, with init=",
        ),
    }

    def __post_init__(self):
        super().__post_init__()
        grid_option(self)  # at most one
        terminal = self.shift_terminal
        if terminal is not None and not (is_finite(terminal) and 0 < terminal < 1):
            raise ValueError(
                f"shift_terminal must be a number between 0 and 1, or null, got {terminal!r}"
            )

    def levels(self, name: str, value: Any) -> Levels:
        """Returns the shifted levels, ending at 0."""
        # The lowest of equally spaced levels is shifted twice, as in diffusers: once here, and once
        # with all the others.
        lowest = shifted(1 / self.num_train_timesteps, self.shift)
        sigmas = shifted(self.unshifted_sigmas(name, value, lowest), self.shift)
        if self.shift_terminal is not None:
            sigmas = _stretched(sigmas, self.shift_terminal)
        return self.levels_of(respaced(self, sigmas))

    def weights(self, levels: Levels) -> Weights:
        """Returns the table of `x' = (1 - sigma') x0 + sigma' z`."""
        return Weights(x0=levels.alphas[1:], eps=0.0, noise=levels.sigmas[1:])


def _stretched(sigmas: jax.Array, terminal: float) -> jax.Array:
    """Levels f32[N] from 1 down, stretched so that the lowest is `terminal`."""
    low = sigmas[-1]

    # 1 - (1 - sigmas) (1 - terminal) / (1 - low), written so that small results lose nothing to
    # rounding.
    stretched = (sigmas - low + terminal * (1 - sigmas)) / jnp.where(low < 1, 1 - low, 1)

    # A single level, pure noise, has nothing to stretch.
    return jnp.where(low < 1, stretched, sigmas)

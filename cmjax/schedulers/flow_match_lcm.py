"""Consistency sampling of flow-matching models: FLUX, SD3 and others, distilled (Luo et al. 2023)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from cmjax.configs import is_finite
from cmjax.schedulers.flow import FlowScheduler, shifted
from cmjax.schedulers.levels import exponential_sigmas, karras_sigmas, ramp
from cmjax.schedulers.linear import LinearState, rows

_UPSCALE_MODES = ("nearest", "linear", "bilinear", "bicubic", "trilinear", "area", "nearest-exact")
_RHO = 7.0  # of `use_karras_sigmas`, as in the reference


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class FlowMatchLCMScheduler(FlowScheduler):
    """Consistency sampling of flow-matching models: `x' = (1 - sigma') x0 + sigma' z`.

    Attributes:
        shift_terminal: stretch the shifted levels so that the lowest is this.
        use_karras_sigmas: replace the levels by those of Karras et al. 2022, equation 5, with the same ends.
        use_exponential_sigmas: or by equal steps of log sigma.

    `num_train_timesteps` and `shift` as in `FlowScheduler`; the rest is there to read diffusers' files, and must keep
    its default or is of no effect. With explicit timesteps the reference shifts the levels but not what the network is
    told; here both.

    Raises:
        ValueError: for values outside their domain, or options that are not supported.
    """

    use_dynamic_shifting: bool = False
    base_shift: float = 0.5
    max_shift: float = 1.15
    base_image_seq_len: int = 256
    max_image_seq_len: int = 4096
    invert_sigmas: bool = False
    shift_terminal: float | None = None
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False
    time_shift_type: str = "exponential"
    scale_factors: tuple[float, ...] | None = None
    upscale_mode: str = "bicubic"

    _domains = {
        "time_shift_type": ("exponential", "linear"),
        "upscale_mode": _UPSCALE_MODES,
        **dict.fromkeys(("base_shift", "max_shift"), (-1e6, 1e6)),
        **dict.fromkeys(("base_image_seq_len", "max_image_seq_len"), (1, 2**31 - 1)),
    }
    _unsupported = {
        "use_dynamic_shifting": "set shift=exp(mu), which is the same",
        "invert_sigmas": "it is of other models, which are told how much signal there is",
        "use_beta_sigmas": "use_karras_sigmas, use_exponential_sigmas, or sigmas=[...] in set_timesteps",
        "scale_factors": "the samples of a run have one size; call sample() per size, with init=",
    }

    def __post_init__(self):
        super().__post_init__()
        if self.use_karras_sigmas and self.use_exponential_sigmas:
            raise ValueError("use_karras_sigmas and use_exponential_sigmas exclude each other")
        if self.shift_terminal is not None and not (
            is_finite(self.shift_terminal) and 0 < self.shift_terminal < 1
        ):
            raise ValueError(
                f"shift_terminal must be a number between 0 and 1, or null, got {self.shift_terminal!r}"
            )

    def set_timesteps(
        self, num_inference_steps: int | None = None, *, timesteps: Any = None, sigmas: Any = None
    ) -> LinearState:
        """Returns the state at the start of a run; give exactly one argument.

        Args:
            num_inference_steps: number of levels, equally spaced before they are shifted.
            timesteps: or N times the levels before the shift, descending.
            sigmas: or the levels before the shift, descending, in (0, 1].

        Raises:
            ValueError: if not exactly one is given, or for values that break the rules above.
        """
        lowest = shifted(
            1 / self.num_train_timesteps, self.shift
        )  # so, and shifted again, in the reference
        levels = shifted(self.levels(num_inference_steps, timesteps, sigmas, lowest), self.shift)
        if self.shift_terminal is not None:
            low = levels[-1]
            # 1 - (1 - levels) (1 - shift_terminal) / (1 - low), written so that low results lose nothing to rounding.
            stretched = (levels - low + self.shift_terminal * (1 - levels)) / jnp.where(
                low < 1, 1 - low, 1
            )
            levels = jnp.where(
                low < 1, stretched, levels
            )  # a single level, pure noise, has nothing to stretch
        first, last, steps = levels[0], levels[-1], jnp.asarray(ramp(len(levels)), jnp.float32)
        if self.use_karras_sigmas:
            levels = karras_sigmas(steps, last, first, _RHO)
        elif self.use_exponential_sigmas:
            levels = exponential_sigmas(steps, last, first)
        times, alphas, sigmas = self.ending_at_zero(levels)
        return self.new_state(times, alphas, sigmas, rows(alphas[1:], 0.0, sigmas[1:]))
